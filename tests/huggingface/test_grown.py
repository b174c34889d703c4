"""New tokens have rows of their own, begun as the mean of others; all else is what the base had."""

import json

import pytest
import torch

from launcher.cli import app
from megatrain.base.errors import ConfigError
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.huggingface.config_json import read_pretrained
from megatrain.huggingface.grown import grow
from tests.huggingface.test_export import TEMPLATE, theirs, write_base
from tests.trained import make_trained_run

TOKENS = ["<|tool|>", "once upon a"]


@pytest.fixture
def base(tmp_path):
    make_trained_run(tmp_path)
    write_base(tmp_path / "base")
    return tmp_path / "base"


def embeddings(folder) -> tuple[torch.Tensor, torch.Tensor]:
    model = theirs(folder, dtype=torch.float32)
    return model.get_input_embeddings().weight.detach(), model.get_output_embeddings().weight.detach()


@pytest.mark.parametrize("start", ["pieces", "mean"])
def test_rows_begin_as_the_mean(tmp_path, base, start) -> None:
    before, known = embeddings(base), Tokenizer.load(base)
    done = grow(base, tmp_path / "out", TOKENS, start=start, multiple=64)
    assert done.rows == done.before, "two of the three rows that no token has"
    rows = grow(base, tmp_path / "more", [*TOKENS, "<a>", "<b>"], start=start, multiple=64).rows
    assert rows == -(-(known.vocab_size + 4) // 64) * 64
    for folder in ("out", "more"):
        for old, new in zip(before, embeddings(tmp_path / folder), strict=True):
            torch.testing.assert_close(new[: known.vocab_size], old[: known.vocab_size], rtol=0, atol=0)
            for token, number in done.ids.items():
                like = known.encode(token) if start == "pieces" else list(range(known.vocab_size))
                torch.testing.assert_close(new[number], old[like].mean(0))
                assert number >= known.vocab_size


def test_the_tokenizer_knows_them_and_all_else(tmp_path, base) -> None:
    from transformers import AutoTokenizer

    done = grow(base, tmp_path / "out", TOKENS)
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (base, tmp_path / "out"))
    assert after("x<|tool|>y", add_special_tokens=False)["input_ids"][1:-1] == [done.ids["<|tool|>"]]
    assert after.decode([done.ids["<|tool|>"]], skip_special_tokens=True) == ""
    text = "once upon, a time"
    assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.chat_template == TEMPLATE
    assert after.special_tokens_map == before.special_tokens_map
    for name in ("generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    plain = grow(base, tmp_path / "plain", ["<|tool|>"], special=False)
    after = AutoTokenizer.from_pretrained(tmp_path / "plain")
    assert after.decode([plain.ids["<|tool|>"]], skip_special_tokens=True) == "<|tool|>"


def test_tied_embeddings_in_several_files(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    make_trained_run(tmp_path)
    write_base(tmp_path / "base")
    base = tmp_path / "base"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    rows = Tokenizer.load(base).vocab_size
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=rows, tie_word_embeddings=True, **sizes)).eval()
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="20KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    done = grow(base, tmp_path / "out", TOKENS)
    assert (done.tensors, done.before) == (1, rows)
    assert read_pretrained(tmp_path / "out")[0].padded_vocab_size == done.rows
    ids = torch.randint(0, rows, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = model(input_ids=ids).logits, theirs(tmp_path / "out", dtype=torch.float32)(ids).logits
    torch.testing.assert_close(got[..., :rows], expected, rtol=1e-5, atol=1e-5)


def test_the_bias_of_an_encoders_head(tmp_path) -> None:
    from transformers import AutoModelForMaskedLM

    from megatrain.data.text.tokenizer import write_tokenizer
    from tests.distributed.classifiers import make_base

    make_trained_run(tmp_path)
    base = make_base(tmp_path / "base", "bert", tmp_path / "tokenizer")
    write_tokenizer(Tokenizer.load(tmp_path / "tokenizer"), base)
    added = [f"<{number}>" for number in range(130)]
    done = grow(base, tmp_path / "out", added)
    assert done.rows > done.before
    ids = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    logits = []
    for folder in (base, tmp_path / "out"):
        with torch.no_grad():
            logits.append(AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()(ids).logits)
    torch.testing.assert_close(logits[1][..., :200], logits[0][..., :200], rtol=1e-5, atol=1e-5)
    assert logits[1].shape[-1] == done.rows


def test_of_a_run_by_the_command(tmp_path, capsys) -> None:
    run = make_trained_run(tmp_path)
    (tmp_path / "tokens.txt").write_text("<a>\n\n<b>\n")
    app(
        ["grow", str(run.path), str(tmp_path / "out"), "--tokens-file", str(tmp_path / "tokens.txt")],
        standalone_mode=False,
    )
    assert "'<a>' (" in capsys.readouterr().out
    assert json.loads((tmp_path / "out/config.json").read_text())["vocab_size"] % 64 == 0
    assert not list(tmp_path.glob(".grow-*"))


@pytest.mark.parametrize(
    ("tokens", "said"),
    [(["<|eot|>"], "is a token of the tokenizer already"), (["a!", "a!"], "already"), ([" "], "--token: is empty")],
)
def test_what_is_no_new_token(tmp_path, base, tokens, said) -> None:
    with pytest.raises(ConfigError, match=said):
        grow(base, tmp_path / "out", tokens)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="already exists"):
        grow(base, base, ["<x>"])
