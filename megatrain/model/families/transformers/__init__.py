"""Any causal language model that `transformers` knows and megatrain has no family for, by the code that it has.

Its weights are not split: ZeRO only. Its table is read from its parameters once, when a run is resolved
(`resolve.py` asks `describe.py`), and stands in the resolved run.
"""

from megatrain.model.families.transformers.config_json import huggingface_config
from megatrain.model.families.transformers.resolve import complete, read_config
from megatrain.model.families.transformers.rules import WHOLE, run_issues
from megatrain.model.families.transformers.section import TransformersSection
from megatrain.model.families.transformers.table import rows
from megatrain.model.family import ANY_MODEL_TYPE, FAMILIES, ModelFamily

FAMILIES.register(
    "transformers",
    ModelFamily(
        section=TransformersSection,
        rows=rows,
        module="megatrain.model.families.transformers.module:TransformersModel",
        regions={},
        divisible=lambda section: (),
        whole=WHOLE,
        run_issues=run_issues,
        complete=complete,
        huggingface_config=huggingface_config,
        model_types=(ANY_MODEL_TYPE,),
        read_huggingface_config=read_config,
        huggingface_prefix=lambda section: section.described.prefix,
        huggingface_head=(r"(lm_head|embed_out)\.(weight|bias)",),
        # buffers that files of old versions hold
        huggingface_ignored=(
            r".*\.rotary_emb\.inv_freq",
            r".*\.attention\.(masked_)?bias",
            r".*\.attn\.(masked_)?bias",
        ),
        huggingface_tied=lambda section: section.described.tied,
    ),
)
