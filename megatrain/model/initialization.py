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

from megatrain.config import ModelSection

ROW_OUTPUTS = ("attention.output.weight", "mlp.down.weight")  # they write into the residual stream
CHUNK_ELEMENTS = 2**22  # at most, but never less than a row; another number gives other weights
_MOST_THREADS = 8  # each holds a chunk


def initial_weight(name: str, shape: torch.Size, config: ModelSection, seed: int) -> Tensor:
    """The whole weight, fp32 on the CPU; see `write_initial_weight`."""
    whole = torch.empty(shape)
    write_initial_weight(name, shape, [([0] * len(shape), whole)], config, seed)
    return whole


def write_initial_weight(
    name: str, shape: Sequence[int], parts: Iterable[tuple[Sequence[int], Tensor]], config: ModelSection, seed: int
) -> None:
    """Write the initial values of parts of a weight in place; memory for one chunk per thread is taken beside them.

    Matrices are normal with standard deviation initializer_range; those that write into the residual stream are
    divided by √(2L), so that its variance does not grow with depth (GPT-2, section 2.3). Norm weights are one.

    Args:
        shape: of the whole weight.
        parts: (where the part begins in the whole, the tensor to write, of any dtype and device).
    """
    if len(shape) == 1:
        for _, out in parts:
            out.fill_(1.0)
        return
    columns = shape[1]
    rows = max(1, CHUNK_ELEMENTS // columns)  # of a chunk
    wanted: dict[int, list[tuple[tuple[slice, slice], Tensor]]] = defaultdict(list)  # by chunk: (where in it, to where)
    for (row, column), out in parts:
        height, width = out.shape
        for chunk in range(row // rows, math.ceil((row + height) / rows)):
            start = chunk * rows
            first, last = max(row, start), min(row + height, start + rows)
            within = (slice(first - start, last - start), slice(column, column + width))
            wanted[chunk].append((within, out[first - row : last - row]))
    deviation = config.initializer_range
    if name.endswith(ROW_OUTPUTS):
        deviation /= math.sqrt(2 * config.num_hidden_layers)

    @torch.no_grad()
    def write(chunk: int) -> None:
        height = min(rows, shape[0] - chunk * rows)
        values = torch.empty(height, columns).normal_(0.0, deviation, generator=_generator(seed, name, chunk))
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
