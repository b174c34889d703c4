"""A small run's configuration, and prepared data for it, without the tools that make them."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatrain.config import Config
from megatrain.config.file import parse_config
from megatrain.data.folder.hashed_files import FileRecord
from megatrain.data.folder.index import BlockRecord, Index
from megatrain.data.folder.manifest import Manifest, Recipe, SourceList
from megatrain.run.directory import MANIFEST, RunDir

TINY = """
run: {name: tiny}
model: {num_hidden_layers: 2, hidden_size: 64, num_attention_heads: 4, num_key_value_heads: 2, intermediate_size: 128,
        vocab_size: 512}
data: {sequence_length: 128, train: [{path: data/train}]}
training: {steps: 20, global_batch_size: 8}
cluster: {hardware: cpu, nodes: 1, gpus_per_node: 2}
"""


@pytest.fixture
def tiny() -> Callable[..., Config]:
    """tiny("a.b=1", …): the small run with overrides."""
    return lambda *overrides: parse_config(TINY, name="tiny.yaml", overrides=overrides)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(run: RunDir, step: int, *, samples: int | None = None, batches: Any = ()) -> None:
    """A checkpoint without tensors; `samples`: default: steps of 8 sequences."""
    run.step(step).mkdir(parents=True)
    (run.step(step) / MANIFEST).touch()
    state = {"step": step, "loader": {"position": 8 * step if samples is None else samples}, "batches": batches}
    (run.step(step) / "state.json").write_text(json.dumps(state), encoding="utf-8")


def write_data(
    folder: Path, *, tokens: int = 100_000, vocab_size: int = 500, tokenizer: str = "a", tokenizer_sha256: str = ""
) -> None:
    """A folder as `data prepare` writes it, of ten documents; its shards are sparse, so hashes do not fit."""
    counts = [4097] * ((tokens - 2) // 4096) + [(tokens - 2) % 4096 + 2]  # neighbouring blocks share a token
    shards, files = [], []
    for number, first in enumerate(range(0, len(counts), 64)):
        blocks, offset = [], 512
        for block, count in enumerate(counts[first : first + 64], start=first):
            ends_offset = offset + -(-2 * count // 512) * 512 + 512
            blocks.append(BlockRecord(offset, count, ends_offset, 0 if block else 10, "0" * 32))
            offset = ends_offset + (512 if block else 1024)
        shards.append(blocks)
        files.append(FileRecord(f"shard-{number:05d}.tar", offset, "0" * 64))
    recipe = Recipe(
        part="train",
        holdout=0.0,
        text_field="text",
        sources=SourceList(0, 0, "0" * 64),
        tokenizer_sha256=tokenizer_sha256 or hashlib.sha256(tokenizer.encode()).hexdigest(),
        vocab_size=vocab_size,
        eos_id=0,
        dtype="uint16",
        block_tokens=4096,
        shard_blocks=64,
        packing=None,
        selection={},
        versions={},
    )
    index = Index.of(shards).dumps()
    manifest = Manifest(
        recipe=recipe,
        tokens=tokens,
        documents=10,
        blocks=len(counts),
        packed=None,
        left_out={},
        shards=tuple(files),
        index_sha256=hashlib.sha256(index).hexdigest(),
    )
    folder.mkdir(parents=True)
    for file in files:
        with open(folder / file.name, "wb") as shard:
            shard.truncate(file.bytes)
    (folder / "index.npz").write_bytes(index)
    (folder / "manifest.json").write_text(manifest.dumps(), encoding="utf-8")


def write_tokenizer(folder: Path, *tokens: str, first_id: int = 0, **config: str | None) -> str:
    """A tokenizer.json of these tokens, and a tokenizer_config.json; the SHA-256 of the former."""
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    added = [{"id": number, "content": token} for number, token in enumerate(tokens, start=first_id or 2)]
    content = json.dumps({"model": model, "added_tokens": added}).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return hashlib.sha256(content).hexdigest()
