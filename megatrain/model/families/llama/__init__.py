"""Llama: a decoder with RMSNorm, rotary positions, grouped-query attention and a SwiGLU MLP (arXiv 2302.13971)."""

from megatrain.model.families.llama.config_json import MODEL_TYPES, read_config
from megatrain.model.families.llama.huggingface import exported_name, huggingface_config
from megatrain.model.families.llama.rules import issues, resized
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.families.llama.table import REGIONS, divisible, rows
from megatrain.model.family import FAMILIES, ModelFamily

FAMILIES.register(
    "llama",
    ModelFamily(
        section=LlamaSection,
        rows=rows,
        module="megatrain.model.families.llama.module:Llama",
        regions=REGIONS,
        divisible=divisible,
        residual=(r"blocks\.\d+\.(attention|mlp)",),
        issues=issues,
        has_mup=True,
        resized=resized,
        huggingface_config=huggingface_config,
        huggingface_prefix="model.",
        huggingface_exported=exported_name,
        model_types=MODEL_TYPES,
        read_huggingface_config=read_config,
    ),
)
