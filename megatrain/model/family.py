"""What a family of architectures registers, without torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatrain.base.registry import Registry
from megatrain.model.parameter_row import ParameterRow

if TYPE_CHECKING:
    from megatrain.model.architecture import ModelSection

ANY_MODEL_TYPE = "*"  # of `transformers`, that no other family reads


@dataclass(frozen=True, slots=True)
class Region:
    """Where activations cross the boundary of a tensor-parallel region, at a module's call."""

    enter: bool = False  # its input becomes whole on every rank
    leave: bool = False  # its output is a sum over the ranks
    # its output is whole on every rank, and joins activations outside of a region: positions that are added to
    # embedded tokens. Under sequence parallelism a rank keeps its part of the sequence.
    whole: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Divisible:
    """A number that tensor-parallel ranks have to divide."""

    number: int
    field: str  # that it comes from: "num_key_value_heads"
    words: str = ""  # what it counts: "key-value heads"

    def __str__(self) -> str:
        return f"{self.number} {self.words}" if self.words else f"model.{self.field} ({self.number})"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFamily:
    """What a family of architectures registers.

    Attributes:
        section: its `model:` section.
        rows: the table of a section.
        module: "package.module:Class", an nn.Module made from a section, with `blocks` (its layers), `embedding` and
            `head`, and the attribute `block_classes`. Its forward is (input_ids_BS, labels_BS=None, *,
            position_ids_BS=None, cu_seqlens=None, terms=None), as that of families/llama/module.py.
        regions: by a pattern of module names, re.fullmatch.
        divisible: what tensor parallelism has to divide.
        residual: patterns of the modules whose output is added to the residual stream, re.fullmatch: dropout is theirs.
        issues: rules between the fields of a section: (field, value, rule, fix).
        whole: why no two ranks can share a model or a sequence, so that there is ZeRO only; "": they can.
        run_issues: rules between a section and the run around it: (run, section) -> (field, value, rule, fix).
        complete: (section, from_seed=…) -> a section with all that the launcher finds by itself; None: it has it.
        has_mup: whether its module multiplies by what model/mup.py says, so that a section may have `mup`.
        resized: a section of so many attention heads, shaped as the family is; for "the largest that fits".
        huggingface_config: what `transformers` calls its sizes, for config.json; None: it cannot be exported.
        model_types: of `transformers`, that are read as this family; ANY_MODEL_TYPE: all that no other family reads.
        read_huggingface_config: (config.json, its model type) -> a section, and the longest sequence that the model was
            made for, in tokens; raises ConfigError.
        huggingface_prefix: what names of the bare model, without its head, begin with in `transformers`, and files may
            lack: "transformer."; or a function of the section.
        huggingface_head: patterns of the head's tensors, re.fullmatch: files of the bare model have none of them, and
            they are drawn from the seed.
        huggingface_ignored: patterns of tensors in files that are not weights of it, such as buffers; re.fullmatch of
            the name with the prefix.
        huggingface_renamed: endings of names in old files, and what they are now.
        huggingface_exported: (section, name of a tensor) -> its name in a class of `transformers` that prefixes its
            bare model otherwise than the others do; read under either name.
        huggingface_tied: names of copies that files may hold where word embeddings are tied; or a function of the
            section.
    """

    section: "type[ModelSection]"
    rows: Callable[[Any], tuple[ParameterRow, ...]]
    module: str
    regions: Mapping[str, Region]
    divisible: Callable[[Any], tuple[Divisible, ...]]
    residual: tuple[str, ...] = ()
    issues: Callable[[Any], Iterator[tuple[str, Any, str, str]]] = lambda section: iter(())
    whole: str = ""
    run_issues: Callable[[Any, Any], Iterator[tuple[str, Any, str, str]]] = lambda config, section: iter(())
    complete: "Callable[..., ModelSection] | None" = None
    has_mup: bool = False
    resized: "Callable[[Any, int], ModelSection] | None" = None
    huggingface_config: Callable[[Any], dict[str, Any]] | None = None
    model_types: tuple[str, ...] = ()
    read_huggingface_config: "Callable[[Path, str], tuple[ModelSection, int]] | None" = None
    huggingface_prefix: str | Callable[[Any], str] = ""
    huggingface_head: tuple[str, ...] = (r"lm_head\.weight",)
    huggingface_ignored: tuple[str, ...] = ()
    huggingface_renamed: Mapping[str, str] = field(default_factory=dict)
    huggingface_exported: Callable[[Any, str], str] = lambda section, name: name
    huggingface_tied: tuple[str, ...] | Callable[[Any], tuple[str, ...]] = ("lm_head.weight",)


FAMILIES: Registry[ModelFamily] = Registry("model family")
