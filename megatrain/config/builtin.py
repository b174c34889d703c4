"""Everything that registers itself with megatrain; importing this module is what makes it known."""

from megatrain.model import families
from megatrain.optim import adamw
from megatrain.schedule import constant, cosine, linear
from megatrain.tasks import pretrain_lm, sft

__all__ = ["adamw", "constant", "cosine", "families", "linear", "pretrain_lm", "sft"]
