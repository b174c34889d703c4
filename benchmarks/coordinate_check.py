"""Whether activations keep their size as a model grows wider: the coordinate check of muP (arXiv 2203.03466, D.1).

    python -m benchmarks.coordinate_check --out docs/images/coordinate-check.png

Models of one depth and several widths take a few steps of AdamW at one learning rate, under the standard
parametrisation and under muP. Drawn is the mean size of an activation's coordinates; printed is with which power of the
width it grows, and what it has moved since the start. Where that is above 0, a wider model needs another learning rate.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from megatrain.model.architecture import row_of
from megatrain.model.build import build_model
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.initialization import initial_weight, materialize
from megatrain.model.mup import MupSection
from megatrain.optim.adamw import AdamWSection
from megatrain.optim.build import build_optimizer

WIDTHS = (64, 128, 256, 512, 1024)
STEPS, SEEDS, RATE = 4, 3, 0.01
HEADS, LAYERS, VOCABULARY = 4, 2, 256
SEEN = {
    "blocks.1.attention": "attention, layer 2",
    "blocks.1.mlp": "MLP, layer 2",
    "blocks.1": "residual stream",
    "head": "logits",
}
Sizes = dict[str, list[tuple[float, float]]]  # by module: after 0, 1, … steps, the mean |x| and the mean |x − x at 0|


def section_of(width: int, *, mup: bool) -> LlamaSection:
    """Heads grow with the width, so that their scores' scale matters."""
    return LlamaSection(
        num_hidden_layers=LAYERS,
        hidden_size=width,
        num_attention_heads=HEADS,
        intermediate_size=2 * width,
        vocab_size=VOCABULARY,
        mup=MupSection(base_width=WIDTHS[0], base_head_size=WIDTHS[0] // HEADS) if mup else None,
    )


def model_of(section: LlamaSection, seed: int) -> nn.Module:
    with torch.device("meta"):
        model = build_model(section)
    materialize(model, lambda name, _: initial_weight(row_of(section, name), seed))
    return model


def optimizer_of(model: nn.Module, section: LlamaSection, config: AdamWSection) -> torch.optim.Optimizer:
    """As a run has it; the rate is set by `step`."""
    return build_optimizer(
        model,
        config,
        decays=lambda name: row_of(section, name).decay,
        lr_scale=lambda name: row_of(section, name).lr_scale,
    )


def step(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    optimizer.step()
    optimizer.zero_grad()


def coordinates(section: LlamaSection, seed: int, *, steps: int = STEPS, rate: float = RATE) -> Sizes:
    """Of one model, while it learns one batch."""
    model = model_of(section, seed)
    optimizer = optimizer_of(model, section, AdamWSection())
    ids, labels = _batch(seed)
    seen: dict[str, list[Tensor]] = {name: [] for name in SEEN}
    for name, outputs in seen.items():
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, outputs=outputs: outputs.append(output.detach())
        )
    for number in range(steps + 1):
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        if number < steps:
            loss.backward()
            step(optimizer, rate)
    return {
        name: [(x.abs().mean().item(), (x - outputs[0]).abs().mean().item()) for x in outputs]
        for name, outputs in seen.items()
    }


def _batch(seed: int) -> tuple[Tensor, Tensor]:
    """Text of a kind: most tokens follow from the one before."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, VOCABULARY, (4, 65), generator=generator)
    follows = (7 * ids[:, :-1] + 3) % VOCABULARY
    is_noise = torch.rand(follows.shape, generator=generator) < 0.3
    return ids[:, :-1], torch.where(is_noise, ids[:, 1:], follows)


def mean_of_seeds(section: LlamaSection, seeds: int) -> Sizes:
    runs = [coordinates(section, seed) for seed in range(seeds)]
    return {
        name: [
            (sum(run[name][at][0] for run in runs) / seeds, sum(run[name][at][1] for run in runs) / seeds)
            for at in range(STEPS + 1)
        ]
        for name in SEEN
    }


def growth(widths: Sequence[int], sizes: Sequence[float]) -> float:
    """The exponent of the width with which a size grows, by least squares of the logarithms."""
    x, y = [math.log(width) for width in widths], [math.log(size) for size in sizes]
    middle = sum(x) / len(x)
    return sum((a - middle) * b for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def lines(found: dict[bool, list[Sizes]]) -> Iterator[str]:
    """A table of exponents after the last step."""
    yield "| grows as width to the power of | standard, size | moved | muP, size | moved |"
    yield "|---|--:|--:|--:|--:|"
    for name, words in SEEN.items():
        cells = [
            f"{growth(WIDTHS, [sizes[name][STEPS][which] for sizes in found[mup]]):.2f}"
            for mup in (False, True)
            for which in (0, 1)
        ]
        yield f"| {words} | " + " | ".join(cells) + " |"


def draw(found: dict[bool, list[Sizes]], out: Path) -> None:
    figure = Figure(figsize=(3 * len(SEEN), 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Any = figure.subplots(2, len(SEEN), sharex=True, sharey="col")
    for row, mup in zip(panels, (False, True), strict=True):
        for panel, (name, words) in zip(row, SEEN.items(), strict=True):
            for at in range(STEPS + 1):
                values = [sizes[name][at][0] for sizes in found[mup]]
                panel.loglog(WIDTHS, values, "o-", base=2, markersize=3, label=f"after {at} steps")
            panel.set_title(f"{words}, {'muP' if mup else 'standard'}", fontsize=9)
            panel.grid(alpha=0.3)
        row[0].set_ylabel("mean |coordinate|")
    for panel in panels[1]:
        panel.set_xlabel("width")
    panels[1][0].legend(fontsize=7)
    save(figure, out)


def save(figure: Figure, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/images/coordinate-check.png"))
    out: Path = parser.parse_args().out
    found = {mup: [mean_of_seeds(section_of(width, mup=mup), SEEDS) for width in WIDTHS] for mup in (False, True)}
    print("\n".join(lines(found)))
    draw(found, out)


if __name__ == "__main__":
    main()
