"""Question answering: the same losses and answers under every layout, and in transformers."""

import json
import random
from pathlib import Path

import pytest
import torch

from megatrain.huggingface.export import export
from megatrain.run.directory import RunDir
from megatrain.tasks.question_answering.squad import exact_match, f1
from tests.distributed.classifiers import config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import base_of, reported

pytestmark = pytest.mark.distributed

TASK = (
    "task={name: question_answering, stride: 8, unanswerable: true}",
    "finetune.train=[questions.jsonl]",
    "finetune.validation=[questions-held-out.jsonl]",
    "training.steps=4",
)
LAYOUTS = {
    "cp2": ("cluster.gpus_per_node=2", "parallel.context_parallel=2", "parallel.zero_stage=1"),
    "tp2-sp": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
    "zero3-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
    "zero2-tp2": ("cluster.gpus_per_node=4", "parallel.tensor_parallel=2", "parallel.zero_stage=2"),
    "tp2-cp2": (
        "cluster.gpus_per_node=4",
        "parallel.tensor_parallel=2",
        "parallel.context_parallel=2",
        "parallel.sequence_parallel=true",
    ),
}
NAMES = ("validation_loss", "exact_match", "answer_f1", "validation_questions")
DEFAULT = (("bert", "tp2-cp2"),)


def write_questions(file: Path, count: int, *, seed: int) -> Path:
    """Which word follows a name; some contexts are longer than a sequence, some have no answer."""
    chance = random.Random(seed)
    rows = []
    for _ in range(count):
        words = chance.choices(["the", "of", "and", "to", "in"], k=chance.choice([6, 9, 60]))
        name, answer = chance.choice(["great", "fatal"]), chance.choice(["lake", "fine"])
        at = chance.randint(0, len(words) - 1)
        there = chance.random() < 0.8
        words[at:at] = [name, answer] if there else []
        begin = len(" ".join(words[: at + 1])) + 1
        answers = {"text": [answer] if there else [], "answer_start": [begin] if there else []}
        rows.append({"question": f"what {name}", "context": " ".join(words), "answers": answers})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def here(here: Path) -> Path:
    if not (here / "questions.jsonl").exists():
        write_questions(here / "questions.jsonl", 60, seed=1)
        write_questions(here / "questions-held-out.jsonl", 23, seed=2)
    return here


def run_of(ranks: RankPool, here: Path, family: str, layout: str = "") -> RunDir:
    run = RunDir(here / "runs" / f"questions-{family}{layout}")
    if not run.steps():
        text = config_of(run.path.name, base_of(here, family))
        run = start(ranks, text, *TASK, *LAYOUTS.get(layout, ()))
    return run


CASES = [
    pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.full, id="-".join(case))
    for case in ((family, layout) for family in ("llama", "bert") for layout in LAYOUTS)
    if case != ("llama", "tp2-cp2")  # it has two key-value heads
]


@pytest.mark.parametrize(("family", "layout"), CASES)
def test_losses_and_metrics_of_one_process(ranks: RankPool, here: Path, family, layout) -> None:
    plain, found = (reported(run_of(ranks, here, family, one)) for one in ("", layout))
    assert plain.keys() == found.keys() == set(range(5))
    for step, values in plain.items():
        for name, limit in (("loss", 2e-6), ("grad_norm", 2e-5)) if step else ():
            assert found[step][name] == pytest.approx(values[name], rel=limit), (step, name)
        for name in NAMES if step % 2 == 0 else ():
            assert found[step][name] == pytest.approx(values[name], rel=2e-6), (step, name)
    assert found[4]["validation_questions"] == 23


@pytest.mark.parametrize("family", [pytest.param("llama", marks=pytest.mark.full), "bert"])
def test_transformers_finds_the_answers_of_the_run(ranks: RankPool, here: Path, tmp_path: Path, family) -> None:
    """From the texts on, a window at a time, by the rules of its example of question answering."""
    from transformers import AutoModelForQuestionAnswering, AutoTokenizer

    run = run_of(ranks, here, family)
    folder = export(run.path, tmp_path / "out", dtype="float32").folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32).eval()
    pairs, losses = [], []
    for line in (here / "questions-held-out.jsonl").read_text().splitlines():
        row = json.loads(line)
        encoded = tokenizer(
            row["question"], row["context"], truncation="only_second", max_length=48, stride=8,
            return_overflowing_tokens=True, return_offsets_mapping=True,
        )  # fmt: skip
        best, null = (-torch.inf, ""), torch.inf
        for number, ids in enumerate(encoded["input_ids"]):
            places, offsets = encoded.sequence_ids(number), encoded["offset_mapping"][number]
            context = [place for place, of in enumerate(places) if of == 1]
            types = {"token_type_ids": torch.tensor([[int(of == 1) for of in places]])} if family == "bert" else {}
            truth = answer_tokens(row, context, offsets)
            with torch.no_grad():
                out = model(torch.tensor([ids]), start_positions=truth[0], end_positions=truth[1], **types)
            losses.append(out.loss)
            starts, ends = out.start_logits[0], out.end_logits[0]
            null = min(null, float(starts[0] + ends[0]))
            for first in context:
                for last in range(first, min(first + 30, context[-1] + 1)):
                    score = float(starts[first] + ends[last])
                    if score > best[0]:
                        best = score, row["context"][offsets[first][0] : offsets[last][1]]
        pairs.append((best[1] if best[0] >= null else "", row["answers"]["text"]))
    last = reported(run)[4]
    assert last["validation_loss"] == pytest.approx(torch.stack(losses).mean().item(), rel=1e-4)
    assert last["exact_match"] == pytest.approx(100 * sum(exact_match(*pair) for pair in pairs) / 23)
    assert last["answer_f1"] == pytest.approx(100 * sum(f1(*pair, unanswerable=True) for pair in pairs) / 23)


def answer_tokens(row, context: list[int], offsets) -> tuple[torch.Tensor, torch.Tensor]:
    """Start and end of the answer in a window; its first token where it holds none."""
    found = (0, 0)
    for text, begin in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
        end = begin + len(text)
        if offsets[context[0]][0] <= begin and end <= offsets[context[-1]][1]:
            first = max(place for place in context if offsets[place][0] <= begin)
            found = first, min(place for place in context if offsets[place][1] >= end)
    return torch.tensor([found[0]]), torch.tensor([found[1]])


def test_each_of_several_sets_finds_its_own_answers(ranks: RankPool, here: Path) -> None:
    lines = (here / "questions-held-out.jsonl").read_text().splitlines(keepends=True)
    (here / "first.jsonl").write_text("".join(lines[:9]))
    (here / "rest.jsonl").write_text("".join(lines[9:]))
    text, sets = config_of("questions-sets", base_of(here, "bert")), "{first: [first.jsonl], rest: [rest.jsonl]}"
    several = reported(start(ranks, text, *TASK, f"finetune.validation={sets}"))
    whole = reported(run_of(ranks, here, "bert"))
    for step in (0, 2, 4):
        parts = {name: (several[step][f"first/{name}"], several[step][f"rest/{name}"]) for name in NAMES}
        counts = parts["validation_questions"]
        assert counts == (9, 14)
        for name in ("exact_match", "answer_f1"):
            mean = sum(value * count for value, count in zip(parts[name], counts, strict=True)) / sum(counts)
            assert mean == pytest.approx(whole[step][name], rel=1e-6), (step, name)
