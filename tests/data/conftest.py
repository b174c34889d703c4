"""A small corpus, a tokenizer trained on it, and a prepared folder, made once."""

import json
import random
from pathlib import Path

import pytest

from megatrain.config import DataSection, Source
from megatrain.data.loading.loader import TrainLoader
from megatrain.data.preparation.prepare import PrepareOptions, prepare
from megatrain.data.text.tokenizer import Tokenizer, train_tokenizer

BLOCK_TOKENS = 256


def write_corpus(file: Path, documents: int, seed: int) -> Path:
    """Documents of 3 to 120 made-up words, one per line."""
    chance = random.Random(seed)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(1, 8))) for _ in range(300)]
    texts = (" ".join(chance.choices(words, k=chance.randint(3, 120))) for _ in range(documents))
    file.write_text("".join(json.dumps({"text": f"{text}."}) + "\n" for text in texts))
    return file


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "a.jsonl", documents=120, seed=1)


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory, corpus) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([str(corpus)], folder, 400)
    return folder


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return Tokenizer.load(tokenizer_folder)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory, corpus, tokenizer_folder) -> Path:
    """Blocks of 256 tokens, four a shard. Read-only: copy it before changing it."""
    out = tmp_path_factory.mktemp("prepared") / "a"
    prepare_small(corpus, out, tokenizer_folder)
    return out


@pytest.fixture(scope="session")
def prepared_other(tmp_path_factory, tokenizer_folder) -> Path:
    """A second, smaller source."""
    folder = tmp_path_factory.mktemp("prepared")
    prepare_small(write_corpus(folder / "b.jsonl", documents=40, seed=2), folder / "b", tokenizer_folder)
    return folder / "b"


def prepare_small(corpus: Path, out: Path, tokenizer: Path, **options) -> None:
    settings = {"block_tokens": BLOCK_TOKENS, "shard_bytes": 4 * BLOCK_TOKENS * 2} | options
    prepare(PrepareOptions(inputs=(str(corpus),), out=out, tokenizer=tokenizer, **settings), progress=None)


@pytest.fixture(scope="session")
def prepare_text():
    """`prepare_small`, for tests that prepare something of their own."""
    return prepare_small


@pytest.fixture(scope="session")
def make_corpus():
    return write_corpus


@pytest.fixture
def make_loader(prepared, prepared_other):
    """Loaders of both sources, 3 : 1; closed when the test ends."""
    opened = []

    def make(*, global_batch_size=8, micro_batch_size=2, data_rank=0, data_size=1, seed=7, **data) -> TrainLoader:
        sources = (Source(path=str(prepared), weight=3.0), Source(path=str(prepared_other)))
        section = DataSection(**{"sequence_length": 32, "train": sources} | data)
        loader = TrainLoader(
            section,
            global_batch_size=global_batch_size,
            micro_batch_size=micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
            seed=seed,
        )
        opened.append(loader)
        return loader

    yield make
    for loader in opened:
        loader.close()
