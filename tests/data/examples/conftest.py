import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from megatrain.data.examples.packing import Example
from megatrain.data.text.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.jsonl").write_text(json.dumps({"text": "who what where when and the answer to the question " * 9}))
    return train_tokenizer([str(folder / "text.jsonl")], folder, 300)


@pytest.fixture
def write_pairs(tmp_path) -> Callable[..., str]:
    """Lines, each a dict or the text itself, to a jsonl file."""

    def write(*lines: dict | str, name: str = "pairs.jsonl") -> str:
        path: Path = tmp_path / name
        texts = (line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines)
        path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def make_examples() -> Callable[..., list[Example]]:
    """Examples of (prompt tokens, response tokens) with no token in common but the end of text, 1."""

    def make(*lengths: tuple[int, int]) -> list[Example]:
        examples, next_token = [], 10
        for prompt, response in lengths:
            tokens = [*range(next_token, next_token + prompt + response), 1]
            examples.append(Example(np.array(tokens, dtype=np.int32), prompt))
            next_token += prompt + response
        return examples

    return make
