"""What is drawn from logits; which tokens may be, as transformers has it."""

import pytest
import torch
from torch import Tensor

from megatrain.base.errors import ConfigError, NonFiniteError
from megatrain.generation.sampling import Sampling, draw, likeliest, penalized

VOCABULARY = 20


def logits(chances: dict[int, float], rest: float = -50.0) -> Tensor:
    row = torch.full((VOCABULARY,), rest)
    for token, logit in chances.items():
        row[token] = logit
    return row


def many(row: Tensor, count: int, seed: int = 0, **options) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [draw(row, (), Sampling(**({"temperature": 1.0} | options)), generator) for _ in range(count)]


FLAT = torch.zeros(VOCABULARY)


def test_a_seed_decides_what_is_drawn() -> None:
    assert many(FLAT, 40, seed=1) == many(FLAT, 40, seed=1) != many(FLAT, 40, seed=2)


def test_the_global_generator_has_no_say() -> None:
    torch.manual_seed(1)
    first = many(FLAT, 40)
    torch.manual_seed(2)
    assert many(FLAT, 40) == first


def test_temperature_zero_takes_the_likeliest() -> None:
    row = logits({5: 2.0, 6: 1.99})
    assert many(row, 40, temperature=0.0) == [5] * 40
    assert set(many(row, 40)) == {5, 6}


def test_a_lower_temperature_is_surer() -> None:
    row = logits({5: 1.0, 6: 0.0})
    cold, hot = (many(row, 400, temperature=t).count(5) / 400 for t in (0.2, 5.0))
    assert cold > 0.95
    assert 0.45 < hot < 0.65
    assert many(row, 20, temperature=1e-30) == [5] * 20


def test_top_k_cuts_the_tail() -> None:
    row = logits({1: 3.0, 2: 2.9, 5: 2.8, 6: 2.7})
    assert set(many(row, 100, top_k=2)) == {1, 2}
    assert set(many(row, 40, top_k=1)) == {1}


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7, "top_k": 5},
        {"top_p": 0.6},
        {"top_p": 1e-6},
        {"min_p": 0.2},
        {"temperature": 1.3, "top_k": 12, "top_p": 0.8, "min_p": 0.1},
    ],
)
def test_what_may_be_drawn_and_how_likely_is_what_transformers_has(options) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    row = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4)) * 2
    sampling = Sampling(**({"temperature": 1.0} | options))
    theirs = [TemperatureLogitsWarper(float(sampling.temperature))]
    theirs += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    theirs += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    theirs += [MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    expected = row[None]
    for step in theirs:
        expected = step(torch.zeros(1, 1, dtype=torch.int64), expected)
    ours = torch.zeros(VOCABULARY)
    values, ids = likeliest(row, sampling)
    ours[ids] = values.softmax(-1)
    torch.testing.assert_close(ours, expected[0].softmax(-1))


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    row, before = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(4)), [3, 4, 4, 11]
    expected = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([before]), row[None].clone())[0]
    torch.testing.assert_close(penalized(row, before, 1.3), expected)


def test_a_token_of_the_prompt_that_cannot_be_drawn_has_no_penalty() -> None:
    assert torch.equal(penalized(FLAT, [VOCABULARY + 3], 1.3), FLAT)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.01},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"temperature": float("nan")},
    ],
)
def test_a_value_out_of_range_is_named(wrong) -> None:
    with pytest.raises(ConfigError, match=f"--{next(iter(wrong)).replace('_', '-')}: .*must be"):
        Sampling(**wrong)


def test_logits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NonFiniteError):
        draw(logits({3: float("nan")}), (), Sampling(), torch.Generator())
