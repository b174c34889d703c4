"""The weights of a BERT, and where its tensor-parallel regions begin and end (arXiv 1909.08053)."""

from collections.abc import Iterator, Mapping
from typing import Literal

from megatrain.model.class_table import class_rows
from megatrain.model.families.bert.section import BertSection
from megatrain.model.family import Divisible, Region
from megatrain.model.parameter_row import ONES, ZEROS, Kind, Normal, ParameterRow

REGIONS = {
    r"embedding": Region(leave=True),
    r"position_embedding": Region(whole=True),
    r"token_type_embedding": Region(whole=True),
    r"blocks\.\d+\.attention": Region(enter=True, leave=True),
    r"blocks\.\d+\.mlp": Region(enter=True, leave=True),
    r"head": Region(enter=True),  # the loss leaves reduced; see kernels/cross_entropy.py
}
_Dim = Literal[0, 1]  # of an [out, in] weight
_COLUMN: _Dim = 0
_ROW: _Dim = 1


def rows(section: BertSection) -> tuple[ParameterRow, ...]:
    """Matrices and embeddings are normal with standard deviation initializer_range; norm weights are one, biases
    zero."""
    width, inner, layers = section.hidden_size, section.mlp_width, range(section.num_hidden_layers)
    model = their_model(section)
    layer = f"{model}.encoder.layer.{{}}"
    return (
        _embedding(section, "embedding", f"{model}.embeddings.word_embeddings", section.padded_vocab_size, split=0),
        _embedding(
            section,
            "position_embedding",
            f"{model}.embeddings.position_embeddings",
            section.max_position_embeddings,
        ),
        _embedding(
            section, "token_type_embedding", f"{model}.embeddings.token_type_embeddings", section.type_vocab_size
        ),
        *_norm("embedding_norm", f"{model}.embeddings.LayerNorm", width),
        *(
            row
            for name in ("query", "key", "value")
            for row in _linear(section, f"attention.{name}", f"{layer}.attention.self.{name}", width, width, _COLUMN)
        ),
        *_linear(section, "attention.output", f"{layer}.attention.output.dense", width, width, _ROW),
        *_norm("blocks.{}.attention_norm", f"{layer}.attention.output.LayerNorm", width, layers),
        *_linear(section, "mlp.up", f"{layer}.intermediate.dense", inner, width, _COLUMN),
        *_linear(section, "mlp.down", f"{layer}.output.dense", width, inner, _ROW),
        *_norm("blocks.{}.mlp_norm", f"{layer}.output.LayerNorm", width, layers),
        *(_of_tokens(section, _HEADS[model]) if section.num_labels is None else _of_classes(section, model)),
    )


def their_model(section: BertSection) -> Literal["bert", "roberta"]:
    """The model type of `transformers`: they differ in the names of their weights, and in where positions begin."""
    return "roberta" if section.is_roberta else "bert"


_HEADS = {
    "bert": {
        "dense": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "bias": "cls.predictions.bias",
    },
    "roberta": {"dense": "lm_head.dense", "norm": "lm_head.layer_norm", "bias": "lm_head.bias"},
}


def _embedding(
    section: BertSection, name: str, theirs: str, count: int, split: Literal[0] | None = None
) -> ParameterRow:
    return ParameterRow(
        name=f"{name}.weight",
        shape=(count, section.hidden_size),
        kind=Kind.EMBEDDING,
        init=Normal(section.initializer_range),
        split=split,
        huggingface=f"{theirs}.weight",
    )


def _linear(section: BertSection, name: str, theirs: str, out: int, into: int, split: _Dim) -> Iterator[ParameterRow]:
    """Weight and bias. The bias of a row-parallel layer is whole: it is added to the sum over the ranks."""
    layers = range(section.num_hidden_layers)
    yield ParameterRow(
        name=f"blocks.{{}}.{name}.weight",
        shape=(out, into),
        kind=Kind.ATTENTION if name.startswith("attention") else Kind.MLP,
        init=Normal(section.initializer_range),
        split=split,
        huggingface=f"{theirs}.weight",
        layers=layers,
    )
    yield ParameterRow(
        name=f"blocks.{{}}.{name}.bias",
        shape=(out,),
        kind=Kind.BIAS,
        init=ZEROS,
        split=_COLUMN if split == _COLUMN else None,
        decay=False,
        huggingface=f"{theirs}.bias",
        layers=layers,
    )


def _of_tokens(section: BertSection, theirs: Mapping[str, str]) -> Iterator[ParameterRow]:
    """The head of masked language modelling, whose matrix is the embedding."""
    yield from _dense(section, "transform.dense", theirs["dense"])
    yield from _norm("transform.norm", theirs["norm"], section.hidden_size)
    yield ParameterRow(
        name="head.bias",
        shape=(section.padded_vocab_size,),
        kind=Kind.BIAS,
        init=ZEROS,
        split=0,
        decay=False,
        huggingface=theirs["bias"],
    )


def _of_classes(section: BertSection, model: str) -> Iterator[ParameterRow]:
    """The head of a classifier. RoBERTa has the same layers under other names."""
    if section.classifies != "sequence":
        yield from class_rows(section, "classifier" if section.classifies == "token" else "qa_outputs", bias=True)
        return
    bert = model == "bert"
    yield from _dense(section, "pooler.dense", "bert.pooler.dense" if bert else "classifier.dense")
    yield from class_rows(section, "classifier" if bert else "classifier.out_proj", bias=True)


def _dense(section: BertSection, name: str, theirs: str) -> Iterator[ParameterRow]:
    width = section.hidden_size
    yield ParameterRow(
        name=f"{name}.weight",
        shape=(width, width),
        kind=Kind.HEAD,
        init=Normal(section.initializer_range),
        huggingface=f"{theirs}.weight",
    )
    yield ParameterRow(
        name=f"{name}.bias",
        shape=(width,),
        kind=Kind.BIAS,
        init=ZEROS,
        decay=False,
        huggingface=f"{theirs}.bias",
    )


def _norm(name: str, theirs: str, width: int, layers: range | None = None) -> Iterator[ParameterRow]:
    for leaf, init in (("weight", ONES), ("bias", ZEROS)):
        yield ParameterRow(
            name=f"{name}.{leaf}",
            shape=(width,),
            kind=Kind.NORM,
            init=init,
            decay=False,
            huggingface=f"{theirs}.{leaf}",
            layers=layers,
        )


def divisible(section: BertSection) -> tuple[Divisible, ...]:
    return (
        Divisible(number=section.attention_heads, field="num_attention_heads", words="attention heads"),
        Divisible(field="intermediate_size", number=section.mlp_width),
    )
