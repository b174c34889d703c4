"""What a base has beside its weights, an export of its fine-tuning has as well: a test for each thing."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatrain.data.text.tokenizer_files import read_tokenizer
from megatrain.huggingface.export import export
from tests.huggingface.test_export import TEMPLATE, tuned, write_base
from tests.trained import make_trained_run

RAG = "{% for m in messages %}{{ m['content'] }} of {{ documents | length }}<|eot|>{% endfor %}"
OTHERS = {  # as older versions of transformers and other programs write them
    "special_tokens_map.json": b'{"eos_token": "<|end|>", "additional_special_tokens": ["<|eot|>"]}',
    "added_tokens.json": b'{"<|eot|>": 1}',
    "vocab.json": b'{"a": 0}',
    "merges.txt": b"#version: 0.2\n",
    "vocab.txt": b"a\n",
    "tokenizer.model": b"\x0a\x0e\x0a\x05",
    "additional_chat_templates/rag.jinja": RAG.encode(),
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> SimpleNamespace:
    """A base, and an export of a fine-tuning of it that was made when the base was gone."""
    folder = tmp_path_factory.mktemp("keeps")
    make_trained_run(folder)
    write_base(folder / "base")
    (folder / "base/additional_chat_templates").mkdir()
    for name, content in OTHERS.items():
        (folder / "base" / name).write_bytes(content)
    run = tuned(folder, "base", 16)
    shutil.move(folder / "base", folder / "elsewhere")
    return SimpleNamespace(base=folder / "elsewhere", out=export(run.path, folder / "out").folder, run=run)


def loaded(folder: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "generation_config.json", *OTHERS])
def test_a_file_is_as_it_was(pair, name) -> None:
    assert (pair.out / name).read_bytes() == (pair.base / name).read_bytes()


def test_nothing_else_of_the_tokenizer_is_left_behind(pair) -> None:
    weights = {"model.safetensors", "config.json"}
    there = {str(file.relative_to(pair.base)) for file in pair.base.rglob("*") if file.is_file()}
    assert {name for name in there - weights if not (pair.out / name).is_file()} == set()


def test_special_tokens(pair) -> None:
    before, after = loaded(pair.base), loaded(pair.out)
    assert after.special_tokens_map == before.special_tokens_map
    assert after.all_special_ids == before.all_special_ids
    assert len(after.all_special_ids) > 2


def test_the_chat_template(pair) -> None:
    chat = [{"role": "user", "content": "once"}]
    after = loaded(pair.out)
    assert after.chat_template["default"] == TEMPLATE
    assert after.apply_chat_template(chat, tokenize=False) == "<|turn|>user: once<|eot|>"


def test_a_template_with_a_name(pair) -> None:
    chat = [{"role": "user", "content": "once"}]
    said = loaded(pair.out).apply_chat_template(chat, chat_template="rag", documents=[{"text": "a"}], tokenize=False)
    assert said == "once of 1<|eot|>"


def test_the_generation_config(pair) -> None:
    from transformers import GenerationConfig

    after = GenerationConfig.from_pretrained(pair.out)
    assert (after.do_sample, after.temperature, after.top_p) == (True, 0.6, 0.9)
    assert after.eos_token_id == GenerationConfig.from_pretrained(pair.base).eos_token_id


def test_the_maximum_length(pair) -> None:
    config = json.loads((pair.out / "config.json").read_text())
    assert config["max_position_embeddings"] == loaded(pair.out).model_max_length == 64


def test_a_name_that_leaves_the_folder_is_no_template(pair, tmp_path) -> None:
    shutil.copytree(pair.base, tmp_path / "base")
    (tmp_path / "base/additional_chat_templates/.hidden.jinja").write_text("x")
    (tmp_path / "base/additional_chat_templates/notes.txt").write_text("x")
    named = [name for name in read_tokenizer(str(tmp_path / "base")) if "/" in name]
    assert named == ["additional_chat_templates/rag.jinja"]
