"""What a model is made of, without torch: the parameter table.

A family describes its weights once, a row for each kind of weight. Initialisation, tensor parallelism, optimizer
groups, Hugging Face names, the planner's bytes and FLOPs, and checks of foreign weights are functions of these rows; a
test holds them against `named_parameters()` of the family's module.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field

from megatrain.adapters.registry import ADAPTERS, AnyAdapter
from megatrain.base.section import Section
from megatrain.base.types import AUTO, WIDEST, Count, NonNegative, Positive, VocabularySize
from megatrain.model.family import FAMILIES
from megatrain.model.mup import MupSection, parametrised
from megatrain.model.parameter_row import CLASS_HEAD, EMBEDDING, Kind, ParameterRow
from megatrain.model.trained import top_layers, with_adapter
from megatrain.model.window import CAUSAL, Window, positions_seen

LABELS_MULTIPLE = 192  # rows of a class head: 1, 2, 3, 4, 6, 8, 12, 16, … tensor-parallel ranks divide them alike


class ModelSection(Section):
    """What every family's `model:` section has. The planner's formulas ask for the properties."""

    is_causal: ClassVar[bool] = True  # no position sees a later one: a decoder, else an encoder
    plan_is_rough: ClassVar[bool] = False  # it is somebody else's code, of which the planner knows the sizes only
    norm: ClassVar[Literal["rms", "fp32 rms", "layer"]] = "rms"  # torch's, in fp32 whatever the dtype, or LayerNorm

    family: str = "llama"
    num_hidden_layers: Count = Field(le=1_000_000, description="Transformer blocks")
    hidden_size: Count = Field(le=WIDEST, description="width of the residual stream")
    vocab_size: VocabularySize = Field(AUTO, description="auto: the tokenizer's, rounded up to a multiple of 128")
    tie_word_embeddings: bool = False
    initializer_range: Positive = Field(0.02, description="standard deviation of the initial weights")
    mup: MupSection | None = Field(
        None,
        description="maximal update parametrisation: rates of a narrow model for a wide one; default: the standard one",
    )
    num_labels: Count | None = Field(
        None,
        le=10_000,
        description="of a classifier, by its task; its head stands in the place of the vocabulary's",
    )
    classifies: Literal["sequence", "token", "span"] = Field("sequence", description="of a classifier, by its task")
    adapter: AnyAdapter | None = Field(None, description="of a fine-tuning, by finetune.adapter")
    train_layers: NonNegative | None = Field(None, description="of a fine-tuning, by finetune.train_layers")

    @property
    def attention_heads(self) -> int:
        raise NotImplementedError

    @property
    def key_value_heads(self) -> int:
        """At most `attention_heads`, which they divide."""
        return self.attention_heads

    @property
    def head_size(self) -> int:
        """Channels of a head."""
        return self.hidden_size // self.attention_heads

    @property
    def mlp_width(self) -> int:
        """Channels inside an MLP."""
        raise NotImplementedError

    @property
    def normalizes_heads(self) -> bool:
        """Whether every query and key head is normalised."""
        return False

    @property
    def score_softcap(self) -> float | None:
        """c of a soft cap on attention's scores, which no fused kernel has; None: there is none."""
        return None

    @property
    def longest_sequence(self) -> int | None:
        """In tokens, where positions are learned; None: any."""
        return None

    @property
    def padding_id(self) -> int | None:
        """The id that `transformers` needs a tokenizer's padding to have, to find the same positions; None: any."""
        return None

    @property
    def token_types(self) -> int:
        """Of texts of an example that it tells apart; its forward takes `token_types_BS` where that is more than 1."""
        return 1

    @property
    def outer_names(self) -> tuple[str, str]:
        """In the table: of the tokens' embedding, and of the head's matrix where it has one of its own."""
        return EMBEDDING, CLASS_HEAD[0]

    @property
    def names_vocabulary(self) -> bool:
        """Whether a file that it names says how many ids there are, while `vocab_size` is "auto"."""
        return False

    @property
    def makes_all_logits(self) -> bool:
        """Whether its loss needs the logits of a whole micro-batch, and their gradient."""
        return False

    @property
    def window_counts(self) -> Mapping[Window, int]:
        """How many layers attend to which positions; see model/window.py."""
        return {CAUSAL: self.num_hidden_layers}

    @property
    def padded_vocab_size(self) -> int:
        """The resolved vocabulary. Raises ValueError while it is still "auto"."""
        if self.vocab_size == AUTO:
            raise ValueError("model.vocab_size is not resolved yet")
        return self.vocab_size

    @property
    def padded_labels(self) -> int:
        """Rows of a class head; those behind num_labels stand for no label."""
        return -(-(self.num_labels or 0) // LABELS_MULTIPLE) * LABELS_MULTIPLE

    @property
    def head_rows(self) -> int:
        """Of the head, whichever it is. Raises ValueError while the vocabulary is still "auto"."""
        return self.padded_vocab_size if self.num_labels is None else self.padded_labels

    @property
    def ties_head(self) -> bool:
        """Whether the head is the embedding; that of classes never is."""
        return self.tie_word_embeddings and self.num_labels is None

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with: all matrices but the embedding, unless the head shares it."""
        return _sizes(self)[1]

    @property
    def parameters(self) -> int:
        """All numbers, each counted once, an adapter's included."""
        return _sizes(self)[0]

    @property
    def trained_parameters(self) -> int:
        return sum(row.count * row.elements for row in rows(self) if row.trained)

    @property
    def freezes(self) -> bool:
        """Whether some weights stay as they are."""
        return self.adapter is not None or self.train_layers is not None

    @property
    def merged(self) -> "ModelSection":
        """The model without an adapter, whose changes are in its weights; and nothing of it is frozen."""
        return self.model_copy(update={"adapter": None, "train_layers": None}) if self.freezes else self

    @property
    def complete(self) -> "ModelSection":
        """The model that results: merged, or with an adapter that cannot be."""
        return self if self.has_lasting_adapter else self.merged

    @property
    def has_lasting_adapter(self) -> bool:
        """Whether it has an adapter that no merging makes a part of the other weights."""
        return self.adapter is not None and not ADAPTERS.get(self.adapter.name).merge

    @property
    def first_trained_layer(self) -> int:
        """The backward pass ends there."""
        return 0 if self.train_layers is None else max(0, self.num_hidden_layers - self.train_layers)

    def flops_per_token(self, sequence_length: int) -> float:
        """Forward and backward FLOPs per token: 6·N_matmul + 12·H·Σ seen, H the heads' width, the sum over the layers.

        Causal attention sees S/2 positions: 6·L·H·S, half of PaLM's appendix B, which counts the masked half too. Of a
        frozen weight no gradient is made, which leaves 4; below the first trained layer there is no backward pass.
        """
        first, depth = self.first_trained_layer, self.num_hidden_layers
        attention = (4.0 + 8.0 * (depth - first) / depth) * self.attention_heads * self.head_size
        matrices = (_flops(row, first) * row.count * row.elements for row in rows(self) if _is_multiplied(row, self))
        return sum(matrices) + attention * self.seen(sequence_length)

    def seen(self, sequence_length: int) -> float:
        """Positions that one position attends to, on average over a sequence, summed over the layers."""
        return sum(count * positions_seen(window, sequence_length) for window, count in self.window_counts.items())


@lru_cache(64)
def rows(section: ModelSection) -> tuple[ParameterRow, ...]:
    """The table of a model, a row for each kind of weight. Tied word embeddings have the embedding's row only."""
    table = _own_rows(section)
    if section.adapter is not None:
        return tuple(with_adapter(section.adapter, table, _own_of_classifier(section)))
    if section.train_layers is not None:
        return tuple(top_layers(section.train_layers, table, section.num_hidden_layers))
    return table


def _own_rows(section: ModelSection) -> tuple[ParameterRow, ...]:
    """Without what a fine-tuning adds to it or leaves out of training."""
    return parametrised(FAMILIES.get(section.family).rows(section), section)


def _own_of_classifier(section: ModelSection) -> frozenset[str]:
    """Names of what a classifier has and a language model has not, or has in another shape."""
    if section.num_labels is None:
        return frozenset()
    known = {row.name for row in _own_rows(section.model_copy(update={"num_labels": None}))} - set(CLASS_HEAD)
    return frozenset(row.name for row in _own_rows(section)) - known


def parameter_table(section: ModelSection) -> Iterator[ParameterRow]:
    """A row for each weight, under its own name, in the order of the layers."""
    layers: dict[int, list[ParameterRow]] = {}
    for row in rows(section):
        for layer in row.layers or ():
            layers.setdefault(layer, []).append(row)
    begun = False
    for row in rows(section):
        if row.layers is None:
            yield row
        elif not begun:
            begun = True
            yield from (one.of_layer(layer) for layer in sorted(layers) for one in layers[layer])


def row_of(section: ModelSection, name: str) -> ParameterRow:
    """The row of one weight.

    Raises:
        KeyError: the model has none of this name.
    """
    table, parts = _rows_by_name(section), name.split(".")
    for row in table.get(name, ()):
        if row.layers is None:
            return row
    for place, part in enumerate(parts):  # the number of the layer; somebody else's names may have others
        if not part.isdecimal():
            continue
        for row in table.get(".".join((*parts[:place], "{}", *parts[place + 1 :])), ()):
            if row.layers is not None and int(part) in row.layers:
                return row.of_layer(int(part))
    raise KeyError(name)


@lru_cache(64)
def _rows_by_name(section: ModelSection) -> Mapping[str, list[ParameterRow]]:
    table: dict[str, list[ParameterRow]] = {}
    for row in rows(section):
        table.setdefault(row.name, []).append(row)
    return table


@lru_cache(64)
def _sizes(section: ModelSection) -> tuple[int, int]:
    """Numbers of a model, and those of them that every token is multiplied with."""
    sizes = [(row.count * row.elements, _is_multiplied(row, section)) for row in rows(section)]
    return sum(size for size, _ in sizes), sum(size for size, multiplied in sizes if multiplied)


def _flops(row: ParameterRow, first: int) -> float:
    """Per token and parameter: 2 to multiply with it, 2 for the gradient of its input, 2 for its own."""
    is_below = row.layers is not None and row.layers[-1] < first
    return 2.0 if is_below else 6.0 if row.trained else 4.0


def _is_multiplied(row: ParameterRow, section: ModelSection) -> bool:
    is_tied = section.ties_head and row.name == section.outer_names[0]
    return len(row.shape) >= 2 and (row.kind is not Kind.EMBEDDING or is_tied)
