"""Training in fp8, emulated: every layout follows the plain process in fp32 within what docs/numerics.md says."""

import pytest

from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from tests.distributed.layouts import SEQUENCE, Layout, Run, plain_run
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

SHORT, LONG = 6, 20  # steps
SIZES = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 256}
SECTIONS = {
    "gpt": GPTSection(**SIZES, max_position_embeddings=SEQUENCE),  # has biases behind row-parallel products
    "llama": LlamaSection(**SIZES, num_key_value_heads=4, intermediate_size=96),
}
CASES = [
    ("llama", Layout(1, 1, 2, "fp8")),
    ("llama", Layout(3, 2, 1, "fp8", sequence_parallel=True, checkpointing="selective")),
    ("gpt", Layout(1, 2, 1, "fp8")),
]
MORE = [
    ("gpt", Layout(1, 2, 1, "fp8", compile=True)),
    ("gpt", Layout(2, 2, 2, "fp8", checkpointing="full")),
    ("llama", Layout(0, 2, 1, "fp8", context=2)),
]


def trained(family: str, layout: Layout, steps: int) -> tuple[list[tuple[float, float]], int]:
    """Losses and norms, and how many layers multiply in fp8."""
    run = Run(layout, model=SECTIONS[family])
    kinds = [type(module).__name__ for module in run.engine._engine.module.modules()]
    return run.train(0, steps), kinds.count("Float8Linear")


@pytest.fixture(scope="module")
def plain() -> dict[str, list[tuple[float, float]]]:
    return {family: plain_run("fp32", section=section, steps=LONG) for family, section in SECTIONS.items()}


@pytest.mark.parametrize(
    ("family", "layout", "steps"),
    [
        *((*case, SHORT) for case in CASES),
        *(pytest.param(*case, LONG, marks=pytest.mark.full) for case in CASES + MORE),
    ],
    ids=str,
)
def test_losses_near_those_in_fp32(ranks: RankPool, family: str, layout: Layout, steps: int, plain) -> None:
    expected = plain[family][:steps]
    for found, layers in ranks.run(layout.world_size, trained, family, layout, steps):
        assert layers == 2 * (7 if family == "llama" else 6)
        for (loss, norm), (expected_loss, expected_norm) in zip(found, expected, strict=True):
            assert loss == pytest.approx(expected_loss, rel=3e-3)
            assert norm == pytest.approx(expected_norm, rel=5e-2)
        assert any(loss != in_fp32 for (loss, _), (in_fp32, _) in zip(found, expected, strict=True))
