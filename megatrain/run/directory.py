"""The name of everything that a run writes.

RUN/
    config.yaml            the resolved configuration: every `auto` decided
    ds_config.json         what DeepSpeed is given
    plan.json              the chosen layout and what was predicted of it
    inputs.json            where tokenizer/ and base/ were copied from, and their hashes; see `inputs`
    tokenizer/             the tokenizer as it was when the run began
    examples/              of a fine-tuning: its packed examples; see data/examples/cache.py
    reference.npy          of preferences: log-probabilities of the model that the run began with
    base/                  what the pretrained model of a fine-tuning said of itself
    environment.json       versions, git revision, hosts
    metrics.jsonl          an object per logged step
    logs/                  what the ranks printed
    tensorboard/
    checkpoints/step-00001000/   DCP files, state.json, and MANIFEST.json, written last
    checkpoints/abandoned-…/     what a run that went back set aside; nothing reads it
    references/            runs that need a checkpoint of this one: checkpoint/references.py
    generated/step-00001000.jsonl   responses of an evaluation: evaluation.generate
    attempts.json          an object per attempt: who trains it, from which step to which, how it ended
    attempts.lock, launcher.lock   one trainer at a time: megatrain/run/lock.py
    heartbeat.json         where the running attempt is
    progress               touched while ranks build, load or save: monitor/watchdog.py
    outcomes/              the first rank of an attempt that did not simply finish
    job.sbatch, job.json   when submitted
"""

import re
from pathlib import Path

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.base.files import reason

MANIFEST = "MANIFEST.json"
_STEP = re.compile(r"step-([0-9]{8,16})")


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
        self.examples = self.path / "examples"
        self.references = self.path / "references"
        self.generated = self.path / "generated"
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
        """Steps that have a committed checkpoint folder, ascending. Says nothing about their integrity.

        Raises:
            CheckpointError: `checkpoints` is there, and cannot be read.
        """
        return [step for step in self.step_folders() if (self.step(step) / MANIFEST).is_file()]

    def step_folders(self) -> list[int]:
        """As `steps`, with those that have no manifest: only damage, or a hand, leaves such a folder."""
        try:
            found = (parse_step(entry) for entry in self.checkpoints.iterdir())
            return sorted(step for step in found if step is not None)
        except FileNotFoundError:
            return []
        except OSError as error:
            if not self.path.is_dir():
                return []
            raise CheckpointError(f"{self.checkpoints}: cannot be read: {reason(error)}") from None


def parse_step(folder: Path) -> int | None:
    """The step in a checkpoint folder's name, or None for any other folder."""
    match = _STEP.fullmatch(folder.name)
    step = int(match[1]) if match else None
    return step if step is not None and folder.name == f"step-{step:08d}" else None


def parse_resume(text: str) -> int | str:
    """The step that --resume names, or its word: "auto", "must" or "never".

    Raises:
        ConfigError: it is neither.
    """
    if re.fullmatch(r"[0-9]{1,16}", text):
        return int(text)
    if text not in ("auto", "must", "never"):
        raise ConfigError(f"--resume {text[:40]}: must be auto, must, never, or the step of a checkpoint.")
    return text


def locate(path: Path) -> tuple[RunDir, Path | None]:
    """The run that a path names, directly or by one of its checkpoints, and that checkpoint; through symbolic links."""
    folder = path if parse_step(path) is not None else path.resolve()
    if parse_step(folder) is None:
        return RunDir(path), None
    above = [folder.parent.parent, folder.parent.parent.parent]  # the second of one that was set aside
    return RunDir(next((run for run in above if RunDir(run).config.is_file()), above[0])), folder
