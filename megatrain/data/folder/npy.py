"""Arrays of others in NumPy's .npy format, whose header is not believed."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray


def parse_npy(
    content: bytes, *, dtypes: Sequence[str] | None = None, shape: tuple[int, ...] | None = None
) -> NDArray[Any]:
    """The array of a .npy file, without a copy; nothing is allocated that is not there.

    Args:
        dtypes: of which its own must be one; default: any numbers.
        shape: what its own must be; default: any that the content fills.

    Raises:
        ValueError: it is not such an array, or its header does not agree with its size.
    """
    file = io.BytesIO(content)
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        found, by_columns, dtype = read_header(file)
    except Exception as error:  # the header is parsed as Python's syntax: anything may come of it
        raise ValueError(f"is not a .npy array: {error}") from None
    if dtype.kind not in "iufb" or (dtypes is not None and dtype.str not in dtypes):
        raise ValueError(f"holds {dtype}" + (f", not {' or '.join(dtypes)}" if dtypes else ""))
    if any(size < 0 for size in found) or (shape is not None and found != shape):
        raise ValueError(f"has the shape {found}, not {shape}")
    count = 1
    for size in found:
        count *= size
    if len(content) - file.tell() != count * dtype.itemsize:
        raise ValueError(f"announces {count:,} numbers in {len(content):,} bytes")
    values = np.frombuffer(content, dtype=dtype, count=count, offset=file.tell())
    return values.reshape(found, order="F" if by_columns else "C")
