"""A row of the parameter table: one weight, or the same weight of many layers; without torch."""

from dataclasses import KW_ONLY, dataclass, replace
from enum import Enum
from math import prod
from typing import Literal


class Kind(Enum):
    """What a weight does. Optimizers, decay, and learning rates may differ by it."""

    EMBEDDING = "embedding"
    HEAD = "head"
    ATTENTION = "attention"
    MLP = "mlp"
    NORM = "norm"
    BIAS = "bias"


@dataclass(frozen=True, slots=True)
class Normal:
    """Drawn from a normal distribution around zero."""

    std: float


@dataclass(frozen=True, slots=True)
class Uniform:
    """Drawn from −bound to bound, every value as likely."""

    bound: float


@dataclass(frozen=True, slots=True)
class Constant:
    value: float


EMBEDDING = "embedding.weight"  # of the tokens, in every family
CLASS_HEAD = ("head.weight", "head.bias")  # of a classifier
ONES, ZEROS = Constant(1.0), Constant(0.0)


@dataclass(frozen=True, slots=True)
class HuggingFaceTensor:
    """Where a weight is in `transformers`: alone, or one of the equal parts of a fused tensor.

    Attributes:
        name: of the whole tensor there; "{}" stands for the number of a layer.
        transposed: a matrix is [in, out] there, and its parts are blocks of columns: as `Conv1D` of GPT-2.
        part: which of the parts it is, from 0, along the output dimension.
        parts: how many rows of the table, of one shape, the tensor is made of.
        rows: the first of our rows, that it has, where ours are padded to more; None: all.
        factor: ours times this is theirs, where our model multiplies by it and theirs does not.
    """

    name: str
    _: KW_ONLY
    transposed: bool = False
    part: int = 0
    parts: int = 1
    rows: int | None = None
    factor: float = 1.0

    def whole(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the tensor there, from that of our weight."""
        fused = ((self.rows or shape[0]) * self.parts, *shape[1:])
        return fused[::-1] if self.transposed else fused


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterRow:
    """One weight, or the same weight of many layers.

    Attributes:
        name: as `named_parameters()` gives it; "{}" stands for the number of a layer.
        shape: of the whole weight, [out, in] for a matrix.
        split: the dimension that tensor-parallel ranks divide; None: each holds the whole. A bias that is added to a
            row-parallel product is whole, and its module has to add it after the reduction.
        init: how its values begin.
        decay: whether weight decay applies.
        lr_scale: of the schedule's rate, its own; decay stays that of the schedule's.
        partial_gradient: of a whole weight inside a tensor-parallel region: each rank applies it to its own heads or
            channels only, so that its gradient is a part of a sum over the ranks.
        huggingface: its name in `transformers`, with the same "{}", or what part of which tensor it is there, if that
            is not the same tensor; None where it has none.
        layers: the layers that have it; None for a weight outside of them.
        trained: whether updates change it; else it stays as it was when training began.
        of_adapter: it belongs to an adapter, and is no weight of the family's.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    init: Normal | Uniform | Constant
    split: Literal[0, 1] | None = None
    decay: bool = True
    lr_scale: float = 1.0
    partial_gradient: bool = False
    huggingface: str | HuggingFaceTensor | None = None
    layers: range | None = None
    trained: bool = True
    of_adapter: bool = False

    @property
    def count(self) -> int:
        """How many weights the row stands for."""
        return 1 if self.layers is None else len(self.layers)

    @property
    def elements(self) -> int:
        """Of one of them."""
        return prod(self.shape)

    @property
    def weight_decay_scale(self) -> float:
        """What the optimizer's weight decay is multiplied by, whose effect is then that of the schedule's own rate."""
        return self.decay / self.lr_scale

    @property
    def is_hidden_matrix(self) -> bool:
        """A matrix of attention or an MLP inside a layer: what optimizers of matrices, such as Muon, are for."""
        return len(self.shape) == 2 and self.kind in (Kind.ATTENTION, Kind.MLP) and self.layers is not None

    @property
    def theirs(self) -> HuggingFaceTensor | None:
        """Where it is in `transformers`."""
        return HuggingFaceTensor(self.huggingface) if isinstance(self.huggingface, str) else self.huggingface

    def of_layer(self, layer: int | None) -> "ParameterRow":
        if layer is None:
            return self
        theirs = self.huggingface
        if isinstance(theirs, HuggingFaceTensor):
            theirs = replace(theirs, name=theirs.name.format(layer))
        elif theirs is not None:
            theirs = theirs.format(layer)
        return replace(self, name=self.name.format(layer), huggingface=theirs, layers=range(layer, layer + 1))

    def local_shape(self, tensor_parallel: int) -> tuple[float, ...]:
        """On one tensor-parallel rank."""
        return tuple(side / (tensor_parallel if dim == self.split else 1) for dim, side in enumerate(self.shape))

    def local_elements(self, tensor_parallel: int) -> float:
        """Of one of them, on one tensor-parallel rank."""
        return self.elements / (1 if self.split is None else tensor_parallel)
