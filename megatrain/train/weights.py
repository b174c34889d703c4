"""The initial weights of a run that starts from its seed."""

from collections.abc import Callable

from megatrain.checkpoint.deepspeed_state import WEIGHT
from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.initialization import write_initial_weight
from megatrain.train.engine import Engine


def initialize_weights(
    engine: Engine, model: ModelSection, seed: int, beat: Callable[[str], None] = lambda activity: None
) -> None:
    """Write the fp32 weights that this rank owns, and bring those that the model computes with up to date. Collective.

    Each rank draws what it owns and no more: its flat part under ZeRO, its slice under tensor parallelism.

    Args:
        beat: called with each weight that is about to be drawn.
    """
    for key, fragment in engine.sharded_state(weights_only=True).items():
        name = key.removeprefix(f"{WEIGHT}.")
        beat(f"drawing {name}")
        write_initial_weight(row_of(model, name), fragment.parts(), seed)
    engine.after_load(optimizer_step=0)
