"""`python -m megatrain.model.families.transformers.describe`: a configuration on standard input -> what a
`TransformersSection` says of it, as JSON. The model is built on the meta device: it takes no memory."""

import inspect
import itertools
import json
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

from megatrain.base.errors import ConfigError
from megatrain.model.families.transformers import attention
from megatrain.model.families.transformers.build import causal_lm, configured, has_attention_functions
from megatrain.model.families.transformers.laws import Laws
from megatrain.model.parameter_row import Kind

_BATCH, _LENGTH = 2, 8  # of what the model is called with


def describe(said: dict[str, Any]) -> dict[str, Any]:
    """Fields of the section.

    Raises:
        ConfigError: there is no such model, or it cannot be trained here.
    """
    try:
        return _described(configured(said))
    finally:
        attention.register()


def _described(config: PretrainedConfig) -> dict[str, Any]:
    mixes, seen = None, []

    def probe(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
        seen.append((attention.misfit(module, query, key, value, mask, options), options.get("sliding_window")))
        return query.new_empty(*query.transpose(1, 2).shape[:3], value.shape[-1]), None

    AttentionInterface.register(attention.NAME, probe)
    if not has_attention_functions(config):
        mixes = "its attention is its own"
    with torch.device("meta"), Laws() as laws:
        model = _built(config, None if mixes else attention.NAME)
        model.initialize_weights()
    model.eval()
    _refuse(model)
    layers = _layers(model, config)
    positions = "position_ids" in inspect.signature(model.forward).parameters
    if mixes is None:
        mixes = _why_mixed(model, config, seen, positions)
        if mixes is not None:
            model.set_attn_implementation("eager")
    described = {
        "architecture": type(model).__name__,
        "prefix": f"{model.base_model_prefix}." if model.base_model is not model else "",
        "layers": layers,
        "embedding": _name(model, model.get_input_embeddings()),
        "head": _name(model, model.get_output_embeddings()),
        "tied": _copies(model),
        "projects": _projects(model),
        "takes_positions": positions,
        "mixes": mixes,
        "weights": list(_weights(model, layers, laws)),
    }
    return {**_sizes(model, config, described), "description": described}


def _built(config: PretrainedConfig, function: str | None) -> PreTrainedModel:
    try:
        return causal_lm(config, function)
    except Exception as error:  # whatever a model of transformers raises
        raise ConfigError(f"transformers cannot build this model without memory: {_line(error)}") from None


def _refuse(model: PreTrainedModel) -> None:
    kept = next((name for name in model.state_dict() if name in dict(model.named_buffers())), None)
    if kept is not None:
        raise ConfigError(f"{type(model).__name__} keeps {kept} beside its weights, and checkpoints hold weights only")
    experts = next((name for name, _ in model.named_parameters() if "expert" in name), None)
    if experts is not None:
        raise ConfigError(f"{type(model).__name__} has experts ({experts}), and nothing here balances their load")
    if model.get_output_embeddings() is None or not isinstance(model.get_input_embeddings(), nn.Embedding):
        raise ConfigError(f"{type(model).__name__} has no embedding and head that transformers knows of")


def _layers(model: PreTrainedModel, config: PretrainedConfig) -> str:
    """Name of the list of layers: of those of its length the one with the most weights."""
    count = config.num_hidden_layers
    lists = [
        (sum(p.numel() for p in module.parameters()), name)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if not lists:
        raise ConfigError(f"{type(model).__name__} has no list of its {count} layers")
    return max(lists)[1]


def _why_mixed(
    model: PreTrainedModel, config: PretrainedConfig, seen: list[tuple[str | None, int | None]], positions: bool
) -> str | None:
    """Why megatrain's attention, whose documents do not see each other, cannot stand in the model's layers."""
    if not positions:
        return "it counts positions over a whole sequence"
    other = next((name for name, module in model.named_modules() if isinstance(module, nn.Conv1d)), None)
    if other is not None:
        return f"{other} mixes neighbouring positions"
    places = torch.arange(_LENGTH, device="meta").expand(_BATCH, -1)
    bounds = torch.zeros(3, dtype=torch.int32, device="meta")
    if (error := _called(model, position_ids=places, attention_mask=attention.as_mask(bounds))) is not None:
        return error
    layers = config.num_hidden_layers
    if len(seen) != layers:
        return f"{layers - len(seen)} of its {layers} layers have no attention that can be replaced"
    types = getattr(config, "layer_types", None) or []
    if any(kind not in ("full_attention", "sliding_attention") for kind in types):
        return "it has layers that are neither of full nor of sliding attention"
    everywhere = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    local = types.count("sliding_attention") if types else layers * bool(everywhere)
    if sum(window is not None for _, window in seen) != local:
        return "its masks alone know its windows"
    return next((why for why, _ in seen if why is not None), None)


def _called(model: PreTrainedModel, **options: Any) -> str | None:
    """What a call without values raises."""
    try:
        with torch.no_grad():
            model(input_ids=torch.zeros(_BATCH, _LENGTH, dtype=torch.int64, device="meta"), **options)
    except Exception as error:  # whatever a model of transformers raises
        return f"it cannot be called so: {_line(error)}"
    return None


def _projects(model: PreTrainedModel) -> bool:
    """Whether what the head returns comes back as it is: seen by what it returns."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return False
    returned: list[Tensor] = []

    def stand_in(hidden: Tensor) -> Tensor:
        returned.append(hidden.new_empty(*hidden.shape[:-1], head.out_features))
        return returned[-1]

    head.forward = stand_in  # type: ignore[method-assign, assignment]
    try:
        with torch.no_grad():
            out = model(input_ids=torch.zeros(_BATCH, _LENGTH, dtype=torch.int64, device="meta"))
    except Exception as error:  # whatever a model of transformers raises
        raise ConfigError(f"transformers cannot call this model without values: {_line(error)}") from None
    finally:
        del head.forward
    return len(returned) == 1 and returned[0].shape[:2] == (_BATCH, _LENGTH) and out.logits is returned[0]


def _copies(model: PreTrainedModel) -> list[str]:
    once = {name for name, _ in model.named_parameters()}
    return [name for name, _ in model.named_parameters(remove_duplicate=False) if name not in once]


def _weights(model: PreTrainedModel, layers: str, laws: Laws) -> Iterator[dict[str, Any]]:
    """Embeddings, layers, and what follows them; the same weight of neighbouring layers is one."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    found: dict[str, list[tuple[int | None, dict[str, Any]]]] = {}
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        law = laws.of(parameter)
        if law is not None and law.init != "constant" and parameter.ndim != 2:
            law = None  # only matrices are drawn
        layer, template = None, name
        if name.startswith(f"{layers}."):
            number, rest = name.removeprefix(f"{layers}.").split(".", 1)
            layer, template = int(number), f"{layers}.{{}}.{rest}"
        facts = {
            "shape": list(parameter.shape),
            "kind": _kind(name, module, parameter, is_head=module is head).value,
            "init": law.init if law else None,
            "value": law.value if law else 0.0,
            "vocabulary": module in (embedding, head) and parameter.shape[0] == embedding.num_embeddings,
        }
        found.setdefault(template, []).append((layer, facts))
    table = [row for template, entries in found.items() for row in _rows(template, entries)]
    yield from sorted(table, key=lambda row: (row["kind"] != "embedding", row["first"] is None))


def _rows(template: str, entries: list[tuple[int | None, dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    for _, run in itertools.groupby(enumerate(entries), key=lambda one: (str(one[1][1]), (one[1][0] or 0) - one[0])):
        neighbours = [entry for _, entry in run]
        yield {"name": template, "first": neighbours[0][0], "last": neighbours[-1][0], **neighbours[0][1]}


def _kind(name: str, module: nn.Module, parameter: Tensor, *, is_head: bool) -> Kind:
    if "norm" in type(module).__name__.lower():
        return Kind.NORM
    if parameter.ndim < 2:
        return Kind.BIAS
    if is_head:
        return Kind.HEAD
    if isinstance(module, nn.Embedding):
        return Kind.EMBEDDING
    return Kind.ATTENTION if "attn" in name or "attention" in name else Kind.MLP


def _sizes(model: PreTrainedModel, config: PretrainedConfig, described: dict[str, Any]) -> dict[str, Any]:
    """What the planner asks for."""
    width = config.hidden_size
    heads = getattr(config, "num_attention_heads", None) or 1
    groups = getattr(config, "num_key_value_heads", None) or heads
    wide = [side for row in described["weights"] if row["kind"] == "mlp" for side in row["shape"] if side != width]
    positions = getattr(config, "max_position_embeddings", None)
    return {
        "vocab_size": model.get_input_embeddings().num_embeddings,
        "num_hidden_layers": config.num_hidden_layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_key_value_heads": groups if heads % groups == 0 else heads,
        "head_dim": getattr(config, "head_dim", None) or max(1, width // heads),
        "intermediate_size": max(wide, default=width),
        "tie_word_embeddings": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "initializer_range": getattr(config, "initializer_range", None) or 0.02,
        **({"max_position_embeddings": positions} if isinstance(positions, int) else {}),
    }


def _name(model: PreTrainedModel, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


if __name__ == "__main__":
    try:
        print(json.dumps(describe(json.load(sys.stdin))))
    except ConfigError as error:
        print(json.dumps({"error": str(error)}))
