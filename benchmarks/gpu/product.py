"""The commands of README on this GPU: text to shards, a run that is stopped and resumes, text from it, an export that
transformers loads. Its speed is what the run itself reports, data pipeline, monitoring and checkpoints included."""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.measure import Recorder
from benchmarks.gpu.models import MODELS
from quickstart import corpus

CONFIGURATION = """
run: {{name: product, directory: {folder}/runs}}
model: {model}
tokenizer: {{path: {folder}/tokenizer}}
data:
  sequence_length: {length}
  train: [{{path: {folder}/train}}]
  validation: [{{path: {folder}/validation}}]
  max_epochs: 200
optimizer: {{name: adamw, learning_rate: 6.0e-4}}
schedule: {{name: cosine, warmup_steps: 5}}
training: {{steps: {steps}, global_batch_size: {batch}}}
checkpoint: {{interval_steps: {half}}}
evaluation: {{interval_steps: {half}, sequences: 32}}
monitor: {{log_interval_steps: 5}}
cluster: {{hardware: {hardware}, nodes: 1, gpus_per_node: 1}}
"""


class Product:
    def __init__(self, record: Recorder) -> None:
        self.record, self.folder = record, (record.out.parent / "product").resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file, self.run = self.folder / "run.yaml", self.folder / "runs" / "product"
        self.steps = 60 if record.toy else 80

    def megatrain(self, *arguments: str, stop_at: str | None = None, code: int = 0) -> str:
        """Run a command; its output. With `stop_at`, it gets SIGTERM once it has printed that."""
        began, lines = time.monotonic(), []
        command = [sys.executable, "-m", "launcher.cli", *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        ) as process:
            assert process.stdout
            for line in process.stdout:
                lines.append(line)
                print(line, end="", flush=True)
                if stop_at and re.search(stop_at, line):
                    process.send_signal(signal.SIGTERM)
                    stop_at = None
        seconds = round(time.monotonic() - began, 1)
        self.record.write(f"megatrain {' '.join(arguments[:2])}", exit_code=process.returncode, seconds=seconds)
        if process.returncode != code:
            raise RuntimeError(f"megatrain {arguments} ended with {process.returncode}, not {code}: {lines[-5:]}")
        return "".join(lines)

    def prepare(self) -> None:
        text = self.folder / "text"
        corpus.build(text)
        inputs = str(text / "code.jsonl")
        self.megatrain(
            "data", "tokenizer", "train", inputs, "--out", f"{self.folder}/tokenizer", "--vocab-size", "4096"
        )
        for name, source in (("train", "code"), ("validation", "validation")):
            arguments = ("--out", f"{self.folder}/{name}", "--tokenizer", f"{self.folder}/tokenizer")
            self.megatrain("data", "prepare", f"{text}/{source}.jsonl", *arguments)
        section: dict[str, Any] = MODELS["toy" if self.record.toy else "350M"].section | {"vocab_size": "auto"}
        values = {"length": 64, "batch": 4, "hardware": "cpu"} if self.record.toy else {
            "length": 2048, "batch": 64, "hardware": "h100-sxm",
        }  # fmt: skip
        self.file.write_text(
            CONFIGURATION.format(
                folder=self.folder, model=json.dumps(section), steps=self.steps, half=self.steps // 2, **values
            )
        )

    def train(self) -> dict[str, Any]:
        self.megatrain("plan", str(self.file))
        self.megatrain("train", str(self.file), stop_at=rf"^step {3 * self.steps // 4 // 5 * 5}/", code=75)
        self.megatrain("train", str(self.file))
        rows = [json.loads(line) for line in Path(self.run / "metrics.jsonl").read_text().splitlines()]
        trained = [row for row in rows if "loss" in row]
        rates = [row["tokens_per_second"] for row in trained[2:]]
        last = {key: value for key, value in trained[-1].items() if isinstance(value, int | float)}
        return {"median_tokens_per_second": statistics.median(rates), "losses": [r["loss"] for r in trained], **last}

    def use(self) -> dict[str, Any]:
        text = self.megatrain("generate", str(self.run), "def main(", "--max-new-tokens", "32", "--temperature", "0")
        self.megatrain("export", str(self.run), f"{self.folder}/export")
        import torch
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(f"{self.folder}/export").to(self.record.device)
        logits = model(torch.arange(16, device=self.record.device)[None]).logits
        return {"text": text[-400:], "logits_finite": bool(logits.isfinite().all())}


def main() -> None:
    record = Recorder("product")
    product = Product(record)
    record.attempt("doctor", lambda: {"text": product.megatrain("doctor")[-3000:]})
    product.prepare()
    record.attempt("train", product.train)
    record.attempt("use", product.use)


if __name__ == "__main__":
    main()
