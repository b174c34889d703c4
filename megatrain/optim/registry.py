"""What an optimizer registers, without torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from megatrain.base.registry import Registry
from megatrain.base.section import FIXED, Section
from megatrain.base.types import Positive


class OptimizerSection(Section):
    """What every optimizer's section has."""

    name: Annotated[str, FIXED] = "adamw"  # its state is in the checkpoint
    learning_rate: Positive = 6e-4
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.1, description="applied to matrices, not to norms")
    gradient_clipping: Annotated[float, Field(ge=0)] = Field(1.0, description="maximum gradient norm; 0 turns it off")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="a layer's learning rate is multiplied by this, to the power of the layers above it; embeddings "
        "lie below all of them, the head above",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixUpdate:
    """How an optimizer updates hidden matrices (`ParameterRow.is_hidden_matrix`) that it needs as wholes.

    Attributes:
        state: names of its state tensors of them, each fp32 and of the matrix's shape.
        flops: (section, rows, columns) -> floating-point operations of the update of one whole matrix.
    """

    state: tuple[str, ...]
    flops: Callable[[Any, int, int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """An optimizer, as the planner, the trainer and checkpoints know it.

    Attributes:
        section: its `optimizer:` section.
        optimizer: "package.module:Class" of a torch.optim.Optimizer. It is given parameter groups, each with `params`,
            `weight_decay` and `lr_scale`, by which the schedule's rate is multiplied, and lr=0.0.
        arguments: the section -> its further keyword arguments.
        state: names of its state tensors, each fp32 and of a parameter's shape. Other state tensors are refused where a
            run starts, for no checkpoint could hold them.
        matrices: where it updates hidden matrices in a way of their own, as wholes. They are in groups with
            `hidden_matrix` True then, the others in groups with False, and the optimizer is given `exchange`, a
            `parallel.matrix_exchange.MatrixExchange`, for ranks hold pieces of matrices. None: all weights are alike.
        factored: where it keeps, of matrices, a number for each row and for each column instead of `state`: their
            names. They are means over whole matrices, the same on every rank. Matrices are in groups with `factored`
            True then, the others in groups with False, and the optimizer is given `exchange`, a
            `parallel.whole_sums.WholeTensors`.
        start_state: of `state`, what holds the weights that a fine-tuning starts from; "": nothing does.
        has_mup_rates: whether the learning rates of model/mup.py, which are Adam's, are its as well.
    """

    section: type[OptimizerSection]
    optimizer: str
    arguments: Callable[[Any], dict[str, Any]]
    state: tuple[str, ...]
    matrices: MatrixUpdate | None = None
    factored: tuple[str, str] | None = None
    start_state: str = ""
    has_mup_rates: bool = False

    def is_factored(self, shape: Sequence[int]) -> bool:
        return self.factored is not None and len(shape) == 2

    def state_bytes(self, shape: Sequence[int], *, hidden_matrix: bool) -> int:
        """Per parameter of a weight, without the fp32 weight and without factors."""
        if self.is_factored(shape):
            return 0
        return 4 * len(self.matrices.state if hidden_matrix and self.matrices else self.state)


OPTIMIZERS: Registry[OptimizerSpec] = Registry("optimizer")
