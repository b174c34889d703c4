"""Initial weights, each a function of (seed, name) alone: the same for every layout, and any part without the rest.

A weight is drawn in chunks of whole rows, each from a generator of its own, so that a rank draws the chunks that its
part lies in, several at a time.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

from megatrain.model.parameter_row import Constant, ParameterRow, Uniform

CHUNK_ELEMENTS = 2**22  # at most, but never less than a row; another number gives other weights
_MOST_THREADS = 8  # each holds a chunk


def initial_weight(row: ParameterRow, seed: int) -> Tensor:
    """The whole weight, fp32 on the CPU; see `write_initial_weight`."""
    whole = torch.empty(row.shape)
    write_initial_weight(row, [([0] * len(row.shape), whole)], seed)
    return whole


def write_initial_weight(row: ParameterRow, parts: Iterable[tuple[Sequence[int], Tensor]], seed: int) -> None:
    """Write the initial values of parts of a weight in place; memory for one chunk per thread is taken beside them.

    Args:
        row: of one weight, with its own name; `init` says how it begins.
        parts: (where the part begins in the whole, the tensor to write, of any dtype and device).
    """
    if isinstance(row.init, Constant):
        for _, out in parts:
            out.fill_(row.init.value)
        return
    if len(row.shape) != 2:
        raise ValueError(f"{row.name}: only matrices are drawn, and this has shape {row.shape}")
    name, shape, init = row.name, row.shape, row.init
    columns = shape[1]
    rows = max(1, CHUNK_ELEMENTS // columns)  # of a chunk
    wanted: dict[int, list[tuple[tuple[slice, slice], Tensor]]] = defaultdict(list)  # by chunk: (where in it, to where)
    for (top, left), out in parts:
        height, width = out.shape
        for chunk in range(top // rows, math.ceil((top + height) / rows)):
            start = chunk * rows
            first, last = max(top, start), min(top + height, start + rows)
            within = (slice(first - start, last - start), slice(left, left + width))
            wanted[chunk].append((within, out[first - top : last - top]))

    @torch.no_grad()
    def write(chunk: int) -> None:
        height = min(rows, shape[0] - chunk * rows)
        values, generator = torch.empty(height, columns), _generator(seed, name, chunk)
        if isinstance(init, Uniform):
            values.uniform_(-init.bound, init.bound, generator=generator)
        else:
            values.normal_(0.0, init.std, generator=generator)
        for within, out in wanted[chunk]:
            out.copy_(values[within])

    with ThreadPoolExecutor(min(_MOST_THREADS, torch.get_num_threads())) as threads:
        for _ in threads.map(write, wanted):
            pass  # raises what a thread raised


def _generator(seed: int, name: str, chunk: int) -> torch.Generator:
    of = f"{seed}:{name}" if chunk == 0 else f"{seed}:{name}:{chunk}"
    digest = hashlib.sha256(of.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


def materialize(
    model: nn.Module,
    initial: Callable[[str, nn.Parameter], Tensor],
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    placed: Callable[[str, nn.Parameter], None] = lambda name, parameter: None,
) -> None:
    """Replace the parameters of a model built on the meta device by real ones. Tied parameters stay tied.

    Args:
        initial: (name, meta parameter) -> its initial value, of the parameter's shape.
        placed: called with each real parameter before the next one is made; may keep a part of it only.
    """
    made: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, meta in list(module._parameters.items()):
            if meta is None:
                continue
            if id(meta) not in made:
                full_name = f"{prefix}.{name}" if prefix else name
                real = nn.Parameter(initial(full_name, meta).to(device, dtype), requires_grad=meta.requires_grad)
                real.__dict__.update(meta.__dict__)
                placed(full_name, real)
                made[id(meta)] = real
            module._parameters[name] = made[id(meta)]
        for name, buffer in module._buffers.items():  # of somebody else's module, made with its values
            if buffer is not None and not buffer.is_meta:
                module._buffers[name] = buffer.to(device)
