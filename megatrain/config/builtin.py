"""Everything that registers itself with megatrain; importing this module is what makes it known."""

from megatrain.adapters import dora, houlsby, lora
from megatrain.model import families
from megatrain.optim import adafactor, adamw, adamw_l2sp, lion, muon
from megatrain.schedule import constant, cooldown, cosine, inverse_sqrt, linear, wsd
from megatrain.tasks import (
    masked_lm,
    preference,
    pretrain_lm,
    question_answering,
    relation_extraction,
    sequence_classification,
    sft,
    token_classification,
)

__all__ = [
    "adafactor",
    "adamw",
    "adamw_l2sp",
    "constant",
    "cooldown",
    "cosine",
    "dora",
    "families",
    "houlsby",
    "inverse_sqrt",
    "linear",
    "lion",
    "lora",
    "masked_lm",
    "muon",
    "preference",
    "pretrain_lm",
    "question_answering",
    "relation_extraction",
    "sequence_classification",
    "sft",
    "token_classification",
    "wsd",
]
