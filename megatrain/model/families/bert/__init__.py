"""BERT and RoBERTa: a bidirectional encoder with learned positions and norms behind each layer (arXiv 1810.04805)."""

from megatrain.model.families.bert.config_json import MODEL_TYPES, huggingface_config, read_config
from megatrain.model.families.bert.rules import issues, resized
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.bert.table import REGIONS, divisible, rows, their_model
from megatrain.model.family import FAMILIES, ModelFamily

FAMILIES.register(
    "bert",
    ModelFamily(
        section=BertSection,
        rows=rows,
        module="megatrain.model.families.bert.module:Bert",
        regions=REGIONS,
        divisible=divisible,
        residual=(r"blocks\.\d+\.(attention|mlp)",),
        issues=issues,
        resized=resized,
        huggingface_config=huggingface_config,
        huggingface_prefix=lambda section: f"{their_model(section)}.",
        huggingface_head=(r"cls\.predictions\..*", r"lm_head\..*"),
        huggingface_renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
        huggingface_tied=("cls.predictions.decoder.weight", "lm_head.decoder.weight"),
        huggingface_ignored=(
            r"(cls\.predictions|lm_head)\.decoder\.bias",  # the head's bias once more
            r"(bert|roberta)\.embeddings\.position_ids",
            r"(bert|roberta)\.pooler\..*",
            r"cls\.seq_relationship\..*",  # next-sentence prediction
        ),
        model_types=MODEL_TYPES,
        read_huggingface_config=read_config,
    ),
)
