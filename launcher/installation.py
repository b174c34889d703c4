"""Where the files that travel with megatrain lie, and how another Python finds megatrain itself."""

import os
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_ROOTS = (_HERE.parent, _HERE / "_files")  # a checkout; an installed wheel


def shipped(relative: str) -> Path:
    """The path of a shipped file or folder, such as `slurm/train.sbatch`.

    Raises:
        FileNotFoundError: this installation lacks it.
    """
    for root in _ROOTS:
        if (root / relative).exists():
            return root / relative
    raise FileNotFoundError(f"{relative} is neither in {_ROOTS[0]} nor in {_ROOTS[1]}; install megatrain again")


def source_root() -> Path | None:
    """The checkout that this is; None for an installed package, which every process of this Python finds."""
    inside = any(part in ("site-packages", "dist-packages") for part in _HERE.parts)
    return None if inside else _HERE.parent


def python_path() -> str:
    """PYTHONPATH for another process of this Python, which does not look into the working directory (-P)."""
    return os.pathsep.join(filter(None, [str(source_root() or ""), os.environ.get("PYTHONPATH", "")]))
