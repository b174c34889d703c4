"""What the files of a run's history have in common: strict about types and bounds, tolerant of fields that a newer
version has added, and harmless on a terminal.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from megatrain.base.errors import PreflightError
from megatrain.base.files import reason, write_json
from megatrain.base.terminal import printable

_TEXT_CHARACTERS = 2000


def one_line(text: Any) -> Any:
    """A text on one line, with what a file or a terminal cannot take spelt out; anything else as it is."""
    if not isinstance(text, str):
        return text
    line = printable(text).replace("\n", "\\n").replace("\t", " ")
    return line if len(line) <= _TEXT_CHARACTERS else line[: _TEXT_CHARACTERS - 1] + "…"


Text = Annotated[str, BeforeValidator(one_line)]
Name = Annotated[str, BeforeValidator(one_line), Field(max_length=255)]  # of a host or a node
JobId = Annotated[str, Field(pattern=r"^[0-9]{1,20}$")]  # Slurm's
Seconds = Annotated[float, Field(ge=0, le=1e11)]  # since 1970
Count = Annotated[int, Field(ge=0, le=2**53)]
Code = Annotated[int, Field(ge=-255, le=255)]  # an exit code


class Record(BaseModel):
    """An object of such a file. Fields that this version does not know are kept and written again."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow", allow_inf_nan=False)

    def fields(self) -> dict[str, Any]:
        """Every field, those of a newer version too, as JSON has them."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}


def write_record(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises PreflightError, naming the file, where that cannot be done."""
    try:
        write_json(path, value)
    except OSError as error:
        raise PreflightError(f"{path}: cannot be written: {reason(error)}") from None
