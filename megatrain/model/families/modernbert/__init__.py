"""ModernBERT: a bidirectional encoder with rotary positions, GeGLU, and local and global layers (arXiv 2412.13663)."""

from megatrain.model.families.modernbert.config_json import MODEL_TYPES, huggingface_config, read_config
from megatrain.model.families.modernbert.rules import issues, resized
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.families.modernbert.table import REGIONS, divisible, rows
from megatrain.model.family import FAMILIES, ModelFamily

FAMILIES.register(
    "modernbert",
    ModelFamily(
        section=ModernBertSection,
        rows=rows,
        module="megatrain.model.families.modernbert.module:ModernBert",
        regions=REGIONS,
        divisible=divisible,
        residual=(r"blocks\.\d+\.(attention|mlp)",),
        issues=issues,
        resized=resized,
        huggingface_config=huggingface_config,
        huggingface_prefix="model.",
        huggingface_head=(r"head\..*", r"decoder\.bias"),
        huggingface_tied=("decoder.weight",),
        model_types=MODEL_TYPES,
        read_huggingface_config=read_config,
    ),
)
