"""Responses generated in the loop are the same under every layout, word for word, and so are their measures; those of
the exported model in transformers are, too."""

import json
from pathlib import Path

import pytest

from megatrain.data.text.tokenizer import Tokenizer
from megatrain.evaluation.checkpoint import evaluate
from megatrain.evaluation.text_metrics import text_metrics
from megatrain.huggingface.export import export
from megatrain.run.directory import RunDir
from tests.distributed.classifiers import make_base
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import LAYOUTS, reported

pytestmark = pytest.mark.distributed

NAMES = ["generated_exact_match", "generated_f1", "bleu", "chrf", "rougeL", "validation_loss"]
SFT = """
run: {name: NAME}
finetune: {base: base-spoken, train: [spoken.jsonl], validation: [spoken.jsonl], sequence_length: 48}
training: {steps: 12, global_batch_size: 4, precision: fp32}
optimizer: {learning_rate: 1.0e-2}
schedule: {name: constant, warmup_steps: 0}
evaluation:
  interval_steps: 6
  generate: {metrics: [exact_match, f1, bleu, chrf, rouge], examples: 5, max_new_tokens: 8}
parallel: {compile: false}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 1}
"""


@pytest.fixture
def plain(ranks: RankPool, here: Path) -> RunDir:
    run = RunDir(here / "runs" / "responses-plain")
    if run.steps():
        return run
    rows = [{"prompt": f"the {word} of", "response": f" {word} and to {word} in the"} for word in ("the", "in", "of")]
    rows += [{"prompt": "to in the and", "response": " of the in"}, {"prompt": "x", "response": " and of"}] * 8
    (here / "spoken.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    make_base(here / "base-spoken", "llama", here / "tokenizer")
    return start(ranks, SFT.replace("NAME", "responses-plain"))


def responses(run: RunDir) -> dict[str, list[dict[str, str]]]:
    return {
        path.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(run.generated.iterdir())
    }


def run_under(ranks: RankPool, here: Path, layout: str) -> RunDir:
    """Which several tests look at."""
    run = RunDir(here / "runs" / f"responses-{layout}")
    return run if run.steps() else start(ranks, SFT.replace("NAME", run.path.name), *LAYOUTS[layout])


@pytest.mark.parametrize("layout", ["zero3-dp2", "tp2-sp", pytest.param("cp2", marks=pytest.mark.full)])
def test_responses_and_measures_of_one_process(ranks: RankPool, here: Path, plain, layout) -> None:
    run = run_under(ranks, here, layout)
    assert responses(run) == responses(plain)
    assert list(responses(run)) == ["step-00000000.jsonl", "step-00000006.jsonl", "step-00000012.jsonl"]
    for step in (0, 6, 12):
        for name in NAMES:
            assert reported(run)[step][name] == pytest.approx(reported(plain)[step][name], rel=1e-5), (step, name)


def test_it_learns_to_respond(plain) -> None:
    found = reported(plain)
    assert found[12]["bleu"] > found[0]["bleu"]
    assert len({row["said"] for row in responses(plain)["step-00000012.jsonl"]}) > 1


def test_evaluate_says_what_the_loop_did(plain) -> None:
    found, last = evaluate(plain.path).metrics, reported(plain)[12]
    for name in NAMES:
        assert found[name] == pytest.approx(last[name], rel=1e-6), name


@pytest.mark.parametrize("layout", ["zero3-dp2", "tp2-sp"])
def test_transformers_responds_the_same_sentence_by_sentence(
    ranks: RankPool, here: Path, tmp_path: Path, plain, layout
) -> None:
    """One process, with what a run of several ranks exports."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = run_under(ranks, here, layout)
    folder = export(run.path, tmp_path / "out", dtype="float32").folder
    model, theirs = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    rows, texts = responses(run)["step-00000012.jsonl"], []
    for row in rows:
        ids = theirs(row["prompt"], return_tensors="pt").input_ids
        made = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :].tolist()
        made = made[: made.index(tokenizer.eos_id)] if tokenizer.eos_id in made else made
        texts.append(theirs.decode(made))
        assert texts[-1] == row["said"]
    there = [row["there"] for row in rows]
    assert reported(run)[12]["bleu"] == pytest.approx(text_metrics(texts, there, ["bleu"])["bleu"], rel=1e-9)
    assert reported(run)[12]["bleu"] == pytest.approx(reported(plain)[12]["bleu"], rel=1e-9)
