"""Every family trains under every kind of layout as a plain process of torch alone does; Llama: test_parity too.

`make test` has every family under one layout, and one compiled; `make test-all` the product of all
families and settings.
"""

from typing import Any

import pytest

from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.model.family import FAMILIES
from tests.covering import every_case
from tests.distributed.layouts import SEQUENCE, Layout, Run, plain_run
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS, LONG = 4, 20
SIZES = {"num_hidden_layers": 3, "hidden_size": 72, "num_attention_heads": 4, "vocab_size": 256}
SECTIONS = {
    "bert": BertSection(**SIZES, max_position_embeddings=SEQUENCE + 2, position_offset=2),
    "gemma3": Gemma3Section(
        **SIZES | {"num_attention_heads": 8},
        num_key_value_heads=4,
        head_dim=12,
        intermediate_size=88,
        sliding_window=5,
        layer_types=("sliding_attention", "full_attention"),
        final_logit_softcapping=5.0,
    ),
    "gpt": GPTSection(**SIZES, max_position_embeddings=SEQUENCE),
    # local and global layers; the second document of a sequence is longer than the window
    "llama": LlamaSection(
        **SIZES, intermediate_size=88, sliding_window=5, layer_types=("sliding_attention", "full_attention")
    ),
    "modernbert": ModernBertSection(**SIZES, intermediate_size=88, sliding_window=4),
}
LAYOUTS = [
    Layout(3, 2, 1, context=2),
    Layout(3, 2, 1, sequence_parallel=True, compile=True, checkpointing="selective"),
    Layout(1, 2, 1, checkpointing="full"),
    Layout(2, 2, 2, sequence_parallel=True),
]
SETTINGS = {
    "family": tuple(SECTIONS),
    "zero": (0, 1, 2, 3),
    "tensor": (1, 2, 4),
    "sequence_parallel": (False, True),
    "context": (1, 2),
    "checkpointing": ("none", "selective", "full"),
    "compile": (False, True),
}


def case(family: str, layout: Layout) -> Any:
    more = layout != LAYOUTS[0]  # compiled layouts, which take longest: test_parity has some
    return pytest.param(family, layout, marks=pytest.mark.full if more else (), id=f"{family}-{layout}")


def legal(case: dict[str, Any]) -> bool:
    """At most four ranks."""
    return case["tensor"] * case["context"] <= 4 and case["tensor"] > int(case["sequence_parallel"])


def product() -> list[Any]:
    """Family and layout of every case: with two replicas, where four ranks have room for them."""
    cases = []
    for case in every_case(SETTINGS, legal):
        family = case.pop("family")
        layout = Layout(data=2 if case["tensor"] * case["context"] <= 2 and case["context"] == 1 else 1, **case)
        cases.append(pytest.param(family, layout, marks=pytest.mark.full, id=f"{family}-{layout}"))
    return cases


def test_every_family_is_here() -> None:
    assert set(SECTIONS) == set(FAMILIES.names()) - {"transformers"}  # test_transformers.py


def trained(family: str, layout: Layout, steps: int) -> list[tuple[float, float]]:
    return Run(layout, model=SECTIONS[family]).train(0, steps)


@pytest.fixture(scope="module")
def plain() -> dict[str, list[tuple[float, float]]]:
    return {family: plain_run("fp32", section=section, steps=LONG) for family, section in SECTIONS.items()}


@pytest.fixture(scope="module")
def norm_limits(plain) -> dict[str, float]:
    """Relative, over a long run: as in test_parity; of Gemma 3 four times what one rounding of the initial weights
    changes in one process, for a layout rounds otherwise at every step. See docs/numerics.md."""
    moved = [plain_run("fp32", section=SECTIONS["gemma3"], steps=LONG, nudge=seed) for seed in (1, 2, 3)]
    most = max(
        abs(norm / expected - 1) for run in moved for (_, norm), (_, expected) in zip(run, plain["gemma3"], strict=True)
    )
    assert most > 1e-5
    return dict.fromkeys(SECTIONS, 2e-5) | {"gemma3": 4 * most}


@pytest.mark.parametrize(("family", "layout"), [case(family, layout) for family in SECTIONS for layout in LAYOUTS])
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, family: str, layout: Layout, plain) -> None:
    for found in ranks.run(layout.world_size, trained, family, layout, STEPS):
        for (loss, norm), (expected_loss, expected_norm) in zip(found, plain[family][:STEPS], strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-6)
            assert norm == pytest.approx(expected_norm, rel=2e-5)


@pytest.mark.parametrize(("family", "layout"), product())
def test_the_product_of_all_settings(ranks: RankPool, family: str, layout: Layout, plain) -> None:
    for found in ranks.run(layout.world_size, trained, family, layout, STEPS):
        for (loss, norm), (expected_loss, expected_norm) in zip(found, plain[family][:STEPS], strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-6)
            assert norm == pytest.approx(expected_norm, rel=2e-5)


@pytest.mark.full
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("family", SECTIONS)
def test_losses_and_norms_over_a_longer_run(ranks: RankPool, family: str, layout: Layout, plain, norm_limits) -> None:
    for found in ranks.run(layout.world_size, trained, family, layout, LONG):
        for step, ((loss, norm), (expected_loss, expected_norm)) in enumerate(zip(found, plain[family], strict=True)):
            assert loss == pytest.approx(expected_loss, rel=2e-6), step
            assert norm == pytest.approx(expected_norm, rel=norm_limits[family]), step
