"""Rows of the parameter table for the head of a classifier, the same in every family. No torch."""

from collections.abc import Iterator

from megatrain.model.architecture import ModelSection, rows
from megatrain.model.parameter_row import CLASS_HEAD, ZEROS, HuggingFaceTensor, Kind, Normal, ParameterRow

_PURPOSES = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}


def class_rows(section: ModelSection, theirs: str, *, bias: bool) -> Iterator[ParameterRow]:
    """A row of the matrix for each label, and rows of padding; `transformers` has those of the labels only.

    Args:
        theirs: name of the linear layer there.
    """
    yield ParameterRow(
        name=CLASS_HEAD[0],
        shape=(section.padded_labels, section.hidden_size),
        kind=Kind.HEAD,
        init=Normal(section.initializer_range),
        split=0,
        huggingface=HuggingFaceTensor(f"{theirs}.weight", rows=section.num_labels),
    )
    if bias:
        yield ParameterRow(
            name=CLASS_HEAD[1],
            shape=(section.padded_labels,),
            kind=Kind.BIAS,
            init=ZEROS,
            split=0,
            decay=False,
            huggingface=HuggingFaceTensor(f"{theirs}.bias", rows=section.num_labels),
        )


def purpose(section: ModelSection, language_model: str) -> str:
    """What the name of the class in `transformers` ends with."""
    if section.num_labels is None:
        return language_model
    return _PURPOSES[section.classifies]


def has_class_head(section: ModelSection) -> bool:
    """Whether the family of a classifier gives it a head of its labels; one that you registered may know of none."""
    return any(row.name == CLASS_HEAD[0] and row.shape[0] == section.padded_labels for row in rows(section))


def is_class_head(section: ModelSection, name: str) -> bool:
    """Whether a weight is the head of a classifier."""
    return section.num_labels is not None and name in CLASS_HEAD
