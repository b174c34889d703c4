"""GPT-2: a decoder with LayerNorm, learned positions, biases and a GELU MLP (Radford et al. 2019)."""

from megatrain.model.families.gpt.config_json import MODEL_TYPES, huggingface_config, read_config
from megatrain.model.families.gpt.rules import issues, resized
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.gpt.table import REGIONS, divisible, rows
from megatrain.model.family import FAMILIES, ModelFamily

FAMILIES.register(
    "gpt",
    ModelFamily(
        section=GPTSection,
        rows=rows,
        module="megatrain.model.families.gpt.module:GPT",
        regions=REGIONS,
        divisible=divisible,
        residual=(r"blocks\.\d+\.(attention|mlp)",),
        issues=issues,
        has_mup=True,
        resized=resized,
        huggingface_config=huggingface_config,
        huggingface_prefix="transformer.",
        # causal masks that files of old versions hold
        huggingface_ignored=(r"transformer\.h\.[0-9]+\.attn\.(masked_)?bias",),
        model_types=MODEL_TYPES,
        read_huggingface_config=read_config,
    ),
)
