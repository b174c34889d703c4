"""Which examples the position of a checkpoint counts. No torch: the preflight compares them before a GPU is held."""

from collections.abc import Mapping, Sequence
from typing import Any

from megatrain.base.errors import DataError
from megatrain.data.examples.packing import PackedRow, digest

# How examples become tokens. 2: with the tokenizer's BOS, special tokens parsed, prompt and response as one text, no
# end of text behind a response that was cut. 3: every turn of the assistant in a dialogue. Format 1 is not named.
FORMAT = 3
_MOST_SAMPLES = 10**18


def identity(rows: Sequence[PackedRow], seed: int) -> dict[str, Any]:
    """What must stay for a position to count the same rows."""
    return {"seed": seed, "rows": len(rows), "examples": digest(rows), "format": FORMAT}


def check_same_examples(state: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare a checkpoint's loader state with the identity of the examples that there are.

    Raises:
        DataError: the examples are others, or were encoded otherwise by an earlier version.
    """
    position = state.get("position")
    if type(position) is not int or not 0 <= position <= _MOST_SAMPLES:
        raise DataError(f"loader.position: {position!r:.40}: is no count of samples; the checkpoint is damaged")
    changed = [name for name in ("seed", "rows", "examples") if state.get(name) != now[name]]
    if not changed:
        return
    if "seed" not in changed and state.get("format", 1) == 2:
        raise DataError(
            "the checkpoint is of a version that learnt the last turn of dialogues only, or of other examples; set "
            "task.train_on: last_turn, or start a run with another run.name (finetune.base can be this run)"
        )
    if "seed" not in changed and state.get("format", 1) != now["format"]:
        raise DataError(
            "the checkpoint is of a version that encoded examples otherwise (without the tokenizer's BOS, special "
            "tokens as text, prompt and response apart), or of other examples; finish the run with that version, or "
            "start one with another run.name (finetune.base can be this run)"
        )
    raise DataError(
        f"the examples are not the ones that the checkpoint was trained on ({', '.join(changed)} changed); "
        "restore them, or start a run with another run.name"
    )
