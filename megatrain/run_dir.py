"""The name of everything that a run writes.

RUN/
    config.yaml            the resolved configuration: every `auto` decided
    ds_config.json         what DeepSpeed is given
    plan.json              the chosen layout and what was predicted of it
    inputs.json            where tokenizer/ and base/ were copied from, and their hashes; see `run_inputs`
    tokenizer/             the tokenizer as it was when the run began
    base/                  what the pretrained model of a fine-tuning said of itself
    environment.json       versions, git revision, hosts
    metrics.jsonl          an object per logged step
    logs/                  what the ranks printed
    tensorboard/
    checkpoints/step-00001000/   DCP files, state.json, and MANIFEST.json, written last
    attempts.json          an object per start: who trains it, from which step to which, how it ended
    attempts.lock, launcher.lock   one trainer at a time: megatrain/run/lock.py
    heartbeat.json         where the running attempt is
    progress               touched while ranks build, load or save: monitor/watchdog.py
    outcomes/              the first rank of an attempt that did not simply finish
    job.sbatch, job.json   when submitted
"""

import json
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

MANIFEST = "MANIFEST.json"
_STEP = re.compile(r"step-([0-9]{8,15})")


class RunDir:
    """Paths inside one run's folder; creates nothing by itself."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.ds_config = self.path / "ds_config.json"
        self.plan = self.path / "plan.json"
        self.inputs = self.path / "inputs.json"
        self.tokenizer = self.path / "tokenizer"
        self.base = self.path / "base"
        self.environment = self.path / "environment.json"
        self.metrics = self.path / "metrics.jsonl"
        self.logs = self.path / "logs"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.path / "checkpoints"
        self.attempts = self.path / "attempts.json"
        self.heartbeat = self.path / "heartbeat.json"
        self.progress = self.path / "progress"
        self.outcomes = self.path / "outcomes"
        self.job_script = self.path / "job.sbatch"
        self.job = self.path / "job.json"

    def __str__(self) -> str:
        return str(self.path)

    def step(self, step: int) -> Path:
        """The folder of the checkpoint after `step` optimizer steps."""
        return self.checkpoints / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps that have a committed checkpoint folder, ascending. Says nothing about their integrity."""
        if not self.checkpoints.is_dir():
            return []
        found = (_STEP.fullmatch(entry.name) for entry in self.checkpoints.iterdir() if (entry / MANIFEST).is_file())
        return sorted(int(match[1]) for match in found if match)


def parse_step(folder: Path) -> int | None:
    """The step in a checkpoint folder's name, or None for any other folder."""
    match = _STEP.fullmatch(folder.name)
    return int(match[1]) if match else None


def write_atomically(path: Path, text: str) -> None:
    """Write `text` so that a reader, or a crash, sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        with suppress(OSError):  # on a full disk, its half would only take room
            temporary.unlink()
        raise


def write_json(path: Path, value: Any) -> None:
    write_atomically(path, json.dumps(value, indent=2, sort_keys=False) + "\n")
