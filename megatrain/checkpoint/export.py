"""A checkpoint as a folder that Hugging Face's libraries load: safetensors, config.json, and the tokenizer.

Written beside its place and renamed, so that it is there as a whole or not at all. One file's tensors are in memory at
a time, whatever the size of the model.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import save_file

from megatrain import __version__
from megatrain.checkpoint.manifest import find_checkpoint, read_state
from megatrain.checkpoint.read import read_tensors
from megatrain.config import ModelSection
from megatrain.config_file import load
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.errors import CheckpointError, ConfigError
from megatrain.model.config_json import llama_config
from megatrain.model.huggingface import shapes, their_name
from megatrain.run_dir import RunDir, write_json

DType = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[DType, ...] = get_args(DType)
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    folder: Path
    checkpoint: Path  # that was read
    files: int  # of weights
    parameters: int
    bytes: int  # of weights


def export(
    path: Path,
    out: Path,
    *,
    dtype: DType = "bfloat16",
    shard_bytes: int = 5 * 10**9,
    report: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write `out` for `transformers.AutoModelForCausalLM.from_pretrained` and `AutoTokenizer`.

    Args:
        path: a run, of which the newest checkpoint that verifies is taken, or a checkpoint inside a run.
        out: does not exist, or is an empty folder.
        dtype: of the weights; a checkpoint holds them in float32.
        shard_bytes: the most that one file of weights takes, unless a single tensor is larger.
        report: called with a line after each file.

    Raises:
        CheckpointError: there is no whole checkpoint, or the folder cannot be written.
        ConfigError: the folder holds something.
        DataError: the run's tokenizer cannot be read.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out}: is there already; give the name of a new folder")
    checkpoint = find_checkpoint(path)
    run = RunDir(checkpoint.parent.parent)
    config = load(run.config)
    model = ModelSection.model_validate(read_state(checkpoint)["model"])
    tokenizer = Tokenizer.load(config.tokenizer.path) if config.tokenizer is not None else None
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        files, size = _write_weights(checkpoint, temporary, model, dtype, shard_bytes, report)
        described = llama_config(
            model,
            max_position_embeddings=config.sequence_length,
            dtype=dtype,
            eos_token_id=tokenizer.eos_id if tokenizer else None,
            pad_token_id=tokenizer.pad_id if tokenizer else None,
        )
        write_json(temporary / "config.json", described)
        if tokenizer is not None:
            _write_tokenizer(temporary, tokenizer, config.sequence_length)
        write_json(temporary / "megatrain.json", {"checkpoint": str(checkpoint), "version": __version__})
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except OSError as error:
        raise CheckpointError(f"{error.filename or out}: cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Exported(folder=out, checkpoint=checkpoint, files=files, parameters=model.parameters, bytes=size)


def _write_weights(
    checkpoint: Path, out: Path, model: ModelSection, dtype: DType, shard_bytes: int, report: Callable[[str], None]
) -> tuple[int, int]:
    """How many files, and their tensors' bytes."""
    kind: torch.dtype = getattr(torch, dtype)
    shards = list(_shards(shapes(model), kind.itemsize, shard_bytes))
    total = 0
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        whole = read_tensors(checkpoint, kind="weight", names=names)
        if missing := sorted(set(names) - whole.keys()):
            raise CheckpointError(f"{checkpoint}: has no tensor {missing[0]}")
        tensors = {their_name(name): tensor.to(kind).contiguous() for name, tensor in whole.items()}
        save_file(tensors, out / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        report(f"{file}: {len(tensors)} tensors, {number} of {len(shards)} files")
    if len(shards) > 1:
        write_json(out / _INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    return len(shards), total


def _shards(sizes: dict[str, tuple[int, ...]], number_bytes: int, most: int) -> Iterator[list[str]]:
    """Names in their order, as many together as stay below `most` bytes; a larger tensor stands alone."""
    names: list[str] = []
    used = 0
    for name, shape in sizes.items():
        size = number_bytes * torch.Size(shape).numel()
        if names and used + size > most:
            yield names
            names, used = [], 0
        names.append(name)
        used += size
    yield names


def _write_tokenizer(out: Path, tokenizer: Tokenizer, sequence_length: int) -> None:
    (out / "tokenizer.json").write_bytes(tokenizer.content)
    described: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokenizer.eos_token,
        "pad_token": tokenizer.pad_token,
        "model_max_length": sequence_length,
        "clean_up_tokenization_spaces": False,
    }
    write_json(out / "tokenizer_config.json", described)
    ids = {"eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    (out / "generation_config.json").write_text(json.dumps(ids, indent=2) + "\n", encoding="utf-8")
