"""From a run folder to text."""

from pathlib import Path

import pytest

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.generate import Writer, generate
from megatrain.generation.sampling import Sampling
from megatrain.model.families.gpt.section import GPTSection
from megatrain.run.inputs import load_run
from tests.trained import make_trained_run, write_checkpoint


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

    def test_options_are_those_of_sampling(self, run) -> None:
        plain = generate(run.path, "once upon", temperature=0, max_new_tokens=20)
        assert generate(run.path, "once upon", temperature=3.0, top_k=1, max_new_tokens=20) == plain
        assert generate(run.path, "once upon", temperature=0, repetition_penalty=5.0, max_new_tokens=20) != plain
        stop = plain[len("once upon") + 3 :][:2]
        stopped = generate(run.path, "once upon", temperature=0, max_new_tokens=20, stops=[stop])
        assert stopped == plain[: plain.index(stop, len("once upon"))]
        with pytest.raises(ConfigError, match=r"--top-p: 2\.0: must be above 0"):
            generate(run.path, "once", top_p=2.0)

    def test_chat_needs_a_template(self, run) -> None:
        with pytest.raises(ConfigError, match="has no chat template"):
            generate(run.path, "once", chat=True)

    def test_a_chat_is_answered_through_the_template(self, run) -> None:
        config = load_run(run)
        source = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        (Path(config.tokenizer.path) / "chat_template.jinja").write_text(source)
        answer = generate(run.path, "once", chat=True, temperature=0, max_new_tokens=8)
        assert "<user>once" + answer == generate(run.path, "<user>once", temperature=0, max_new_tokens=8)

    def test_prompts_at_once_are_as_one_by_one(self, run) -> None:
        texts = ["once upon", "a", "there was a model upon a time", "time"]
        writer = Writer(run.path, Sampling(), max_new_tokens=9)
        answers = writer.answers([(f"f:{n}", text) for n, text in enumerate(texts)], chat=False, batch_size=3)
        together = [text + answer for text, answer in zip(texts, answers, strict=True)]
        assert together == [generate(run.path, text, temperature=0, max_new_tokens=9) for text in texts]


def test_learned_positions_bound_a_text(tmp_path) -> None:
    run = make_trained_run(tmp_path)
    rows = load_run(run).model.padded_vocab_size
    model = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": rows}
    section = GPTSection.model_validate(model | {"max_position_embeddings": 12})
    write_checkpoint(run, 20, section)
    warnings: list[str] = []
    assert generate(run.path, "once upon", max_new_tokens=40, warn=warnings.append)
    assert any("may be noise" in text for text in warnings)
    with pytest.raises(ConfigError, match=r"PROMPT: has .* tokens; the model has 12 learned positions"):
        generate(run.path, "xyz " * 40)
