"""A Llama with a bias on every linear layer, which transformers knows as well."""

import math
from typing import Any, Literal

from megatrain.model.architecture import ModelSection
from megatrain.model.family import FAMILIES, Divisible, ModelFamily, Region
from megatrain.model.parameter_row import ONES, ZEROS, Kind, Normal, ParameterRow


class ToySection(ModelSection):
    family: Literal["toy"] = "toy"
    heads: int = 4

    @property
    def attention_heads(self) -> int:
        return self.heads

    @property
    def mlp_width(self) -> int:
        return 2 * self.hidden_size


def rows(section: ToySection) -> tuple[ParameterRow, ...]:
    width, layers = section.hidden_size, range(section.num_hidden_layers)
    inside = Normal(section.initializer_range)
    into_stream = Normal(section.initializer_range / math.sqrt(2 * section.num_hidden_layers))
    embedding = {"shape": (section.padded_vocab_size, width), "init": inside, "split": 0}

    def linear(name: str, theirs: str, out: int, into: int, kind: Kind) -> tuple[ParameterRow, ParameterRow]:
        row_parallel = name.endswith(("output", "down"))
        weight = ParameterRow(
            name=f"blocks.{{}}.{name}.weight",
            shape=(out, into),
            kind=kind,
            init=into_stream if row_parallel else inside,
            split=1 if row_parallel else 0,
            huggingface=f"model.layers.{{}}.{theirs}.weight",
            layers=layers,
        )
        bias = ParameterRow(
            name=f"blocks.{{}}.{name}.bias",
            shape=(out,),
            kind=Kind.BIAS,
            init=ZEROS,
            split=None if row_parallel else 0,
            decay=False,
            huggingface=f"model.layers.{{}}.{theirs}.bias",
            layers=layers,
        )
        return weight, bias

    def norm(name: str, theirs: str, of: range | None) -> ParameterRow:
        return ParameterRow(
            name=f"{name}.weight", shape=(width,), kind=Kind.NORM, init=ONES, decay=False, huggingface=theirs, layers=of
        )

    return (
        ParameterRow(
            name="embedding.weight", kind=Kind.EMBEDDING, huggingface="model.embed_tokens.weight", **embedding
        ),
        norm("blocks.{}.attention_norm", "model.layers.{}.input_layernorm.weight", layers),
        *linear("attention.query", "self_attn.q_proj", width, width, Kind.ATTENTION),
        *linear("attention.key", "self_attn.k_proj", width, width, Kind.ATTENTION),
        *linear("attention.value", "self_attn.v_proj", width, width, Kind.ATTENTION),
        *linear("attention.output", "self_attn.o_proj", width, width, Kind.ATTENTION),
        norm("blocks.{}.mlp_norm", "model.layers.{}.post_attention_layernorm.weight", layers),
        *linear("mlp.gate", "mlp.gate_proj", section.mlp_width, width, Kind.MLP),
        *linear("mlp.up", "mlp.up_proj", section.mlp_width, width, Kind.MLP),
        *linear("mlp.down", "mlp.down_proj", width, section.mlp_width, Kind.MLP),
        norm("norm", "model.norm.weight", None),
        ParameterRow(name="head.weight", kind=Kind.HEAD, huggingface="lm_head.weight", **embedding),
    )


def huggingface_config(section: ToySection) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": True,
        "mlp_bias": True,
        "num_hidden_layers": section.num_hidden_layers,
        "hidden_size": section.hidden_size,
        "num_attention_heads": section.heads,
        "num_key_value_heads": section.heads,
        "intermediate_size": section.mlp_width,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


FAMILIES.register(
    "toy",
    ModelFamily(
        section=ToySection,
        rows=rows,
        module="toy.module:Toy",
        regions={
            r"embedding": Region(enter=False, leave=True),
            r"blocks\.\d+\.(attention|mlp)": Region(enter=True, leave=True),
            r"head": Region(enter=True, leave=False),
        },
        divisible=lambda section: (Divisible(number=section.heads, field="heads", words="attention heads"),),
        huggingface_config=huggingface_config,
    ),
)
