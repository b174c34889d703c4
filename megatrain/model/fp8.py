"""Which matrices multiply in fp8. No torch: the planner and the ranks decide alike."""

from megatrain.model.parameter_row import ParameterRow

FP8_MULTIPLE = 16  # of each side of an fp8 product: a tile of the tensor cores


def multiplies_in_fp8(row: ParameterRow, tensor_parallel: int) -> bool:
    """Whether it is a matrix of a block whose slice on a tensor-parallel rank has sides that a tile divides."""
    sides = row.local_shape(tensor_parallel)
    return row.layers is not None and len(sides) == 2 and all(side % FP8_MULTIPLE == 0 for side in sides)
