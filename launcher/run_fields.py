"""What another value of each field means for a run that has started, by reason.

FIXED       what the weights and the position in the data rest on: another value would be another run, and is refused
SAID        what is trained from here on, or when it is looked at and kept: may change, and a start says so
UNSAID      where and how the same numbers are computed: may change, and the lines of a start say how it runs anyway
"""

from typing import Any, Literal

from megatrain.config import Config

Meaning = Literal["FIXED", "SAID", "UNSAID"]

# The longest name that a field lies in decides.
FIELDS: dict[str, Meaning] = {
    "run": "UNSAID",  # where the folder lies
    "run.seed": "FIXED",  # the order of the data
    "model": "FIXED",
    "tokenizer": "FIXED",
    "data": "FIXED",  # which sample is at which position, and what it is
    # What had not begun may change; the checkpoint says what had (data/ordering/position.py), and the ranks say more.
    "data.stages": "UNSAID",
    "data.quarantine": "UNSAID",
    "data.transform": "UNSAID",
    # None of these decides a byte of a batch.
    "data.prefetch": "UNSAID",
    "data.reading": "UNSAID",
    "data.validation": "SAID",
    "data.allow_pipe": "SAID",
    "data.maximum_epochs": "SAID",
    "finetune": "FIXED",
    "finetune.train": "UNSAID",  # the checkpoint knows its examples by their hash, wherever they lie
    "finetune.validation": "SAID",
    "finetune.maximum_epochs": "SAID",
    "optimizer": "SAID",
    "optimizer.name": "FIXED",  # its state is in the checkpoint
    "schedule": "SAID",
    "training": "SAID",
    "training.micro_batch_size": "UNSAID",
    "parallel": "UNSAID",
    "checkpoint": "SAID",
    "evaluation": "SAID",
    "monitor": "SAID",
    "cluster": "UNSAID",
    "slurm": "UNSAID",
}


def meaning(field: str) -> Meaning:
    """Of a field by its dotted name, such as "training.steps"."""
    name = field
    while name not in FIELDS:
        name = name.rpartition(".")[0]
    return FIELDS[name]


def differences(before: Config, now: Config) -> dict[str, tuple[Any, Any]]:
    """Every field whose value differs, by its dotted name: (before, now); None where it has none."""
    old, new = _flat(before), _flat(now)
    return {
        name: (old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    }


def _flat(config: Config) -> dict[str, Any]:
    """Every value of a configuration under its dotted name; a list is one value."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(f"{prefix}.{key}" if prefix else key, below)
        else:
            found[prefix] = value

    walk("", config.model_dump(mode="json", exclude_none=True))
    return found
