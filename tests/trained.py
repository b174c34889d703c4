"""A run with one checkpoint, as a training leaves it, made without training."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from megatrain.checkpoint.manifest import FileRecord, Manifest, sha256_of, write_manifest
from megatrain.checkpoint.planner import CompactSavePlanner
from megatrain.checkpoint.storage import HashingWriter
from megatrain.config import ModelSection
from megatrain.config.file import dump_config
from megatrain.config.resolved import ResolvedPretrain
from megatrain.data.text.tokenizer import train_tokenizer
from megatrain.model.architecture import row_of
from megatrain.model.build import build_model
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.initialization import initial_weight, materialize
from megatrain.run.directory import RunDir

VOCABULARY = 384
SEQUENCE = 16


def section(vocab_size: int, *, tied: bool = False) -> ModelSection:
    return LlamaSection(
        num_hidden_layers=2,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=32,
        vocab_size=vocab_size,
        tie_word_embeddings=tied,
        initializer_range=0.3,
    )


def tiny_model(vocab_size: int, *, tied: bool = False) -> nn.Module:
    return random_model(section(vocab_size, tied=tied))


def random_model(config: ModelSection) -> nn.Module:
    with torch.device("meta"):
        model = build_model(config)
    materialize(model, lambda name, p: initial_weight(row_of(config, name), 0))
    return model


def make_config(tokenizer: str, *, tied: bool = False, **sections: dict[str, Any]) -> ResolvedPretrain:
    return ResolvedPretrain.model_validate(
        {
            "run": {"name": "tiny"},
            "model": section(VOCABULARY, tied=tied).model_dump(),
            "tokenizer": {"path": tokenizer},
            "data": {"sequence_length": SEQUENCE, "train": [{"path": "none"}]},
            "training": {"steps": 1, "global_batch_size": 1, "micro_batch_size": 1},
            "parallel": {
                "tensor_parallel": 1,
                "context_parallel": 1,
                "zero_stage": 1,
                "sequence_parallel": False,
                "activation_checkpointing": "none",
            },
            "cluster": {"peak_tflops": 1.0},
            **sections,
        }
    )


def make_trained_run(folder: Path, *, tied: bool = False) -> RunDir:
    """FOLDER/runs/tiny, with a checkpoint of step 10, and the tokenizer it names."""
    (folder / "text.jsonl").write_text(json.dumps({"text": "once upon a time there was a model " * 9}))
    train_tokenizer([str(folder / "text.jsonl")], folder / "tokenizer", 300)
    config = make_config(str(folder / "tokenizer"), tied=tied)
    run = RunDir(folder / "runs" / "tiny")
    run.path.mkdir(parents=True, exist_ok=True)
    run.config.write_text(dump_config(config), encoding="utf-8")
    write_checkpoint(run, 10, config.model)
    return run


def write_checkpoint(run: RunDir, step: int, model: ModelSection) -> None:
    """Random weights of a model."""
    checkpoint = run.step(step)
    checkpoint.mkdir(parents=True)
    writer = HashingWriter(checkpoint)
    weights = {f"weight.{name}": p.detach() for name, p in random_model(model).named_parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        dcp.save(weights, storage_writer=writer, planner=CompactSavePlanner(), no_dist=True)
    (checkpoint / "state.json").write_text(json.dumps({"step": step, "model": model.model_dump()}))
    state = FileRecord(bytes=(checkpoint / "state.json").stat().st_size, sha256=sha256_of(checkpoint / "state.json"))
    files = writer.records | {"state.json": state}
    write_manifest(checkpoint, Manifest(step=step, saved_at="", world_size=1, layout="", version="", files=files))
