"""What `sample` draws, and `generate` from a run folder to text."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.config import FinetuneConfig
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.generate import encode_prompt, generate, sample
from tests.trained import make_trained_run, tiny_model

VOCABULARY, PADDED, EOS = 20, 32, 7


def logits_of(chances: dict[int, float]) -> Callable[[Tensor], Tensor]:
    """Stands for a model that wants the same at every position: log chances, and padded rows above all."""
    row = torch.full((PADDED,), -50.0)
    row[VOCABULARY:] = 1e4
    for token, logit in chances.items():
        row[token] = logit
    return lambda ids: row.expand(*ids.shape, PADDED)


def draw(model: Callable[[Tensor], Tensor], seed: int = 0, **options) -> list[int]:
    settings = {"max_new_tokens": 40, "temperature": 1.0, "top_k": 50, "eos_id": EOS, "vocab_size": VOCABULARY}
    start = torch.tensor([[3, 4]])
    tokens = sample(model, start, generator=torch.Generator().manual_seed(seed), **(settings | options))
    assert tokens[0, :2].tolist() == [3, 4]
    return tokens[0, 2:].tolist()


FLAT = logits_of({token: 0.0 for token in range(VOCABULARY) if token != EOS})


def test_a_seed_decides_what_is_drawn() -> None:
    assert draw(FLAT, seed=1) == draw(FLAT, seed=1) != draw(FLAT, seed=2)


def test_the_global_generator_has_no_say() -> None:
    torch.manual_seed(1)
    first = draw(FLAT)
    torch.manual_seed(2)
    assert draw(FLAT) == first


@pytest.mark.parametrize("temperature", [0.0, 0.1, 1.0, 100.0])
def test_a_padded_id_is_never_drawn(temperature) -> None:
    assert all(token < VOCABULARY for token in draw(FLAT, temperature=temperature, max_new_tokens=200))


def test_temperature_zero_takes_the_likeliest() -> None:
    model = logits_of({5: 2.0, 6: 1.99})
    assert draw(model, temperature=0.0) == [5] * 40
    assert set(draw(model, temperature=1.0)) == {5, 6}


def test_a_lower_temperature_is_surer() -> None:
    model = logits_of({5: 1.0, 6: 0.0})
    cold, hot = (draw(model, temperature=t, max_new_tokens=400).count(5) / 400 for t in (0.2, 5.0))
    assert cold > 0.95
    assert 0.45 < hot < 0.65


def test_top_k_cuts_the_tail() -> None:
    model = logits_of({1: 3.0, 2: 2.9, 5: 2.8, 6: 2.7})
    assert set(draw(model, top_k=2, max_new_tokens=100)) == {1, 2}
    assert set(draw(model, top_k=1)) == {1}


def test_it_stops_after_the_end_of_text() -> None:
    assert draw(logits_of({EOS: 0.0})) == [EOS]


def test_no_more_than_asked_for() -> None:
    assert len(draw(FLAT, max_new_tokens=5)) == 5
    assert draw(FLAT, max_new_tokens=0) == []


def test_greedy_is_the_argmax_of_the_model_at_every_step() -> None:
    model = tiny_model(256)
    tokens = draw(model, temperature=0.0, vocab_size=256, eos_id=-1, max_new_tokens=6)
    ids = torch.tensor([[3, 4, *tokens]])
    assert model(ids)[0, 1:-1].argmax(-1).tolist() == tokens
    assert len(set(tokens)) > 1


@pytest.fixture
def run(tmp_path):
    return make_trained_run(tmp_path)


class TestGenerate:
    def test_text_follows_the_prompt(self, run) -> None:
        text = generate(run.path, "once upon", max_new_tokens=8)
        assert text.startswith("once upon")
        assert len(text) > len("once upon")
        assert generate(run.path, "once upon", max_new_tokens=8) == text
        assert generate(run.path, "once upon", max_new_tokens=8, seed=1) != text

    def test_a_checkpoint_can_be_named(self, run) -> None:
        assert generate(run.step(10), "once", temperature=0) == generate(run.path, "once", temperature=0)

    def test_an_empty_prompt_begins_a_document(self, run) -> None:
        assert isinstance(generate(run.path, "", max_new_tokens=3), str)

    def test_a_damaged_checkpoint_is_refused(self, run) -> None:
        shard = next(run.step(10).glob("*.distcp"))
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(content)
        with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
            generate(run.path, "once")

    def test_a_prompt_that_is_no_text_is_refused(self, run) -> None:
        with pytest.raises(ConfigError, match="PROMPT: half a surrogate pair at character 1"):
            generate(run.path, "a\udcff")

    def test_a_prompt_beyond_the_sequences_of_training_is_warned_of(self, run) -> None:
        warnings: list[str] = []
        generate(run.path, "once upon", max_new_tokens=1, warn=warnings.append)
        assert not [text for text in warnings if "may be noise" in text]
        generate(run.path, "once upon " * 200, max_new_tokens=1, warn=warnings.append)
        assert any("the run was trained on sequences of" in text for text in warnings)


def test_a_prompt_is_encoded_as_transformers_does(make_tokenizer) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer("byte_level")
    theirs = AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer.load(folder)
    finetune = {"base": "b", "train": ["t"]}
    common = {"run": {"name": "t"}, "training": {"steps": 1, "global_batch_size": 1}}
    parsed = FinetuneConfig.model_validate(common | {"finetune": finetune})
    as_text = FinetuneConfig.model_validate(common | {"finetune": finetune, "task": {"special_tokens": "text"}})
    prompt = "<|im_start|>who what"
    assert encode_prompt(prompt, tokenizer, parsed) == (theirs(prompt)["input_ids"], 1)
    assert len(encode_prompt(prompt, tokenizer, as_text)[0]) > len(theirs(prompt)["input_ids"])
    assert encode_prompt("", tokenizer, parsed)[0] == theirs("")["input_ids"]
