"""`evaluate` says the same on any layout of ranks; several classifiers answer as one."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from launcher.cli import app
from megatrain.base.errors import ConfigError
from megatrain.evaluation.checkpoint import evaluate
from megatrain.evaluation.on_ranks import Request, check_request
from megatrain.evaluation.predictions import predictions
from megatrain.evaluation.ranks import OnMesh
from megatrain.parallel.mesh import Mesh
from megatrain.run.directory import RunDir
from megatrain.topology import Topology
from tests.distributed.classifiers import write_reviews
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, plainly
from tests.distributed.test_evaluate import PRETRAIN, SFT

pytestmark = pytest.mark.distributed
LAYOUTS = {"dp2": (1, 1), "tp2": (2, 1), "cp2": (1, 2)}


@pytest.fixture
def classifier(ranks: RankPool, here: Path) -> RunDir:
    if not (here / "reviews.jsonl").exists():
        write_reviews(here / "reviews.jsonl", 300, seed=1)
        write_reviews(here / "held-out.jsonl", 61, seed=2)
    plainly(ranks, here, "llama")
    return RunDir(here / "runs" / "plain-llama")


def on_ranks(project: str, run: str, layout: tuple[int, int], others: list[str], expected: dict) -> None:
    tensor, context = layout
    topology = Topology(world_size=dist.get_world_size(), tensor_parallel=tensor, context_parallel=context)
    with contextlib.chdir(project):
        ranks = OnMesh(Mesh(topology), torch.device("cpu"))
        found = evaluate(Path(run), others=[Path(other) for other in others], ranks=ranks)
    assert found.metrics.keys() == expected["metrics"].keys()
    for name, value in expected["metrics"].items():
        assert abs(found.metrics[name] - value) <= 1e-5 * max(1.0, abs(value)), name
    assert sorted(example.ids for example in found.examples) == expected["examples"]
    if found.classes is not None:
        assert [list(row) for row in found.classes.confusion] == expected["confusion"]


def as_alone(ranks: RankPool, here: Path, run: RunDir, layout: tuple[int, int], others: list[str] | None = None):
    alone = evaluate(run.path, others=[Path(other) for other in others or []])
    expected = {
        "metrics": alone.metrics,
        "examples": sorted(example.ids for example in alone.examples),
        "confusion": alone.classes and [list(row) for row in alone.classes.confusion],
    }
    ranks.run(2, on_ranks, str(here), str(run.path), layout, others or [], expected)
    return alone


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_classifier(ranks: RankPool, here: Path, classifier, layout) -> None:
    assert as_alone(ranks, here, classifier, LAYOUTS[layout]).examples


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_language_model(ranks: RankPool, here: Path, layout) -> None:
    text = PRETRAIN.replace("PRECISION", "fp32").replace("to-evaluate", "to-evaluate-fp32")
    run = RunDir(here / "runs/to-evaluate-fp32")
    as_alone(ranks, here, run if run.steps() else start(ranks, text), LAYOUTS[layout])


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS)
def test_generated_responses(ranks: RankPool, here: Path, layout) -> None:
    name = "to-answer"
    text = SFT.replace("BASE", base_of(here, "llama")).replace("sft-to-evaluate", name)
    text += "evaluation: {generate: {examples: 5, max_new_tokens: 6, metrics: [exact_match, f1]}}\n"
    run = RunDir(here / "runs" / name)
    as_alone(ranks, here, run if run.steps() else start(ranks, text), LAYOUTS[layout])


def test_an_ensemble(ranks: RankPool, here: Path, classifier) -> None:
    first, second = classifier.step(classifier.steps()[0]), classifier.step(classifier.steps()[-1])
    options = {"max_new_tokens": 1, "batch_size": 1}
    file = here / "held-out.jsonl"
    alone = [[said["probabilities"] for _, said in predictions(one, file, **options)] for one in (first, second)]
    together = [said["probabilities"] for _, said in predictions(second, file, others=[first], **options)]
    for one, other, both in zip(*alone, together, strict=True):
        assert both == {name: pytest.approx((one[name] + other[name]) / 2, abs=2e-6) for name in one}
    found = evaluate(second, others=[first])
    losses = [-float(torch.tensor(example.probabilities[0, example.there[0]]).log()) for example in found.examples]
    assert found.metrics["validation_loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert found.others == (first,)
    as_alone(ranks, here, classifier, LAYOUTS["tp2"], [str(first)])


def test_what_cannot_be_shared_or_averaged(ranks: RankPool, here: Path, classifier, tmp_path) -> None:
    request = {"path": str(classifier.path)}
    with pytest.raises(ConfigError, match=r"--nproc 3: must be a multiple of .* = 2 x 1"):
        check_request(Request(**request, tensor_parallel=2), 3)
    with pytest.raises(ConfigError, match=r"--tensor-parallel 3: .*does not divide"):
        check_request(Request(**request, tensor_parallel=3), 3)
    with pytest.raises(ConfigError, match=r"--context-parallel 4: .*does not divide"):
        check_request(Request(**request, context_parallel=4), 4)
    from tests.trained import make_trained_run

    other = make_trained_run(tmp_path)
    with pytest.raises(ConfigError, match=r"--with .*: task\.name: is 'pretrain_lm'"):
        evaluate(classifier.path, others=[other.path])
    with pytest.raises(ConfigError, match="an ensemble averages the probabilities of classifiers"):
        evaluate(other.path, others=[classifier.path])


@pytest.mark.full
def test_the_command(classifier: RunDir, here: Path, capsys) -> None:
    app(["evaluate", str(classifier.path), "--json"], standalone_mode=False)
    alone = json.loads(capsys.readouterr().out)
    command = [sys.executable, "-m", "launcher.cli", "evaluate", str(classifier.path), "--json", "--nproc", "2"]
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout)["metrics"] == {name: pytest.approx(v) for name, v in alone["metrics"].items()}
