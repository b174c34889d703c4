"""How an export is made smaller: weights of hidden matrices in fewer bits, or zeros among them. Free of torch."""

import re
from dataclasses import dataclass
from typing import Literal, cast, get_args

from megatrain.base.errors import ConfigError
from megatrain.model.parameter_row import ParameterRow

Quantize = Literal["int8", "int4", "fp8"]
QUANTIZE: tuple[Quantize, ...] = get_args(Quantize)
STRUCTURED = "2:4"
_MAGNITUDE = re.compile(r"magnitude:(0?\.[0-9]+|0)")


@dataclass(frozen=True, slots=True)
class Compression:
    """
    Attributes:
        quantize: what the values of hidden matrices are stored as.
        prune: the share of each hidden matrix's values, the smallest, that become zero; or of every four along its
            inputs the smaller two.
    """

    quantize: Quantize | None = None
    prune: float | Literal["2:4"] | None = None

    def __bool__(self) -> bool:
        return self.quantize is not None or self.prune is not None

    def __str__(self) -> str:
        pruned = self.prune if self.prune is None or self.prune == STRUCTURED else f"magnitude:{self.prune:g}"
        return " and ".join(filter(None, (pruned and f"pruned {pruned}", self.quantize)))

    @classmethod
    def from_options(cls, quantize: str | None, prune: str | None) -> "Compression":
        """
        Raises:
            ConfigError: one of them is not a kind of compression.
        """
        if quantize is not None and quantize not in QUANTIZE:
            raise ConfigError(f"--quantize {quantize}: must be one of {', '.join(QUANTIZE)}")
        if prune is None or prune == STRUCTURED:
            return cls(quantize, cast("Literal['2:4'] | None", prune))
        found = _MAGNITUDE.fullmatch(prune)
        if found is None or not 0 < float(found[1]) < 1:
            raise ConfigError(
                f"--prune {prune}: must be magnitude:SHARE, with a share of zeros between 0 and 1, such as "
                f"magnitude:0.5, or {STRUCTURED}"
            )
        return cls(quantize, float(found[1]))


NONE = Compression()


def is_compressed(row: ParameterRow) -> bool:
    """Matrices of attention and MLPs in the layers; embeddings, heads, norms and biases stay as they are."""
    return row.is_hidden_matrix and row.name.endswith(".weight") and not row.of_adapter
