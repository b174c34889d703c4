"""Classifiers are the same under every layout, resumed or not, and learn what transformers' do."""

from pathlib import Path

import pytest

from megatrain.run.directory import RunDir
from tests.distributed.classifiers import config_of, make_base, write_reviews
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.project import metrics

pytestmark = pytest.mark.distributed

LAYOUTS = {
    "zero3-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
    "tp2": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=false"),
    "tp2-sp": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
    "cp2": ("cluster.gpus_per_node=2", "parallel.context_parallel=2", "parallel.zero_stage=1"),
}
FAMILIES = ("llama", "bert")


@pytest.fixture
def here(here: Path) -> Path:
    if not (here / "reviews.jsonl").exists():
        write_reviews(here / "reviews.jsonl", 300, seed=1)
        write_reviews(here / "held-out.jsonl", 61, seed=2)
    return here


def base_of(here: Path, family: str) -> str:
    folder = here / f"base-{family}"
    return str(folder if folder.exists() else make_base(folder, family, here / "tokenizer"))


def reported(run: RunDir) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for line in metrics(run):
        found.setdefault(line["step"], {}).update(line)
    return found


@pytest.fixture
def plain(ranks: RankPool, here: Path, request) -> dict[int, dict[str, float]]:
    family = request.param
    run = RunDir(here / "runs" / f"plain-{family}")
    if not run.steps():
        run = start(ranks, config_of(f"plain-{family}", base_of(here, family)))
    return reported(run)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("family", "plain"), [(family, family) for family in FAMILIES], indirect=["plain"])
def test_losses_and_metrics_of_one_process(ranks: RankPool, here: Path, family, plain, layout) -> None:
    run = start(ranks, config_of(f"{layout}-{family}", base_of(here, family)), *LAYOUTS[layout])
    found = reported(run)
    assert plain.keys() == found.keys() == set(range(7))
    for step, values in plain.items():
        names = ["loss", "cross_entropy", "grad_norm"] if step else []
        names += ["validation_loss", "accuracy", "macro_f1"] if step % 2 == 0 else []
        for name in names:
            assert found[step][name] == pytest.approx(values[name], rel=1e-5, abs=1e-6), (step, name)
    assert found[6]["validation_examples"] == 61
