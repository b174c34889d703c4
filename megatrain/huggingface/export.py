"""A checkpoint as a folder that Hugging Face's libraries load: safetensors, config.json, and the tokenizer's files.

Written beside its place and renamed, so that it is there as a whole or not at all. One file's tensors are in memory at
a time, whatever the size of the model.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megatrain.base.errors import CheckpointError, ConfigError, MegatrainError
from megatrain.base.files import reason, write_json
from megatrain.checkpoint.average import Reader, last_checkpoints, read_mean
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.state import read_state
from megatrain.config import Config, FinetuneConfig, ModelSection
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.data.text.tokenizer_files import Files, read_tokenizer, write_files
from megatrain.huggingface.base_model import read_base
from megatrain.huggingface.compression import NONE, Compression, is_compressed
from megatrain.huggingface.config_json import CONFIG
from megatrain.huggingface.export_files import Source, described, not_exported
from megatrain.huggingface.merged import MergedWeights
from megatrain.huggingface.names import Whole, folded, joined, wholes
from megatrain.huggingface.pruned import pruned
from megatrain.huggingface.quantized import Quantizer
from megatrain.huggingface.soup import soup
from megatrain.model.class_table import purpose
from megatrain.model.family import FAMILIES
from megatrain.model.parameter_row import ParameterRow
from megatrain.run.directory import RunDir, locate
from megatrain.run.inputs import load_run, own_base, own_positions, read_inputs
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection
from megatrain.version import __version__

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DType = Literal["bfloat16", "float16", "float32"]
DTYPES: tuple[DType, ...] = get_args(DType)
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    folder: Path
    checkpoint: Path  # that was read; of several, the newest
    averaged: tuple[Path, ...]  # checkpoints whose mean was written, the newest first; else the one
    model: ModelSection  # as written
    auto_class: str  # of transformers, that loads it
    files: int  # of weights
    parameters: int
    bytes: int  # of weights


def auto_class(model: ModelSection) -> str:
    """What loads an exported model: "AutoModelForCausalLM", of an encoder "AutoModelForMaskedLM", or of a classifier
    "AutoModelForSequenceClassification", "AutoModelForTokenClassification" or "AutoModelForQuestionAnswering"."""
    if model.num_labels is not None:
        return f"AutoModel{purpose(model, '')}"
    return "AutoModelForCausalLM" if model.is_causal else "AutoModelForMaskedLM"


def export(
    path: Path,
    out: Path,
    *,
    dtype: DType = "bfloat16",
    shard_bytes: int = 5 * 10**9,
    average_last: int = 1,
    average_with: Sequence[Path] = (),
    compression: Compression = NONE,
    report: Callable[[str], None] = lambda line: None,
    warn: Callable[[str], None] = lambda line: None,
) -> Exported:
    """Write `out` for `from_pretrained` of `transformers`: of `auto_class`, and of `AutoTokenizer`.

    Args:
        path: a run, of which the newest checkpoint that verifies is taken, or a checkpoint inside a run.
        out: does not exist, or is an empty folder.
        dtype: of the weights; a checkpoint holds them in float32.
        shard_bytes: the most that one file of weights takes, unless a single tensor is larger.
        average_last: write the mean of so many last checkpoints, of a run or up to the one that is named.
        average_with: other runs or checkpoints: write the mean of all; see `soup`.
        compression: of hidden matrices.
        report: called with a line after each file.
        warn: told what an older run has no copy of, and of damaged checkpoints that no mean is taken of.

    Raises:
        CheckpointError: there is no whole checkpoint, or not as many as are to be averaged; or the folder cannot be
            written.
        ConfigError: the folder holds something, or the model cannot be compressed so.
        DataError: the run's tokenizer cannot be read.
        PreflightError: torchao is not installed, and is needed.
    """
    given, out = out, Path(os.path.abspath(out))  # noqa: PTH100 - links stay as they are given
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{given}: already exists; give the name of a new folder")
    checkpoints = _checkpoints(path, average_last, average_with, warn)
    checkpoint = checkpoints[0]
    source = _source(locate(path)[0], read_state(checkpoint).model.complete, dtype, warn)
    quantizer = _quantizer(source, compression, dtype) if compression.quantize is not None else None
    source = replace(source, quantization=quantizer.config if quantizer is not None else None)
    with _folder(given, out) as temporary:
        files, size = _write_weights(
            checkpoints, temporary, source.model, dtype, shard_bytes, report, compression, quantizer
        )
        write_files(temporary, described(source))
        averaged = {"averaged": [str(folder) for folder in checkpoints]} if len(checkpoints) > 1 else {}
        write_json(temporary / "megatrain.json", {"checkpoint": str(checkpoint), **averaged, "version": __version__})
    return Exported(
        folder=given,
        checkpoint=checkpoint,
        averaged=tuple(checkpoints),
        model=source.model,
        auto_class=auto_class(source.model),
        files=files,
        parameters=sum(math.prod(whole.shape) for whole in wholes(source.model).values()),
        bytes=size,
    )


@contextmanager
def _folder(given: Path, out: Path) -> Iterator[Path]:
    """A folder that takes the place of `out` once it is written. Raises CheckpointError."""
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{given}: cannot be written: {reason(error)}. Nothing of it is left.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _checkpoints(
    path: Path, average_last: int, average_with: Sequence[Path], warn: Callable[[str], None]
) -> list[Path]:
    """Whose mean is written."""
    if average_with:
        return soup([path, *average_with])
    return [find_checkpoint(path)] if average_last == 1 else last_checkpoints(path, average_last, warn=warn)


def load_transformers(path: Path, run: RunDir, *, dtype: DType) -> "PreTrainedModel":
    """The model that `export` would write, in memory and in evaluation mode.

    Raises:
        CheckpointError, DataError: as `export`.
    """
    checkpoint = find_checkpoint(path)
    source = _source(run, read_state(checkpoint).model.complete, dtype, lambda line: None)
    kind: torch.dtype = getattr(torch, dtype)
    weights = _read_weights([checkpoint], wholes(source.model), source.model, kind, MergedWeights().read)
    empty = _empty(source)
    model: PreTrainedModel = type(empty).from_pretrained(None, config=empty.config, state_dict=weights, dtype=kind)
    return model.eval()


def _empty(source: Source) -> "PreTrainedModel":
    """The model that loads what is exported, on the meta device."""
    import transformers

    config = json.loads(described(source)[CONFIG])
    with torch.device("meta"):
        model: PreTrainedModel = getattr(transformers, auto_class(source.model)).from_config(
            transformers.AutoConfig.for_model(**config)
        )
    return model


def _quantizer(source: Source, compression: Compression, dtype: DType) -> Quantizer:
    """Raises ConfigError, PreflightError."""
    assert compression.quantize is not None
    exported = FAMILIES.get(source.model.family).huggingface_exported
    theirs = {exported(source.model, name): whole for name, whole in wholes(source.model).items()}
    return Quantizer(
        compression.quantize,
        {name: whole.shape for name, whole in theirs.items()},
        [name for name, whole in theirs.items() if is_compressed(whole.rows[0])],
        _empty(source),
        getattr(torch, dtype),
    )


def _source(run: RunDir, model: ModelSection, dtype: DType, warn: Callable[[str], None]) -> Source:
    if model.adapter is not None:
        raise ConfigError(f"{run}: {not_exported(model)}")
    config = load_run(run, warn=warn, verify=True)
    base = _base(run, config, warn)
    tokenizer = Tokenizer.load(config.tokenizer.path) if config.tokenizer is not None else None
    if tokenizer is not None and not base:
        # rows that pad the vocabulary belong to no token, and could be drawn
        rows = min(model.padded_vocab_size, tokenizer.vocab_size)
        model = model.model_copy(update={"vocab_size": rows})
    return Source(
        model=model,
        dtype=dtype,
        positions=own_positions(run, config),
        tokenizer=read_tokenizer(config.tokenizer.path) if config.tokenizer is not None else {},
        base=base,
        end_id=tokenizer.eos_id if tokenizer else None,
        end_token=tokenizer.eos_token if tokenizer else None,
        pad_token=tokenizer.pad_token if tokenizer else None,
        pad_id=tokenizer.pad_id if tokenizer else None,
        labels=config.task.classes if model.num_labels is not None else (),
        problem_type=config.task.problem_type,
        ends_labelled=isinstance(config.task, SequenceClassificationSection) and config.task.end_token,
    )


def _base(run: RunDir, config: Config, warn: Callable[[str], None]) -> Files:
    """What a pretrained base said of itself, by the run's own copy; of an older run, where the base still lies."""
    if read_inputs(run) is not None or not isinstance(config, FinetuneConfig):
        return own_base(run)
    try:
        return read_base(config.finetune.base)
    except MegatrainError as error:
        warn(f"{run}: has no copy of what its base said of itself, and the base cannot be read ({error})")
        return {}


def _write_weights(
    checkpoints: list[Path],
    out: Path,
    model: ModelSection,
    dtype: DType,
    shard_bytes: int,
    report: Callable[[str], None],
    compression: Compression = NONE,
    quantizer: Quantizer | None = None,
) -> tuple[int, int]:
    """How many files, and their tensors' bytes."""
    kind: torch.dtype = getattr(torch, dtype)
    tensors_of_theirs = wholes(model)
    shards = list(_shards(tensors_of_theirs, kind.itemsize, shard_bytes))
    total = 0
    is_whole = all(read_state(folder).parameters == "all" for folder in checkpoints)
    read = _read if is_whole else MergedWeights().read
    places: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        wanted = {name: tensors_of_theirs[name] for name in names}
        tensors = _read_weights(checkpoints, wanted, model, kind, read, compression)
        described = {"format": "pt"}
        if quantizer is not None:
            tensors, described = quantizer.flattened(tensors), described | quantizer.metadata
        save_file(tensors, out / file, metadata=described)
        places |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
        report(f"{file}: {len(tensors)} tensors, {number} of {len(shards)} files")
    if len(shards) > 1:
        write_json(out / _INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))})
    return len(shards), total


def _read_weights(
    checkpoints: list[Path],
    wanted: Mapping[str, Whole],
    model: ModelSection,
    kind: torch.dtype,
    read: Reader,
    compression: Compression = NONE,
) -> dict[str, Tensor]:
    """Tensors of theirs, by their names in the class that loads them."""
    rows = {row.name: row for whole in wanted.values() for row in whole.rows}
    ours = _read_all(checkpoints, list(rows), read)
    if compression.prune is not None:
        matrices = [name for name, row in rows.items() if is_compressed(row)]
        ours |= {name: pruned(name, ours[name], compression.prune) for name in matrices}
    cast = {name: _cast(row, ours[name], kind, model.padded_vocab_size) for name, row in rows.items()}
    exported = FAMILIES.get(model.family).huggingface_exported
    return {exported(model, name): joined(whole, cast) for name, whole in wanted.items()}


def _read(checkpoint: Path, names: Collection[str]) -> dict[str, Tensor]:
    return read_tensors(checkpoint, kind="weight", names=names)


def _read_all(checkpoints: list[Path], names: list[str], read: Reader) -> dict[str, Tensor]:
    if len(checkpoints) > 1:
        return read_mean(checkpoints, names, read)
    whole = read(checkpoints[0], names)
    if missing := sorted(set(names) - whole.keys()):
        raise CheckpointError(f"{checkpoints[0]}: has no tensor {missing[0]}")
    return whole


def _cast(row: ParameterRow, tensor: Tensor, kind: torch.dtype, vocabulary: int) -> Tensor:
    """In another dtype, without the rows that pad the vocabulary."""
    rows = vocabulary if row.shape[0] == vocabulary else len(tensor)
    cast = folded(row, tensor[:rows]).to(kind, copy=True).contiguous()
    if tuple(cast.shape) != row.shape:
        raise CheckpointError(f"{row.name}: has shape {tuple(tensor.shape)}, the model section says {row.shape}")
    if not bool(torch.isfinite(cast).all()):
        text = f"has values that {str(kind).removeprefix('torch.')} cannot hold; export it as bfloat16 or float32"
        raise CheckpointError(f"{row.name}: {text if bool(torch.isfinite(tensor).all()) else 'holds NaN or infinity'}")
    return cast


def _shards(tensors: Mapping[str, Whole], number_bytes: int, most: int) -> Iterator[list[str]]:
    """Their names in order, as many together as stay below `most` bytes; a larger tensor stands alone."""
    names: list[str] = []
    used = 0
    for name, whole in tensors.items():
        size = number_bytes * math.prod(whole.shape)
        if names and used + size > most:
            yield names
            names, used = [], 0
        names.append(name)
        used += size
    yield names
