"""`make quickstart`: the whole path, from text to a fine-tuned model, on two CPU cores and without a network.

Every command is printed before it runs, so that it can be run again by hand. Whatever is promised is checked; the first
promise that is not kept ends the quickstart with exit code 1 and says which it was. The data is prepared once and used
again; each quickstart trains runs of its own, runs/quickstart-1 and so on.
"""

import json
import shutil
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from megatrain.base.errors import DataError, ExitCode, MegatrainError
from megatrain.base.formatting import duration
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.directory import RunDir
from quickstart import corpus
from quickstart.shell import BrokenPromiseError, Outcome, expect, megatrain, say

PRETRAIN = "configs/quickstart.yaml"
FINETUNE = "configs/quickstart-finetune.yaml"
DATA = Path("data/quickstart")
TEXT = DATA / "text"
TOKENIZER = DATA / "tokenizer"
SOURCES = {"docs": 0.1, "code": 0.9}  # the weights in quickstart.yaml
VOCABULARY = "4096"

# As in quickstart.yaml.
STEPS = 120
MORE_STEPS = 20  # with tensor parallelism
SEQUENCES = 32  # an optimizer step

STOP_AFTER = r"^step 30/"
BETTER_THAN_UNIGRAMS = 1.25  # nats per token, at least


@dataclass(kw_only=True)
class Results:
    """What the last page shows; losses are in nats per token of held-out text."""

    unigrams: float = 0.0
    trained: float = 0.0
    stopped_at: int = 0
    tensor_parallel: float = 0.0
    before_finetuning: float = 0.0
    after_finetuning: float = 0.0
    tokens_per_second: float = 0.0


def main() -> int:
    began = time.monotonic()
    number = next(n for n in range(1, sys.maxsize) if not Path(f"runs/quickstart-{n}").exists())
    run, tuned = RunDir(f"runs/quickstart-{number}"), RunDir(f"runs/quickstart-{number}-finetune")
    results = Results()
    try:
        prepare_data(results)
        show_plan()
        train_and_stop(run, results)
        resume(run, results)
        resume_on_another_layout(run, results)
        finetune(run, tuned, results)
        generate(run, tuned)
    except (BrokenPromiseError, MegatrainError) as error:
        say(f"\nerror: quickstart: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    say(page(run, tuned, results, time.monotonic() - began))
    return 0


def prepare_data(results: Results) -> None:
    title("Text, tokenizer and token shards")
    if not corpus.is_intact(TEXT):
        shutil.rmtree(DATA, ignore_errors=True)  # what was made from another text is of no use
    written = corpus.build(TEXT)
    say(f"Python {written['python']}'s own manual and standard library, in {TEXT}:")
    for name, file in written["files"].items():
        say(f"  {name:<30} {file['rows']:>6,} documents  {file['bytes'] / 1e6:6.2f} MB")
    inputs = [str(TEXT / f"{name}.jsonl") for name in SOURCES]
    megatrain("data", "tokenizer", "train", *inputs, "--out", str(TOKENIZER), "--vocab-size", VOCABULARY)
    for name in (*SOURCES, "validation"):
        if not is_intact(DATA / name):
            shutil.rmtree(DATA / name, ignore_errors=True)
        source = str(TEXT / f"{name}.jsonl")
        megatrain("data", "prepare", source, "--out", str(DATA / name), "--tokenizer", str(TOKENIZER))
    from quickstart.unigram import unigram_loss  # reads what was just prepared

    results.unigrams = unigram_loss([(DATA / name, weight) for name, weight in SOURCES.items()], DATA / "validation")
    say(f"\nKnowing only how frequent each token is costs {results.unigrams:.3f} nats per held-out token.")


def show_plan() -> None:
    title("The plan")
    megatrain("plan", PRETRAIN)


def train_and_stop(run: RunDir, results: Results) -> None:
    title("Training on two ranks, stopped by a signal")
    outcome = train(run, exit_code=ExitCode.STOPPED, stop_at=STOP_AFTER)
    results.stopped_at = (run.steps() or [0])[-1]
    expect("the signal ended the run with exit code 75", outcome.exit_code == ExitCode.STOPPED)
    expect(f"a checkpoint of step {results.stopped_at} was saved", 30 <= results.stopped_at < STEPS)


def resume(run: RunDir, results: Results) -> None:
    title("The same command again: it resumes")
    outcome = train(run)
    expect_resumed(outcome, results.stopped_at)
    expect_each_step_once(run, STEPS)
    results.trained = validation_losses(run)[STEPS]
    rates = [row["tokens_per_second"] for row in read_metrics(run.metrics) if "loss" in row]
    results.tokens_per_second = statistics.median(rates)
    expect(
        f"held-out loss {results.trained:.3f} is at least {BETTER_THAN_UNIGRAMS} under the unigrams' "
        f"{results.unigrams:.3f}",
        results.trained <= results.unigrams - BETTER_THAN_UNIGRAMS,
    )


def resume_on_another_layout(run: RunDir, results: Results) -> None:
    title("The same checkpoint, now under tensor parallelism")
    total = STEPS + MORE_STEPS
    outcome = train(run, "parallel.tensor_parallel=2", f"training.steps={total}")
    expect_resumed(outcome, STEPS)
    expect("the layout is another: tensor 2, data 1", outcome.find("tensor 2, data 1") is not None)
    expect_each_step_once(run, total)
    results.tensor_parallel = validation_losses(run)[total]
    expect(
        f"held-out loss {results.tensor_parallel:.3f} continues from {results.trained:.3f}",
        results.tensor_parallel < results.trained + 0.05,
    )


def finetune(base: RunDir, run: RunDir, results: Results) -> None:
    title("Fine-tuning from the tensor-parallel checkpoint")
    megatrain("finetune", FINETUNE, f"run.name={run.path.name}", f"finetune.base={base}", "--nproc", "2")
    losses = validation_losses(run)
    results.before_finetuning, results.after_finetuning = losses[0], losses[max(losses)]
    expect(
        f"the loss on held-out responses fell from {results.before_finetuning:.3f} to {results.after_finetuning:.3f}",
        results.after_finetuning < results.before_finetuning - 0.5,
    )


def generate(run: RunDir, tuned: RunDir) -> None:
    title("Text")
    options = ("--max-new-tokens", "48", "--temperature", "0.7", "--seed", "1")
    continued = megatrain("generate", str(run), "The following operations are", *options)
    expect("the trained model continues a text", bool(continued.text.strip()))
    with open(TEXT / "instructions-validation.jsonl", encoding="utf-8") as file:
        pair = min(map(json.loads, file), key=lambda pair: len(pair["prompt"]))
    answered = megatrain("generate", str(tuned), pair["prompt"], "--max-new-tokens", "32", "--temperature", "0")
    expect("the fine-tuned model answers", bool(answered.text.strip()))
    say(f"  (its docstring says: {pair['response']})")


def train(run: RunDir, *overrides: str, exit_code: int = 0, stop_at: str | None = None) -> Outcome:
    name = f"run.name={run.path.name}"
    arguments = ("train", PRETRAIN, name, *overrides, "--nproc", "2")
    return megatrain(*arguments, exit_code=exit_code, stop_at=stop_at)


def expect_resumed(outcome: Outcome, step: int) -> None:
    line = outcome.find(r"^resume: step ([\d,]+) from .* data position ([\d,]+) samples")
    found = [int(number.replace(",", "")) for number in line.groups()] if line else None
    expect(f"it resumed at step {step}, with {step * SEQUENCES:,} samples read", found == [step, step * SEQUENCES])


def expect_each_step_once(run: RunDir, last: int) -> None:
    steps = [row["step"] for row in read_metrics(run.metrics) if "loss" in row]
    once = steps == sorted(set(steps)) and steps[-1:] == [last]
    expect(f"metrics.jsonl has each logged step once, up to {last}", once)


def validation_losses(run: RunDir) -> dict[int, float]:
    """Held-out loss by step."""
    return {row["step"]: row["validation_loss"] for row in read_metrics(run.metrics) if "validation_loss" in row}


def is_intact(folder: Path) -> bool:
    from megatrain.data.checks.verify import find_damage

    try:
        return not list(find_damage(folder))
    except DataError:
        return False


def title(text: str) -> None:
    say(f"\n━━ {text}")


def page(run: RunDir, tuned: RunDir, results: Results, seconds: float) -> str:
    return f"""
━━ Done in {duration(seconds)}

  held-out text, nats per token
    knowing only the frequencies of tokens    {results.unigrams:.3f}
    after {STEPS} steps on 2 data-parallel ranks  {results.trained:.3f}   (stopped at {results.stopped_at}, resumed)
    after {MORE_STEPS} more on 2 tensor-parallel ranks  {results.tensor_parallel:.3f}   (from the same checkpoint)
  held-out responses, nats per token
    before and after fine-tuning              {results.before_finetuning:.3f} → {results.after_finetuning:.3f}
  {results.tokens_per_second:,.0f} tokens per second

Try next (after `. .venv/bin/activate`):
  megatrain tensorboard {run} {tuned}
  megatrain generate {run} "class Queue:" --temperature 0.7
  megatrain train {PRETRAIN} run.name={run.path.name} training.steps=400 parallel.zero_stage=3 --nproc 2
  megatrain checkpoint verify {run}
  megatrain plan configs/llama-7b.yaml model.vocab_size=32768
  megatrain submit {PRETRAIN} run.name={run.path.name} training.steps=400 --dry-run
"""


if __name__ == "__main__":
    sys.exit(main())
