"""Muon for hidden matrices (Jordan et al., 2024), AdamW for the rest: embeddings, head, norms and biases.

A matrix's momentum is orthogonalised by Newton-Schulz iterations and scaled to the root mean square of AdamW's updates
(arXiv 2502.16982, section 2.2), so that AdamW's learning rate and decay serve both.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from megatrain.base.section import FIXED
from megatrain.base.types import Beta, Positive
from megatrain.optim.registry import OPTIMIZERS, MatrixUpdate, OptimizerSection, OptimizerSpec


class MuonSection(OptimizerSection):
    name: Annotated[Literal["muon"], FIXED] = "muon"
    momentum: Beta = Field(0.95, description="of hidden matrices: how much of it is kept")
    nesterov: bool = Field(True, description="look ahead: orthogonalise the momentum with the gradient once more in it")
    ns_steps: Annotated[int, Field(ge=1, le=20)] = Field(5, description="Newton-Schulz iterations")
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        (0.9, 0.95), description="AdamW's, of what is not a hidden matrix"
    )
    eps: Positive = Field(1e-8, description="AdamW's")


def arguments(section: MuonSection) -> dict[str, Any]:
    names = ("momentum", "nesterov", "ns_steps", "betas", "eps")
    return {name: getattr(section, name) for name in names}


def flops(section: MuonSection, rows: int, columns: int) -> float:
    """Of one matrix: three products an iteration, with m the shorter side, 2·m²·n + 2·m³ + 2·m²·n."""
    short, long = sorted((rows, columns))
    return float(section.ns_steps * (4 * short**2 * long + 2 * short**3))


OPTIMIZERS.register(
    "muon",
    OptimizerSpec(
        section=MuonSection,
        optimizer="megatrain.optim.muon.optimizer:Muon",
        arguments=arguments,
        state=("exp_avg", "exp_avg_sq"),
        matrices=MatrixUpdate(state=("momentum_buffer",), flops=flops),
    ),
)
