"""Which learning rate is best at which width, under the standard parametrisation and under muP.

    python -m benchmarks.best_rate --out docs/images/best-rate.png

Llamas of two layers learn the bytes of Python's reference manual (`pydoc_data`) for a few steps each, in bf16
(autocast): AdamW, a short warm-up, then a line to zero. The loss is the mean of the last steps.
"""

import argparse
import math
import time
from pathlib import Path
from pydoc_data import topics
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.coordinate_check import model_of, optimizer_of, save, step
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.mup import MupSection
from megatrain.optim.adamw import AdamWSection

WIDTHS = (128, 256, 512)
RATES = tuple(2.0**-exponent for exponent in (12, 11, 10, 9, 8, 7))
STEPS, WARMUP, LAST = 60, 6, 10
BATCH, LENGTH, HEAD = 4, 128, 32
Losses = dict[bool, dict[int, list[float]]]  # by muP or not, width, rate


def section_of(width: int, *, mup: bool) -> LlamaSection:
    """Heads of one size: more of them in a wider model. The narrowest is the base."""
    return LlamaSection(
        num_hidden_layers=2,
        hidden_size=width,
        num_attention_heads=width // HEAD,
        intermediate_size=2 * width,
        vocab_size=256,
        mup=MupSection(base_width=WIDTHS[0], base_head_size=HEAD) if mup else None,
    )


def corpus() -> Tensor:
    """int64 [bytes]."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def loss_after(section: LlamaSection, rate: float, text: Tensor, *, steps: int = STEPS, seed: int = 0) -> float:
    model = model_of(section, seed)
    optimizer = optimizer_of(model, section, AdamWSection())
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for number in range(steps):
        starts = torch.randint(0, len(text) - LENGTH - 1, (BATCH,), generator=generator)
        rows = torch.stack([text[start : start + LENGTH + 1] for start in starts.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1])
        loss = F.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step(optimizer, rate * min((number + 1) / WARMUP, (steps - number) / (steps - WARMUP)))
        losses.append(loss.item())
    return sum(losses[-LAST:]) / LAST


def lines(found: Losses) -> list[str]:
    table = ["| | width | " + " | ".join(f"2^{math.log2(rate):.0f}" for rate in RATES) + " |"]
    table += ["|---|--:|" + "--:|" * len(RATES)]
    for mup, widths in found.items():
        for width, losses in widths.items():
            cells = [f"**{loss:.3f}**" if loss == min(losses) else f"{loss:.3f}" for loss in losses]
            table.append(f"| {'muP' if mup else 'standard'} | {width} | " + " | ".join(cells) + " |")
    return table


def draw(found: Losses, out: Path) -> None:
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(1, 2, sharey=True)
    for panel, (mup, widths) in zip(panels, found.items(), strict=True):
        for width, losses in widths.items():
            panel.plot(RATES, losses, "o-", markersize=3, label=f"width {width}")
            best = losses.index(min(losses))
            panel.plot(RATES[best], losses[best], "k*", markersize=9)
        panel.set_xscale("log", base=2)
        panel.set(title="muP" if mup else "standard", xlabel="learning rate")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel(f"loss, mean of the last {LAST} of {STEPS} steps")
    panels[0].legend()
    save(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/best-rate.png"))
    out: Path = parser.parse_args().out
    text, begin = corpus(), time.perf_counter()
    found: Losses = {}
    for mup in (False, True):
        for width in WIDTHS:
            known = found.get(False, {}).get(width) if width == WIDTHS[0] else None  # of the base both are one
            losses = known or [loss_after(section_of(width, mup=mup), rate, text) for rate in RATES]
            found.setdefault(mup, {})[width] = losses
            said = ", ".join(f"{loss:.3f}" for loss in losses)
            print(f"{time.perf_counter() - begin:5.0f} s  {'muP' if mup else 'standard'} {width}: {said}", flush=True)
    print("\n".join(lines(found)))
    draw(found, out)


if __name__ == "__main__":
    main()
