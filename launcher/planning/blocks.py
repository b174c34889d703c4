"""What a model's blocks, and what stands around them, are made of: read from its parameter table."""

from dataclasses import dataclass
from functools import lru_cache

from megatrain.model.architecture import ModelSection, rows
from megatrain.model.parameter_row import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape:
    norms: float  # of the residual stream's width, in a block; on average, where the first has fewer
    mlp_inputs: float  # matrices that lead into the MLP: 2 where it is gated, else 1
    outer_norms: int  # in front of the blocks, behind them, and in the head
    outer_matrices: int  # in the head, in front of the vocabulary's
    rotates: bool  # queries and keys
    tensors: int  # of the whole model, that are trained

    @property
    def is_gated(self) -> bool:
        return self.mlp_inputs > 1


@lru_cache(64)
def block_shape(model: ModelSection) -> BlockShape:
    table, layers = rows(model.merged), model.num_hidden_layers
    norms = [row for row in table if row.kind is Kind.NORM and row.name.endswith(".weight")]
    of_blocks = sum(row.count for row in norms if row.layers is not None) / layers
    mlp = sum(row.elements for row in table if row.kind is Kind.MLP and len(row.shape) == 2)
    square = (model.hidden_size, model.hidden_size)
    return BlockShape(
        norms=of_blocks - (2 if model.normalizes_heads else 0),
        mlp_inputs=max(0.0, mlp / (model.hidden_size * model.mlp_width) - 1),
        outer_norms=sum(row.layers is None for row in norms),
        outer_matrices=sum(row.kind is Kind.HEAD and row.shape == square for row in table),
        rotates=model.longest_sequence is None,  # else positions are learned, and added to the tokens
        tensors=sum(row.count for row in rows(model) if row.trained),
    )
