"""Losses of preferences beside TRL's: the same weights, the same pairs in every batch, fp32, 20 steps of AdamW.

    python -m benchmarks.trl FOLDER

Needs `pip install trl accelerate`, which megatrain does not: FOLDER is a new one, for the data and the runs. A batch is
all of the data, so that the order in which either reads it plays no part.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

STEPS, BETA, RATE, PAIRS = 20, 0.1, 1e-3, 8
WORDS = ("the", "of", "and", "to", "in", "fine", "fatal", "lake")
LOSSES = ("dpo", "ipo", "kto")


def make_data(folder: Path) -> None:
    """A tokenizer, a random Llama of two layers, and pairs with different prompts."""
    import transformers

    from megatrain.data.text.tokenizer import train_tokenizer, write_tokenizer

    texts = [" ".join(WORDS[(n + k * k) % 8] for k in range(12)) for n in range(60)]
    (folder / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenizer = train_tokenizer([str(folder / "texts.jsonl")], folder / "tokenizer", 300)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        num_hidden_layers=2,
        hidden_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        vocab_size=384,
        initializer_range=0.05,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "base")
    write_tokenizer(tokenizer, folder / "base")
    pairs = [
        {
            "prompt": " ".join(WORDS[(n + k) % 8] for k in range(2 + n % 3)),
            "chosen": f" {WORDS[n]} fine",
            "rejected": f" {WORDS[(n + 3) % 8]} fatal lake" * (1 + n % 2),
        }
        for n in range(PAIRS)
    ]
    rated = [
        {"prompt": one["prompt"], "completion": one["chosen" if n % 2 else "rejected"], "label": bool(n % 2)}
        for n, one in enumerate(pairs)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (folder / "rated.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))


def losses_here(folder: Path, loss: str) -> list[float]:
    """Of the run of megatrain."""
    config: dict[str, Any] = {
        "run": {"name": loss, "directory": str(folder / "runs")},
        "finetune": {"base": str(folder / "base"), "train": [str(folder / data_of(loss))], "sequence_length": 256},
        "task": {"name": "preference", "loss": loss, "beta": BETA},
        "training": {"steps": STEPS, "global_batch_size": 1, "precision": "fp32"},
        "optimizer": {"learning_rate": RATE, "weight_decay": 0.0, "betas": [0.9, 0.999], "gradient_clipping": 1e9},
        "schedule": {"name": "constant", "warmup_steps": 0},
        "parallel": {"compile": False},
        "monitor": {"log_interval_steps": 1, "sinks": [], "health_check": False},
        "cluster": {"hardware": "cpu", "nodes": 1, "gpus_per_node": 1},
    }
    file = folder / f"{loss}.json"
    file.write_text(json.dumps(config))
    command = [sys.executable, "-c", "from launcher.cli import main; main()", "finetune", str(file)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "runs" / loss / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


def losses_there(folder: Path, loss: str) -> list[float]:
    """Of TRL's trainer, which logs four digits: its losses are taken where it computes them."""
    import trl
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    kind, options = (trl.KTOTrainer, trl.KTOConfig) if loss == "kto" else (trl.DPOTrainer, trl.DPOConfig)
    arguments = options(
        output_dir=str(folder / "trl" / loss),
        per_device_train_batch_size=PAIRS,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        adam_beta2=0.999,
        max_grad_norm=1e9,
        beta=BETA,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        max_length=256,
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        **({} if loss == "kto" else {"loss_type": [{"dpo": "sigmoid"}.get(loss, loss)]}),
    )
    found: list[float] = []

    class Recording(kind):  # type: ignore[misc, valid-type]
        def compute_loss(self, *given: Any, **more: Any) -> Any:
            value = super().compute_loss(*given, **more)
            found.append(float((value[0] if isinstance(value, tuple) else value).detach()))
            return value

    data = load_dataset("json", data_files=str(folder / data_of(loss)), split="train", cache_dir=str(folder / "cache"))
    Recording(model=model, args=arguments, train_dataset=data, processing_class=tokenizer).train()
    return found


def data_of(loss: str) -> str:
    return "rated.jsonl" if loss == "kto" else "pairs.jsonl"


def main(folder: Path) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    folder.mkdir(parents=True)
    make_data(folder)
    print(f"trl {version('trl')}, transformers {version('transformers')}, torch {torch.__version__}\n")
    print("| loss | step 1, here | step 1, TRL | step 20, here | step 20, TRL | largest difference of 20 |")
    print("| --- | --- | --- | --- | --- | --- |")
    for loss in LOSSES:
        ours, theirs = losses_here(folder, loss), losses_there(folder, loss)
        largest = max(abs(one - other) for one, other in zip(ours, theirs, strict=True))
        print(
            f"| {loss} | {ours[0]:.6f} | {theirs[0]:.6f} | {ours[-1]:.6f} | {theirs[-1]:.6f} | {largest:.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
