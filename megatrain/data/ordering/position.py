"""What a saved position in the data means, and which other configuration may resume from it.

The state of a loader is the position and the name of everything that decides which samples came before it: at most
4 KiB, the same on every rank. What has not begun yet may change: phases and quarantined blocks of later samples, and
sources that no phase has read from.
"""

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import DataError
from megatrain.base.files import parse_model
from megatrain.config import DataSection
from megatrain.data.folder.manifest import SHORT_HASH_DIGITS
from megatrain.data.ordering.curriculum import CurriculumPhase, curriculum
from megatrain.data.ordering.order import ORDER_VERSION

_MOST = 10**15  # samples
_Number = Annotated[int, Field(ge=0, le=_MOST)]


class _Saved(BaseModel):
    """What `identity` gives, as it comes back from a file."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)
    sources: list[str]
    stages: list[tuple[_Number, _Number, str]]  # (first sample, sequence length, mixing)
    quarantine: list[tuple[_Number, _Number, _Number]]  # (source, block, from sample)
    transform: str | None


def identity(data: DataSection, seed: int, manifest_hashes: Sequence[str]) -> dict[str, Any]:
    """All that decides which sample is at which position, JSON-able. `manifest_hashes` has one for each source."""
    first_source = {source.path.rstrip("/"): number for number, source in reversed(list(enumerate(data.train)))}
    shuffle = data.shuffle
    windowed = shuffle.mode == "windowed"
    return {
        "order_version": ORDER_VERSION,
        "seed": seed,
        "sequence_length": data.sequence_length,
        "shuffle": f"windowed {shuffle.streams} x {shuffle.window_blocks}" if windowed else shuffle.mode,
        "sources": [manifest_hash[:SHORT_HASH_DIGITS] for manifest_hash in manifest_hashes],
        "stages": [[phase.first, phase.sequence_length, _mixing(phase)] for phase in curriculum(data)],
        "quarantine": [[first_source[bad.path.rstrip("/")], bad.block, bad.from_sample] for bad in data.quarantine],
        "transform": data.transform.function if data.transform else None,
    }


def changes_since(saved: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """What a run that resumes from a saved state changes, a line each.

    Raises:
        DataError: something that samples before the position depend on has changed; says what.
    """
    position = saved.get("position") if isinstance(saved, dict) else None
    if type(position) is not int or not 0 <= position <= _MOST:
        raise _refused(["no position saved"])
    wrong = [
        f"{name} was {saved.get(name)}, is {mine[name]}"
        for name in ("order_version", "seed", "sequence_length", "shuffle")
        if saved.get(name) != mine[name]
    ]
    if wrong:  # the rest may have another form
        raise _refused(wrong)
    notes: list[str] = []
    before = parse_model(_Saved, saved, "the position that the checkpoint holds", DataError)
    _compare_sources(before.sources, mine["sources"], wrong, notes)
    _compare_phases([list(phase) for phase in before.stages], mine["stages"], position, wrong, notes)
    _compare_quarantine([list(bad) for bad in before.quarantine], mine["quarantine"], position, wrong, notes)
    if wrong:
        raise _refused(wrong)
    if before.transform != mine["transform"]:
        notes.append(f"data: transform was {before.transform}, is {mine['transform']} from sample {position:,} on")
    return notes


def _compare_sources(saved: list[str], mine: list[str], wrong: list[str], notes: list[str]) -> None:
    for number, before in enumerate(saved):
        now = mine[number] if number < len(mine) else "none"
        if now != before:
            wrong.append(f"source {number} was {before}, is {now}")
    for number in range(len(saved), len(mine)):
        notes.append(f"data: source {number} is new")


def _compare_phases(saved: list[Any], mine: list[Any], position: int, wrong: list[str], notes: list[str]) -> None:
    begun = sum(phase[0] < position for phase in saved)
    for number in range(max(len(saved), len(mine))):
        before, now = (phases[number] if number < len(phases) else None for phases in (saved, mine))
        if before == now:
            continue
        text = f"phase {number} {_difference(before, now)}"
        if number < begun or (now and now[0] < position):
            wrong.append(f"{text}, but had begun at sample {position:,}")
        else:
            notes.append(f"data: {text}; it had not begun at sample {position:,}")


def _difference(before: Any, now: Any) -> str:
    if before is None:
        return f"(from sample {now[0]:,}) is new"
    if now is None:
        return f"(from sample {before[0]:,}) is gone"
    names = ("from_sample", "sequence_length", "weights")
    changed = [
        name if name == "weights" else f"{name} {old} → {new}"
        for name, old, new in zip(names, before, now, strict=True)
        if old != new
    ]
    return f"(from sample {before[0]:,}) changed: {', '.join(changed)}"


def _compare_quarantine(saved: list[Any], mine: list[Any], position: int, wrong: list[str], notes: list[str]) -> None:
    for entry in [*saved, *mine]:
        if entry in saved and entry in mine:
            continue
        source, block, first = entry
        change = "is new" if entry in mine else "is gone"
        text = f"quarantined block {block} of source {source} from sample {first:,} {change}"
        if first < position:
            wrong.append(f"{text}, but the run is at sample {position:,} already")
        else:
            notes.append(f"data: {text}")


def _mixing(phase: CurriculumPhase) -> str:
    """Names a phase's quotas. Sources without a share at the end do not count: they may be added later."""
    shares = list(phase.order_phase().quotas)
    while not shares[-1]:
        shares.pop()
    return hashlib.sha256(",".join(map(str, shares)).encode()).hexdigest()[:8]


def _refused(wrong: list[str]) -> DataError:
    return DataError(
        f"the data of this run is not what its checkpoint was trained on: {'; '.join(wrong)}. "
        "The position would mean other samples. Restore the data and settings, or start a new run."
    )
