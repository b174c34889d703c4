"""A configuration -> the model of `transformers`, whose parameters take no memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from megatrain.base.errors import ConfigError


def configured(said: dict[str, Any]) -> PretrainedConfig:
    """
    Raises:
        ConfigError: the installed transformers knows no causal language model of this type, or a field is wrong.
    """
    fields = dict(said)
    kind = fields.pop("model_type", None)
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        import transformers

        known = f"transformers {transformers.__version__} has no causal language model of it"
        raise ConfigError(f"model_type: is {str(kind)[:60]!r}: megatrain has no family for it, and {known}")
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind](**fields)
    except Exception as error:  # whatever a class of transformers says of a field
        raise ConfigError(f"transformers takes no such configuration: {error}") from None
    config.use_cache = False
    config.output_attentions = config.output_hidden_states = False
    return config


def causal_lm(config: PretrainedConfig, attention: str | None) -> PreTrainedModel:
    """On torch's default device, in fp32.

    Args:
        attention: name of an attention function; None: what transformers prefers.
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_config(
        config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=False
    )
    return model


def has_attention_functions(config: PretrainedConfig) -> bool:
    """Whether the model's layers take an attention function by its name."""
    return bool(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._supports_attention_backend)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While it is open, parameters of modules are made on the meta device, and buffers on the CPU, with their values:
    they are computed where a model is made, and nowhere else.

    A parameter that replaces another of its module, such as a tied one, stays the object that it is.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        with torch.device("cpu"), _Unfilled():
            yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


class _Unfilled(TorchFunctionMode):
    """Random values are not drawn: memory that nobody writes is not taken."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))
