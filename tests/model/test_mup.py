"""muP: what the table says of each kind of weight, and activations that keep their size as a model grows wider."""

import math
import random
from typing import Any

import pytest

from benchmarks.coordinate_check import SEEN, coordinates, growth, section_of
from megatrain.model.architecture import ModelSection, parameter_table, row_of
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.family import FAMILIES
from megatrain.model.mup import MupSection, attention_scale, output_factor
from megatrain.model.parameter_row import Kind, Normal
from tests.model.test_architecture import RANDOM

SIZES: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "vocab_size": 64}
SECTIONS = {
    "llama": LlamaSection(**SIZES, intermediate_size=512, mup=MupSection(base_width=64), attention_bias=True),
    "gpt": GPTSection(**SIZES, mup=MupSection(base_width=64)),
}


def test_every_family_that_has_it_is_here() -> None:
    assert {name for name, family in FAMILIES if family.has_mup} == set(SECTIONS)


@pytest.mark.parametrize("family", SECTIONS)
def test_deviations_and_rates_by_the_kind_of_a_weight(family: str) -> None:
    section = SECTIONS[family]
    standard = {row.name: row for row in parameter_table(section.model_copy(update={"mup": None}))}
    for row in parameter_table(section):
        before = standard[row.name]
        is_hidden = row.kind in (Kind.ATTENTION, Kind.MLP)
        assert row.lr_scale == (1 / 4 if is_hidden else 1.0), row.name
        if isinstance(before.init, Normal):
            assert row.init == Normal(before.init.std / (2 if is_hidden else 1)), row.name
        else:
            assert row.init == before.init
        assert (row.shape, row.decay, row.split) == (before.shape, before.decay, before.split)
    assert attention_scale(section) == 8 / 64
    assert output_factor(section) == 1 / 4


@pytest.mark.parametrize("family", RANDOM)
def test_without_it_nothing_is_scaled(family: str) -> None:
    section: ModelSection = RANDOM[family](random.Random(3))
    assert (attention_scale(section), output_factor(section)) == (None, 1.0)
    for row in parameter_table(section):
        assert row.lr_scale == 1.0
        assert row.theirs is None or row.theirs.factor == 1.0


def test_at_the_width_of_its_base_it_is_the_standard_parametrisation() -> None:
    section = SECTIONS["llama"].model_copy(update={"mup": MupSection(base_width=256)})
    assert set(parameter_table(section)) == set(parameter_table(section.model_copy(update={"mup": None})))
    assert attention_scale(section) == 1 / math.sqrt(section.head_size)


def test_a_bias_and_a_tied_embedding() -> None:
    tied = SECTIONS["llama"].model_copy(update={"tie_word_embeddings": True})
    assert row_of(tied, "embedding.weight").lr_scale == 1.0
    assert row_of(tied, "blocks.0.attention.query.bias").lr_scale == 1.0


WIDTHS = (32, 64, 128)


@pytest.fixture(scope="module")
def grown() -> dict[bool, dict[str, tuple[float, float]]]:
    """By muP or not, and module: exponents of the width, of the size of its output and of what steps have moved."""
    found = {}
    for mup in (False, True):
        sizes = [coordinates(section_of(width, mup=mup), seed=0, steps=3) for width in WIDTHS]
        found[mup] = {
            name: (
                growth(WIDTHS, [one[name][3][0] for one in sizes]),
                growth(WIDTHS, [one[name][3][1] for one in sizes]),
            )
            for name in SEEN
        }
    return found


@pytest.mark.parametrize("name", SEEN)
def test_what_steps_change_grows_with_the_width_unless_it_is_mup(grown, name: str) -> None:
    """To which power of the width. Seen with muP: -0.5 to -0.2, without: 0.7 to 2.9. Wider: docs/models.md."""
    assert min(grown[True][name]) > -0.7
    assert max(grown[True][name]) < 0.1
    assert min(grown[False][name]) > 0.6
