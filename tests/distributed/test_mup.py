"""A model in muP trains under every kind of layout as a plain process of torch does, each weight at its own rate."""

import pytest
import torch

from megatrain.model.architecture import ModelSection, row_of
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.mup import MupSection
from megatrain.optim.adamw import AdamWSection
from tests.distributed.layouts import RATE, SEQUENCE, Layout, Run, plain_run
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS = 6
SIZES = {"num_hidden_layers": 3, "hidden_size": 72, "num_attention_heads": 4, "vocab_size": 256}
MUP = MupSection(base_width=24, base_head_size=6, embedding_multiplier=2.0, output_multiplier=4.0)
SECTIONS = {
    "llama": LlamaSection(**SIZES, intermediate_size=88, mup=MUP),
    "gpt": GPTSection(**SIZES, max_position_embeddings=SEQUENCE, mup=MUP),
}
CASES = [
    pytest.param("llama", Layout(1, 2, 1, sequence_parallel=True)),
    pytest.param("gpt", Layout(3, 2, 1, context=2), marks=pytest.mark.full),
    pytest.param("llama", Layout(3, 2, 1, compile=True, checkpointing="selective"), marks=pytest.mark.full),
    pytest.param("gpt", Layout(2, 1, 2, checkpointing="full"), marks=pytest.mark.full),
    pytest.param("llama", Layout(0, 2, 2, tied=True), marks=pytest.mark.full),
]


def section_of(family: str, layout: Layout) -> ModelSection:
    return SECTIONS[family].model_copy(update={"tie_word_embeddings": True} if layout.tied else {})


class _AdamW(torch.optim.AdamW):
    """Rates as the loop of `plain_run` sets them, times those of the weights."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = group["lr"] * group["own"]
        return super().step(closure)


def adamw_by_rows(model: torch.nn.Module, section: ModelSection) -> list[torch.optim.Optimizer]:
    """A group a weight. torch decays by the product of a group's rate and decay."""
    config = AdamWSection(learning_rate=RATE)
    groups = []
    for name, parameter in model.named_parameters():
        own = 1 / 3 if name.startswith("blocks") and parameter.ndim == 2 else 1.0
        decay = config.weight_decay / own if parameter.ndim == 2 else 0.0
        groups.append({"params": [parameter], "weight_decay": decay, "own": own})
        assert row_of(section, name).lr_scale == pytest.approx(own)
    return [_AdamW(groups, lr=RATE, betas=config.betas, eps=config.eps, foreach=False)]


def trained(family: str, layout: Layout) -> list[tuple[float, float]]:
    return Run(layout, model=section_of(family, layout)).train(0, STEPS)


@pytest.mark.parametrize(("family", "layout"), CASES, ids=str)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, family: str, layout: Layout) -> None:
    section = section_of(family, layout)
    plain = plain_run("fp32", section=section, steps=STEPS, optimizers_of=adamw_by_rows)
    for found in ranks.run(layout.world_size, trained, family, layout):
        for (loss, norm), (expected_loss, expected_norm) in zip(found, plain, strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-6)
            assert norm == pytest.approx(expected_norm, rel=2e-5)
