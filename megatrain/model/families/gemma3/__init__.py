"""Gemma 3, text only: a decoder with norms before and behind each layer, local and global layers (arXiv 2503.19786)."""

from megatrain.model.families.gemma3.config_json import MODEL_TYPES, huggingface_config, read_config
from megatrain.model.families.gemma3.rules import issues, resized
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.gemma3.table import REGIONS, divisible, rows
from megatrain.model.family import FAMILIES, ModelFamily

FAMILIES.register(
    "gemma3",
    ModelFamily(
        section=Gemma3Section,
        rows=rows,
        module="megatrain.model.families.gemma3.module:Gemma3",
        regions=REGIONS,
        divisible=divisible,
        residual=(r"blocks\.\d+\.(attention|mlp)_output_norm",),
        issues=issues,
        resized=resized,
        huggingface_config=huggingface_config,
        huggingface_prefix="model.",
        model_types=MODEL_TYPES,
        read_huggingface_config=read_config,
    ),
)
