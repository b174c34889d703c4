"""What a run will read of each source, phase by phase, and whether that is more often than it may. Without torch."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatrain.base.errors import DataError
from megatrain.base.progress import Progress
from megatrain.config import PretrainConfig
from megatrain.data.folder.manifest import Manifest, read_manifest
from megatrain.data.ordering.curriculum import curriculum, samples_per_phase
from megatrain.data.ordering.order import Order, SourceSize

WORTHWHILE_EPOCHS = 4.0  # reading data more often than this pays less and less (arXiv 2305.16264)


@dataclass(frozen=True, slots=True)
class Part:
    """What one phase reads of one source."""

    phase: int
    first_sample: int
    source: int
    path: str
    samples: int
    tokens: int
    epochs: float


@dataclass(frozen=True, slots=True)
class Total:
    """What the whole run reads of one source."""

    source: int
    path: str
    tokens_held: int
    samples_held: int
    samples: int
    tokens: int
    epochs: float


@dataclass(frozen=True, slots=True)
class DataPlan:
    parts: tuple[Part, ...]
    totals: tuple[Total, ...]
    max_epochs: float

    def refusals(self) -> Iterator[str]:
        """A sentence for each source that is read more often than `data.max_epochs`."""
        for total in self.totals:
            if total.epochs > self.max_epochs:
                yield (
                    f"data.train.{total.source}: {total.path}: the run reads it {total.epochs:.1f} times, more than "
                    f"data.max_epochs ({self.max_epochs:g}). Give more data, a smaller weight or a shorter "
                    "run, or raise the limit."
                )

    def warnings(self) -> Iterator[str]:
        for total in self.totals:
            if WORTHWHILE_EPOCHS < total.epochs <= self.max_epochs:
                yield (
                    f"data.train.{total.source}: {total.path}: the run reads it {total.epochs:.1f} times. "
                    "More data, a smaller weight or a shorter run would serve it better."
                )

    def to_json(self) -> dict[str, Any]:
        return {
            "phases": [asdict(part) for part in self.parts],
            "sources": [asdict(total) for total in self.totals],
            "tokens": sum(total.tokens for total in self.totals),
            "max_epochs": self.max_epochs,
            "refused": [*self.refusals()],
        }

    def as_text(self) -> str:
        head = ("phase", "from sample", "source", "samples", "tokens", "epochs")
        rows = [
            (str(p.phase), f"{p.first_sample:,}", p.path, f"{p.samples:,}", f"{p.tokens:,}", f"{p.epochs:.2f}")
            for p in self.parts
        ]
        rows += [("all", "", t.path, f"{t.samples:,}", f"{t.tokens:,}", f"{t.epochs:.2f}") for t in self.totals]
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if number in (0, 2) else cell.rjust(width)
                for number, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (head, *rows)
        )


def plan_data(
    config: PretrainConfig, manifests: Sequence[Manifest] | None = None, progress: Progress | None = None
) -> DataPlan:
    """Count, exactly, what the run's order gives each source in each phase.

    Args:
        manifests: of the training sources, if they have been read already.
        progress: where the run stands; default: at its start.

    Raises:
        DataError: a source is missing, unsuitable or empty, or its weight is too small to be read at all.
    """
    data, length = config.data, config.sequence_length
    if data.sequential:
        raise DataError("data.train: webdataset sources are read as they come: what they hold is not known beforehand.")
    manifests = manifests or [read_manifest(source.path) for source in data.train]
    held = [manifest.rows(length) for manifest in manifests]
    for given, manifest, rows in zip(data.train, manifests, held, strict=True):
        if not rows:
            raise DataError(f"{given.path}: holds {manifest.tokens:,} tokens: not one sequence of {length}.")
    sizes = [SourceSize(rows, manifest.rows_per_block(length)) for manifest, rows in zip(manifests, held, strict=True)]
    phases = curriculum(data)
    order = Order(sizes, [phase.order_phase() for phase in phases], config.run.seed)
    parts: list[Part] = []
    progress = progress or Progress()
    each = samples_per_phase(phases, progress.samples + config.samples_left(progress))
    for number, (phase, samples) in enumerate(zip(phases, each, strict=True)):
        if not samples:
            continue  # the run ends before
        counts = (order.counts(phase.first + samples) - order.counts(phase.first)).tolist()
        for source, count in enumerate(counts):
            path = data.train[source].path
            parts.append(Part(number, phase.first, source, path, count, count * length, count / held[source]))
    totals = []
    for source, (manifest, rows) in enumerate(zip(manifests, held, strict=True)):
        count = sum(part.samples for part in parts if part.source == source)
        path = data.train[source].path
        totals.append(Total(source, path, manifest.tokens, rows, count, count * length, count / rows))
    return DataPlan(tuple(parts), tuple(totals), data.max_epochs)
