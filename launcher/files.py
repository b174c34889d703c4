"""Where the files that travel with megatrain lie: hardware profiles, and the job script."""

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
