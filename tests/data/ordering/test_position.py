"""Which configuration may resume from a saved position."""

import re

import pytest

from megatrain.base.errors import DataError
from megatrain.config import DataSection
from megatrain.data.ordering.position import changes_since, identity

POSITION = 5000
PHASES = [
    {"from_sample": 2000, "weights": [1.0, 2.0], "sequence_length": 16},
    {"from_sample": 9000, "weights": [1.0, 3.0]},
]
DATA = {
    "sequence_length": 32,
    "train": [{"path": "a", "weight": 3.0}, {"path": "b"}],
    "phases": PHASES,
    "quarantine": [{"path": "a", "block": 7, "from_sample": 3000}],
}


def state(hashes=("aa" * 32, "bb" * 32), seed=1, **data):
    return identity(DataSection.model_validate(DATA | data), seed, hashes)


SAVED = {"position": POSITION, **state()}


def phases(number, **changes):
    changed = [dict(phase) for phase in PHASES]
    changed[number] |= changes
    return changed


def test_nothing_changed():
    assert changes_since(SAVED, state()) == []


@pytest.mark.parametrize(
    ("mine", "note"),
    [
        (state(phases=phases(1, weights=[9.0, 1.0])), "phase 2 (from sample 9,000) changed: weights; it had not begun"),
        (
            state(phases=phases(1, from_sample=POSITION)),
            "phase 2 (from sample 9,000) changed: from_sample 9000 → 5000;",
        ),
        (state(phases=phases(1, sequence_length=8)), "phase 2 (from sample 9,000) changed: sequence_length 32 → 8;"),
        (state(phases=PHASES[:1]), "phase 2 (from sample 9,000) is gone; it had not begun at sample 5,000"),
        (state(phases=[*PHASES, {"from_sample": 10**6}]), "phase 3 (from sample 1,000,000) is new; it had not begun"),
        (
            state(quarantine=[*DATA["quarantine"], {"path": "b", "block": 1, "from_sample": POSITION}]),
            "quarantined block 1 of source 1 from sample 5,000 is new",
        ),
        (state(transform={"function": "mine:f"}), "transform was None, is mine:f from sample 5,000 on"),
        (
            state(
                hashes=("aa" * 32, "bb" * 32, "cc" * 32),
                train=[*DATA["train"], {"path": "c", "weight": 0.0}],
                phases=[PHASES[0] | {"weights": [1.0, 2.0, 0.0]}, PHASES[1] | {"weights": [1.0, 3.0, 5.0]}],
            ),
            "source 2 is new",
        ),
    ],
)
def test_what_has_not_begun_may_change_and_is_said(mine, note):
    notes = changes_since(SAVED, mine)
    assert any(note in line for line in notes), notes


@pytest.mark.parametrize(
    ("mine", "message"),
    [
        (state(seed=2), "seed was 1, is 2"),
        (state(sequence_length=64), "sequence_length was 32, is 64"),
        (state(shuffle={"mode": "full"}), "shuffle was windowed 4096 x 1, is full"),
        (state(hashes=("aa" * 32, "cc" * 32)), "source 1 was bbbbbbbbbbbb, is cccccccccccc"),
        (state(phases=phases(0, weights=[1.0, 1.0])), "phase 1 (from sample 2,000) changed: weights, but had begun"),
        (state(phases=phases(0, from_sample=2001)), "changed: from_sample 2000 → 2001, but had begun at sample 5,000"),
        (state(phases=phases(0, sequence_length=8)), "changed: sequence_length 16 → 8, but had begun"),
        (state(phases=phases(1, from_sample=4999)), "changed: from_sample 9000 → 4999, but had begun"),
        (state(phases=[]), "phase 1 (from sample 2,000) is gone, but had begun"),
        (state(train=[{"path": "a"}, {"path": "b"}]), "phase 0 (from sample 0) changed: weights, but had begun"),
        (
            state(quarantine=[]),
            "quarantined block 7 of source 0 from sample 3,000 is gone, but the run is at sample 5,0",
        ),
        (
            state(quarantine=[*DATA["quarantine"], {"path": "b", "block": 1, "from_sample": 4999}]),
            "quarantined block 1 of source 1 from sample 4,999 is new, but the run is at sample 5,000 already",
        ),
    ],
)
def test_what_samples_before_the_position_depend_on_may_not(mine, message):
    with pytest.raises(DataError, match=re.escape(message)):
        changes_since(SAVED, mine)


def test_before_the_first_sample_every_stage_may_change():
    notes = changes_since(SAVED | {"position": 0}, state(train=[{"path": "a"}, {"path": "b"}], quarantine=[]))
    assert len(notes) == 2


@pytest.mark.parametrize("position", [None, "5", -1, True])
def test_a_state_without_a_position(position):
    with pytest.raises(DataError, match="no position saved"):
        changes_since(SAVED | {"position": position}, state())


@pytest.mark.parametrize("field", ["sources", "stages", "quarantine", "transform", "position"])
@pytest.mark.parametrize("value", [5, "x", [5], [[]], [["x", "y", "z"]], {"a": 1}, 10**30, -1, float("nan")])
def test_a_position_that_someone_else_wrote(field, value):
    if (field, value) in (("position", 5), ("transform", "x")):
        return
    with pytest.raises(DataError, match="position"):
        changes_since(SAVED | {field: value}, state())


@pytest.mark.parametrize("saved", [None, 5, "x", [], {}])
def test_no_position_at_all(saved):
    with pytest.raises(DataError, match="no position saved"):
        changes_since(saved, state())
