"""A checkpoint of any layout is read by any other: bit for bit, and the next losses agree.

`make test` runs pairs in which every two values of two settings meet, `make test-all` the lists below as well.
"""

import math
from pathlib import Path

import pytest
import torch

from megatrain.checkpoint.read import read_tensors
from megatrain.run.directory import RunDir
from tests.covering import covering_array
from tests.distributed.layouts import Layout, Run, snapshot_of, store_of
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

SAVED_AT, UNTIL = 3, 6

ONE = {"zero": (1, 0, 2, 3), "tensor": (2, 1), "data": (2, 1), "context": (1, 2), "sequence_parallel": (False, True)}
SETTINGS = {
    **{f"writer_{name}": values for name, values in ONE.items()},
    **{f"reader_{name}": values for name, values in ONE.items()},
    "precision": ("fp32", "bf16"),
    "tied": (False, True),
}


def layout_of(role: str, case: dict) -> Layout:
    return Layout(**{name: case[f"{role}_{name}"] for name in ONE}, precision=case["precision"], tied=case["tied"])


def legal(case: dict) -> bool:
    """At most four ranks; sequence parallelism needs tensor parallelism."""
    layouts = [layout_of(role, case) for role in ("writer", "reader")]
    return all(layout.world_size <= 4 and layout.tensor > int(layout.sequence_parallel) for layout in layouts)


EVERY_PAIR = [(layout_of("writer", case), layout_of("reader", case)) for case in covering_array(SETTINGS, legal)]

LAYOUTS = [Layout(zero, tensor, data) for tensor in (1, 2) for data in (1, 2) for zero in (0, 1, 2, 3)]

# Each layout is read by the one five places on and by the one seven places on, so that each is a reader twice too, and
# stage, tensor and data degree all change in some pair.
PAIRS = [(i, (i + shift) % len(LAYOUTS)) for i in range(len(LAYOUTS)) for shift in (5, 7)]

OTHER_PAIRS = [
    (Layout(1, 2, 2, "bf16", sequence_parallel=True), Layout(3, 1, 2, "bf16")),
    (Layout(3, 2, 2, "bf16"), Layout(0, 2, 1, "bf16")),
    (Layout(0, 1, 1, "bf16"), Layout(2, 2, 2, "bf16")),
    (Layout(2, 1, 2, "bf16"), Layout(1, 1, 1, "bf16")),
    (Layout(3, 1, 2, tied=True), Layout(1, 2, 1, tied=True)),
    (Layout(1, 1, 2, context=2), Layout(3, 2, 1)),
    (Layout(0, 2, 2), Layout(2, 2, 1, context=2)),
]

FULL = [pair for pair in [(LAYOUTS[i], LAYOUTS[j]) for i, j in PAIRS] + OTHER_PAIRS if pair not in EVERY_PAIR]


def save_and_go_on(layout: Layout, folder: str) -> list[tuple[float, float]]:
    run = Run(layout)
    run.train(0, SAVED_AT)
    store_of(run, folder).save(snapshot_of(run, SAVED_AT))
    return run.train(SAVED_AT, UNTIL)


def load_and_go_on(layout: Layout, folder: str, again: str) -> list[tuple[float, float]]:
    run = Run(layout)
    store_of(run, folder).load(RunDir(folder).step(SAVED_AT), run.engine.sharded_state())
    run.engine.after_load(optimizer_step=SAVED_AT)
    store_of(run, again).save(snapshot_of(run, SAVED_AT))
    return run.train(SAVED_AT, UNTIL)


@pytest.fixture(scope="module")
def saved(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, tuple[str, list]]:
    """Each layout's checkpoint, made when first asked for, and the losses of the run that resumed."""
    made: dict[Layout, tuple[str, list]] = {}

    class Saved(dict):
        def __missing__(self, layout: Layout) -> tuple[str, list]:
            folder = str(tmp_path_factory.mktemp(str(layout)))
            made[layout] = self[layout] = (folder, ranks.run(layout.world_size, save_and_go_on, layout, folder)[0])
            return made[layout]

    return Saved()


@pytest.mark.parametrize(
    ("writer", "reader"), [*EVERY_PAIR, *(pytest.param(*pair, marks=pytest.mark.full) for pair in FULL)], ids=str
)
def test_any_layout_reads_any_other(
    ranks: RankPool, saved: dict, writer: Layout, reader: Layout, tmp_path: Path
) -> None:
    folder, expected = saved[writer]
    got = ranks.run(reader.world_size, load_and_go_on, reader, folder, str(tmp_path))[0]

    before, after = (read_tensors(RunDir(where).step(SAVED_AT)) for where in (folder, tmp_path))
    assert before.keys() == after.keys()
    assert {name.split(".")[0] for name in before} == {"weight", "exp_avg", "exp_avg_sq"}
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    tolerance = 1e-5 if writer.precision == "fp32" else 1e-2
    for step, ((loss, norm), (want_loss, want_norm)) in enumerate(zip(got, expected, strict=True)):
        assert math.isclose(loss, want_loss, rel_tol=tolerance), f"loss of step {SAVED_AT + step}"
        assert math.isclose(norm, want_norm, rel_tol=tolerance), f"gradient norm of step {SAVED_AT + step}"


def test_the_pairs_cover_every_layout_as_writer_and_reader() -> None:
    assert {i for i, _ in PAIRS} == {j for _, j in PAIRS} == set(range(len(LAYOUTS)))
    changes = {(LAYOUTS[i].zero != LAYOUTS[j].zero, LAYOUTS[i].tensor != LAYOUTS[j].tensor) for i, j in PAIRS}
    assert (True, True) in changes
