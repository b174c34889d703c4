"""What a task is. It knows no other ranks, no layouts and no DeepSpeed."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from torch import Tensor

from megatrain.base.progress import Progress
from megatrain.data.loading.loader import StepBatches
from megatrain.data.loading.tensor_batch import TensorBatch

B = TypeVar("B", bound=TensorBatch)
B_co = TypeVar("B_co", bound=TensorBatch, covariant=True)
B_contra = TypeVar("B_contra", bound=TensorBatch, contravariant=True)
Model = Callable[..., Any]  # the model under its layout; called like the family's nn.Module


class LossSums(NamedTuple):
    """Of one micro-batch, as this rank sees it.

    Attributes:
        loss: fp32 []. The gradient is that of its sum over the global batch, divided by the batch's targets.
        extras: fp32 [] by the name of a registered metric, detached, the same names for every micro-batch; reported
            divided by the targets, as the loss is.
    """

    loss: Tensor
    extras: Mapping[str, Tensor] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataShare:
    """Which part of a global batch this rank reads, and where it is to lie."""

    rank: int  # among the data-parallel ones
    size: int
    pin_memory: bool = False  # page-locked, for a GPU to copy while the CPU goes on


class Loader(Protocol[B_co]):
    """What feeds training. `state_dict` is the position of the next batch, the same on every rank; loading it returns
    what the run changes from there on, a line each. `wait_seconds` is how long the last `next` waited."""

    wait_seconds: float

    def next(self) -> StepBatches[B_co]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> list[str]: ...
    def close(self) -> None: ...


class Objective(Protocol[B_contra]):
    """What is computed of a batch."""

    def loss(self, model: Model, batch: B_contra) -> LossSums:
        """Sums over this rank's part of a batch: its rows, and under context parallelism its part of each sequence."""
        ...

    def evaluation_sums(self, model: Model, batch: B_contra) -> dict[str, Tensor]:
        """Numbers [] that are summed over an evaluation's batches and ranks, the same names for every batch. What is
        [n, K] is gathered instead: n records of K numbers each, of this batch on this rank."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where training begins, for a task that has something to compute before it.

    Attributes:
        resumed: from a checkpoint of this run; else the weights are those that the run starts from.
        folder: the run's.
        is_main: of all ranks the one that writes files.
        compute: of a function of (model, batch) and a batch, its result without gradients. Collective: every rank calls
            it as often.
        sum_over_data: a tensor summed over the data-parallel ranks, on this rank's device. Collective.
    """

    resumed: bool
    folder: Path
    share: DataShare
    is_main: bool
    compute: Callable[[Callable[[Model, Any], Tensor], Any], Tensor]
    sum_over_data: Callable[[Tensor], Tensor]


class Task(ABC, Generic[B]):
    """Batches, and what is computed of them. Constructed with the resolved run, before the ranks know each other: what
    takes long, such as reading examples, belongs there."""

    @abstractmethod
    def loader(self, share: DataShare) -> Loader[B]:
        """Raises DataError or ConfigError, the same on every rank, where the data cannot feed this run."""

    def validation(self, share: DataShare) -> Iterable[B] | Mapping[str, Iterable[B]] | None:
        """This rank's share of an evaluation, the same at each pass, as many batches as on any other rank; of several
        sets by name; None: there is nothing to evaluate on."""
        return None

    def validation_sets(self, share: DataShare) -> dict[str, Iterable[B]]:
        """`validation` by name; what has none is ""."""
        found = self.validation(share)
        if isinstance(found, Mapping):
            return dict(found)
        return {} if found is None else {"": found}

    def begin(self, start: Start) -> None:
        """Called on every rank once the weights are there, and the loader is where training starts."""
        return

    def before_step(self) -> None:
        """Called on every rank once the loader has given a global batch, before the loss of any part of it."""
        return

    @abstractmethod
    def loss(self, model: Model, batch: B) -> LossSums:
        """See `Objective`."""

    @abstractmethod
    def evaluation_sums(self, model: Model, batch: B) -> dict[str, Tensor]:
        """See `Objective`."""

    @abstractmethod
    def evaluation_metrics(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Sums over all batches and ranks, or all records as a fp64 tensor on the CPU -> values of registered metrics.
        The order of records depends on the layout."""

    def lines(self, progress: Progress) -> Iterable[str]:
        """What there is to say before the first step, a line each."""
        return ()
