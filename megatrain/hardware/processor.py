"""How fast one core multiplies in bf16 and in fp32: `python -m megatrain.hardware.processor` prints FLOP/s as JSON.

Many processors multiply bf16 slower than fp32, others four times as fast. The launcher, which never imports torch, runs
this as a process of its own (launcher/planning/processor.py).
"""

import json
import time

import torch

SIZE = 768  # of a square product: large enough for a core's full rate, milliseconds long
ROUNDS = 6  # the two precisions in turn, so that a change of clocks or load meets both


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps(measure()))


def measure() -> dict[str, float]:
    """FLOP/s of one core by precision: the best of several rounds."""
    best = {"bf16": 0.0, "fp32": 0.0}
    operands = {
        "bf16": torch.randn(SIZE, SIZE).to(torch.bfloat16),
        "fp32": torch.randn(SIZE, SIZE),
    }
    for x in operands.values():
        torch.matmul(x, x)  # the first call chooses a kernel and allocates
    for _ in range(ROUNDS):
        for precision, x in operands.items():
            began = time.perf_counter()
            torch.matmul(x, x)
            best[precision] = max(best[precision], 2.0 * SIZE**3 / (time.perf_counter() - began))
    return best


if __name__ == "__main__":
    main()
