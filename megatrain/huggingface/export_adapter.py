"""The adapter of a run in PEFT's format: adapter_config.json and adapter_model.safetensors, beside the tokenizer."""

import os
import shutil
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megatrain.adapters.registry import ADAPTERS
from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.base.files import reason, write_json
from megatrain.base.registry import load_object
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.read import read_tensors
from megatrain.checkpoint.state import WEIGHT, State, read_state
from megatrain.config import ModelSection
from megatrain.data.text.tokenizer_files import read_tokenizer, write_files
from megatrain.huggingface.export_files import not_exported
from megatrain.huggingface.merged import base_of, weights_of_base
from megatrain.huggingface.names import joined, wholes
from megatrain.model.architecture import parameter_table, row_of, rows
from megatrain.model.parameter_row import ParameterRow
from megatrain.run.directory import locate
from megatrain.run.inputs import load_run

_PREFIX = "base_model.model."


def export_adapter(path: Path, out: Path, *, dtype: str = "float32") -> tuple[Path, Path]:
    """Write a folder that `peft.PeftModel.from_pretrained` loads onto the base.

    Args:
        path: a run, of which the newest checkpoint that verifies is taken, or a checkpoint inside a run.
        out: does not exist, or is an empty folder.
        dtype: of the weights.

    Returns:
        The checkpoint that was read, and where its base lies.

    Raises:
        CheckpointError: there is no whole checkpoint, its base is gone, or the folder cannot be written.
        ConfigError: the run has no adapter, or one that PEFT has no form for; or the folder holds something.
    """
    given, out = out, Path(os.path.abspath(out))  # noqa: PTH100 - links stay as they are given
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{given}: already exists; give the name of a new folder")
    checkpoint = find_checkpoint(path)
    state, run = read_state(checkpoint), locate(path)[0]
    linear = _linear(state.model, checkpoint)
    base = base_of(checkpoint, state)
    tensors, saved = _tensors(checkpoint, state, getattr(torch, dtype))
    config = load_run(run, verify=True)
    fields = _config(state.model, linear, base, saved)
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        write_json(temporary / "adapter_config.json", fields)
        if config.tokenizer is not None:
            write_files(temporary, read_tokenizer(config.tokenizer.path))
        if out.exists():
            out.rmdir()
        temporary.rename(out)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{given}: cannot be written: {reason(error)}. Nothing of it is left.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return checkpoint, base


def _linear(model: ModelSection, checkpoint: Path) -> list[ParameterRow]:
    """Rows of the weights that the adapter stands beside."""
    if model.adapter is None:
        raise ConfigError(f"{checkpoint}: has no adapter. Export the whole model: leave --adapter out")
    if model.has_lasting_adapter:
        raise ConfigError(f"{checkpoint}: {not_exported(model)}")
    if not ADAPTERS.get(model.adapter.name).peft:
        raise ConfigError(f"{checkpoint}: PEFT has no form for an adapter {model.adapter.name}. Leave --adapter out")
    adapted = {row.name.rpartition(".")[0] for row in rows(model) if row.of_adapter}
    found = [row for row in rows(model) if row.name.rpartition(".")[0] in adapted and row.name.endswith(".weight")]
    for row in found:
        if row.theirs is None or row.theirs.parts > 1:
            theirs = "" if row.theirs is None else f" ({row.theirs.name})"
            raise ConfigError(
                f"{checkpoint}: {row.name}: is a part of a larger matrix in transformers{theirs}, for which PEFT has "
                "no adapter. Export the merged model: leave --adapter out"
            )
    return found


def _tensors(checkpoint: Path, state: State, kind: torch.dtype) -> tuple[dict[str, Tensor], list[str]]:
    """PEFT's names; and the modules that are saved whole."""
    model = state.model
    assert model.adapter is not None
    renamed = load_object(ADAPTERS.get(model.adapter.name).peft_tensors)
    trained = {row.name: row for row in parameter_table(model) if row.trained}
    ours = read_tensors(checkpoint, kind=WEIGHT, names=trained)
    modules: dict[str, dict[str, Tensor]] = {}
    for name, row in trained.items():
        if row.of_adapter:
            module, _, leaf = name.rpartition(".")
            modules.setdefault(module, {})[leaf] = ours[name]
    found: dict[str, Tensor] = {}
    of_base = weights_of_base(checkpoint, state)
    for module, tensors in modules.items():
        theirs = row_of(model, f"{module}.weight").theirs
        assert theirs is not None, "else it was refused"
        weight = partial(of_base, f"{module}.weight")
        for leaf, tensor in renamed(model.adapter, tensors, weight).items():
            found[f"{_PREFIX}{theirs.name.removesuffix('.weight')}.{leaf}"] = tensor.to(kind).contiguous()
    ours = {name: tensor.to(kind) for name, tensor in ours.items()}
    whole = {n: w for n, w in wholes(model.merged).items() if w.rows[0].name in trained}
    found |= {f"{_PREFIX}{name}": joined(one, ours) for name, one in whole.items()}
    return found, sorted({name.rpartition(".")[0] for name in whole})


def _config(model: ModelSection, linear: list[ParameterRow], base: Path, saved: list[str]) -> dict[str, object]:
    assert model.adapter is not None
    transposed = any(row.theirs is not None and row.theirs.transposed for row in linear)
    fields: dict[str, object] = load_object(ADAPTERS.get(model.adapter.name).peft)(model.adapter, linear, transposed)
    kinds = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS"}
    language = "CAUSAL_LM" if model.is_causal else None
    return fields | {
        "base_model_name_or_path": str(base),
        "task_type": language if model.num_labels is None else kinds[model.classifies],
        "modules_to_save": saved or None,
        "inference_mode": True,
    }
