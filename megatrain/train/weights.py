"""The initial weights of a run that starts from its seed."""

from collections.abc import Callable, Mapping

from megatrain.checkpoint.local_shards import LocalShards
from megatrain.checkpoint.state import WEIGHT
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
    draw_weights(engine.sharded_state(weights_only=True), model, seed, beat)
    engine.after_load(optimizer_step=0)


def draw_weights(
    tensors: Mapping[str, LocalShards],
    model: ModelSection,
    seed: int,
    beat: Callable[[str], None] = lambda activity: None,
) -> None:
    """Write the initial values of what this rank owns of some weights."""
    for key, fragment in tensors.items():
        name = key.removeprefix(f"{WEIGHT}.")
        beat(f"drawing {name}")
        write_initial_weight(row_of(model, name), fragment.parts(), seed)
