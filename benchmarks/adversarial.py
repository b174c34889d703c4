"""What does adversarial training change under perturbed input? `python -m benchmarks.adversarial [--epsilon 0.5]`

Lines of Python's own library, comment or code, as tests/distributed/test_classify_real_text.py has them: a tiny Llama
from random weights, 80 steps, the same rows, weights and order, trained plainly, with FGM, and with R-Drop. Then the
accuracy on lines of other modules as they are, and with the embedded tokens of each moved by so much along the
normalised gradient of its loss (FGM), by transformers on what was exported. Prints a table.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from megatrain.api import open_run
from megatrain.data.text.tokenizer import Tokenizer, train_tokenizer
from tests.distributed.classifiers import make_base
from tests.distributed.test_classify_real_text import CONFIG, HELD_OUT, TRAIN, write_lines
from tests.project import megatrain

NORMS = (0.0, 0.1, 0.25, 0.5, 1.0)


def prepare(folder: Path) -> list[tuple[str, str]]:
    """The base and both files; the lines that are held out, with their labels."""
    write_lines(folder / "train.jsonl", TRAIN, 1600)
    write_lines(folder / "held-out.jsonl", HELD_OUT, 160)
    rows = {
        name: [json.loads(line)["line"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "held-out")
    }
    (folder / "lines.txt").write_text("\n".join(row["text"] for row in rows["train"]))
    train_tokenizer([str(folder / "lines.txt")], folder / "tokenizer", 384)
    make_base(folder / "base", "llama", folder / "tokenizer")
    return [(row["text"], row["kind"]) for row in rows["held-out"]]


def accuracies(folder: Path, name: str, lines: list[tuple[str, str]]) -> list[float]:
    """Of a run, under perturbations of each of NORMS."""
    model = open_run(folder / "runs" / name).latest().to_transformers().eval()
    tokenizer = Tokenizer.load(folder / "tokenizer")
    right = [0] * len(NORMS)
    for text, kind in lines:
        label = torch.tensor([model.config.label2id[kind]])
        ids = torch.tensor([tokenizer.encode(text)])
        embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
        loss = torch.nn.functional.cross_entropy(model(inputs_embeds=embedded).logits, label)
        (gradient,) = torch.autograd.grad(loss, embedded)
        for number, norm in enumerate(NORMS):
            moved = embedded + norm * gradient / gradient.norm().clamp(min=1e-30)
            with torch.no_grad():
                right[number] += int(model(inputs_embeds=moved).logits.argmax() == label)
    return [hits / len(lines) for hits in right]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilon", type=float, default=0.5, help="of FGM in training")
    epsilon = parser.parse_args().epsilon
    trained = {
        "plain": (),
        f"fgm {epsilon:g}": (f"finetune.adversarial={{epsilon: {epsilon}}}",),
        "r-drop 4": ("finetune.r_drop=4.0", "training.dropout=0.1"),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = prepare(folder)
        (folder / "run.yaml").write_text(CONFIG)
        print("| trained | " + " | ".join(f"‖r‖ = {norm:g}" for norm in NORMS) + " |")
        print("|---" * (len(NORMS) + 1) + "|")
        for number, (what, fields) in enumerate(trained.items()):
            megatrain(folder, "finetune", "run.yaml", f"run.name=run{number}", *fields, "--nproc", "1")
            found = accuracies(folder, f"run{number}", lines)
            print(f"| {what} | " + " | ".join(f"{share:.1%}" for share in found) + " |", flush=True)


if __name__ == "__main__":
    main()
