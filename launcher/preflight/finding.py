"""What a check has to say of a run."""

from dataclasses import dataclass
from typing import Any, Literal

from megatrain.base.errors import ExitCode


@dataclass(frozen=True, slots=True)
class Finding:
    level: Literal["error", "warning", "note"]
    text: str
    code: ExitCode = ExitCode.PREFLIGHT

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level, "text": self.text}
