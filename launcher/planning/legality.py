"""Which layouts can be: a table of rules, each with the fields that it needs and a sentence for who breaks it.

A rule is asked as soon as its fields are known, so that a layout is refused by as few of them as say why. Where a rule
is DeepSpeed's, the pinned version's own code is named; tests/launcher/test_legality.py shows that it, or the trainer,
does refuse what the rule refuses.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from megatrain.model.architecture import ModelSection, rows
from megatrain.model.family import FAMILIES, Divisible
from megatrain.model.fp8 import FP8_MULTIPLE, multiplies_in_fp8


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a layout is for."""

    model: ModelSection
    world_size: int
    ranks_per_node: int
    global_batch_size: int
    sequence_lengths: tuple[int, ...]  # the run's, and those that phases of its curriculum cut it into
    precision: str = "bf16"
    warmup_batch_sizes: tuple[int, ...] = ()  # of training.batch_size_warmup
    whole_sequences: bool = False  # a rank needs them whole, for the task's loss
    searches: bool = False  # some backward passes give no gradients of weights: those of finetune.adversarial's pgd


Choice = Mapping[str, Any]  # fields of a Layout, as far as they are decided


@dataclass(frozen=True, slots=True)
class Rule:
    name: str
    fields: tuple[str, ...]
    broken: Callable[[Run, Choice], str | None]  # the reason, or None
    source: str


def first_violation(run: Run, choice: Choice, *, known: Choice | None = None) -> tuple[dict[str, Any], str] | None:
    """The first rule that a choice breaks: the fields that it is about, and why.

    Args:
        known: what of the choice was found legal before; rules about nothing else are not asked again.
    """
    for rule in RULES:
        if not all(field in choice for field in rule.fields):
            continue
        if known is not None and all(field in known for field in rule.fields):
            continue
        if reason := rule.broken(run, choice):
            return {field: choice[field] for field in rule.fields}, reason
    return None


def _ranks(run: Run, choice: Choice) -> str | None:
    tensor = choice["tensor_parallel"]
    return f"tensor_parallel={tensor} does not divide {run.world_size} ranks" if run.world_size % tensor else None


def _whole_model(run: Run, choice: Choice) -> str | None:
    why = FAMILIES.get(run.model.family).whole
    for name in ("tensor_parallel", "context_parallel"):
        if why and choice.get(name, 1) > 1:
            return f"{name}={choice[name]}: {why}"
    return None


def _slices(run: Run, choice: Choice) -> str | None:
    tensor = choice["tensor_parallel"]
    vocabulary = Divisible(number=run.model.padded_vocab_size, field="vocab_size")
    head = Divisible(number=run.model.head_rows, field="num_labels", words="rows of the class head")
    whole = (*FAMILIES.get(run.model.family).divisible(run.model), vocabulary, head)
    broken = next((one for one in whole if one.number % tensor), None)
    return f"tensor_parallel={tensor} does not divide {broken}" if broken is not None else None


def _within_a_node(run: Run, choice: Choice) -> str | None:
    tensor = choice["tensor_parallel"]
    if tensor <= run.ranks_per_node:
        return None
    return f"tensor_parallel={tensor} reaches beyond a node of {run.ranks_per_node} ranks"


def _whole_batches(run: Run, choice: Choice) -> str | None:
    data = choice["data_parallel"]
    for field, size in _batches(run):
        if size % data:
            return f"{data} data-parallel ranks do not divide {field} ({size}){_multiple(field, size, data)}"
    return None


def _whole_micro_batches(run: Run, choice: Choice) -> str | None:
    data, micro = choice["data_parallel"], choice["micro_batch_size"]
    for field, size in _batches(run):
        if size // data % micro:
            where = "" if field == _FINAL else f" in {field} ({size}){_multiple(field, size, data * micro)}"
            each = f"the {size // data} sequences of each of {data} data-parallel ranks"
            return f"micro_batch_size={micro} does not divide {each}{where}"
    return None


_FINAL = "training.global_batch_size"


def _batches(run: Run) -> Iterator[tuple[str, int]]:
    """Every global batch, by its field."""
    yield _FINAL, run.global_batch_size
    for number, size in enumerate(run.warmup_batch_sizes):
        yield f"training.batch_size_warmup.{number}.global_batch_size", size


def _multiple(field: str, size: int, of: int) -> str:
    """The fix for a batch of the warm-up: it need not be as it is."""
    return "" if field == _FINAL else f"; take {max(of, round(size / of) * of)}"


def _context_ranks(run: Run, choice: Choice) -> str | None:
    tensor, context = choice["tensor_parallel"], choice["context_parallel"]
    if run.world_size % (tensor * context) == 0:
        return None
    return f"tensor_parallel={tensor} × context_parallel={context} do not divide {run.world_size} ranks"


def _context_heads(run: Run, choice: Choice) -> str | None:
    tensor, context = choice["tensor_parallel"], choice["context_parallel"]
    if run.model.key_value_heads % (tensor * context) == 0:
        return None
    each = f"{run.model.key_value_heads} key-value heads" + (f" over {tensor} tensor-parallel ranks" * (tensor > 1))
    return f"context_parallel={context} does not divide {each}"


def _context_length(run: Run, choice: Choice) -> str | None:
    context = choice["context_parallel"]
    odd = [length for length in run.sequence_lengths if length % context]
    return f"context_parallel={context} does not divide the sequence length ({odd[0]})" if odd else None


def _context_of_the_task(run: Run, choice: Choice) -> str | None:
    context = choice["context_parallel"]
    if context == 1 or not run.whole_sequences:
        return None
    return f"context_parallel={context} shares out sequences, of which the task's loss needs the whole"


def _sequence_needs_tensor(run: Run, choice: Choice) -> str | None:
    if choice["sequence_parallel"] and choice["tensor_parallel"] == 1:
        return "sequence_parallel needs tensor_parallel > 1"
    return None


def _sequence_divides(run: Run, choice: Choice) -> str | None:
    tensor, context = choice["tensor_parallel"], choice["context_parallel"]
    odd = [length for length in run.sequence_lengths if length % (tensor * context)]
    if choice["sequence_parallel"] and odd:
        length = f"{odd[0]}" if context == 1 else f"{odd[0]} over {context} context-parallel ranks"
        return f"tensor_parallel={tensor} does not divide the sequence length ({length}), as sequence_parallel asks"
    return None


def _fp8_sides(run: Run, choice: Choice) -> str | None:
    tensor = choice["tensor_parallel"]
    if run.precision != "fp8" or any(multiplies_in_fp8(row, tensor) for row in rows(run.model)):
        return None
    whose = "no linear layer's" if tensor == 1 else f"over tensor_parallel={tensor} no linear layer's"
    return f"{whose} sides are multiples of {FP8_MULTIPLE}, as training.precision=fp8 asks"


def _fp8_tokens(run: Run, choice: Choice) -> str | None:
    context, micro = choice["context_parallel"], choice["micro_batch_size"]
    odd = [length for length in run.sequence_lengths if micro * length // context % FP8_MULTIPLE]
    if run.precision != "fp8" or not odd:
        return None
    return (
        f"micro_batch_size={micro} × {odd[0]} tokens over context_parallel={context} are no multiple of "
        f"{FP8_MULTIPLE}, as training.precision=fp8 asks"
    )


def _known_stage(run: Run, choice: Choice) -> str | None:
    stage = choice["zero_stage"]
    return None if stage in (0, 1, 2, 3) else f"zero_stage={stage}: DeepSpeed has stages 0 to 3"


def _offload_needs_zero(run: Run, choice: Choice) -> str | None:
    if choice["offload_optimizer"] == "cpu" and choice["zero_stage"] == 0:
        return "offload_optimizer=cpu needs zero_stage 1, 2 or 3: without ZeRO DeepSpeed offloads nothing"
    return None


def _searching_passes(run: Run, choice: Choice) -> str | None:
    if not run.searches or choice["zero_stage"] < 3:
        return None
    return (
        "zero_stage=3 reduces gradients of a block's weights whenever a backward pass leaves it, and those of "
        "finetune.adversarial.method=pgd that search a perturbation make none. Take a stage below, or fgm"
    )


def _hpz_needs_stage_3(run: Run, choice: Choice) -> str | None:
    size = choice["zero_hpz_partition_size"]
    if size > 1 and choice["zero_stage"] != 3:
        return f"zero_hpz_partition_size={size} needs zero_stage 3: no other stage gathers weights in its passes"
    return None


def _hpz_replicas(run: Run, choice: Choice) -> str | None:
    size, replicas = choice["zero_hpz_partition_size"], run.world_size // choice["tensor_parallel"]
    if size == 1:
        return None
    if replicas % size:
        return f"zero_hpz_partition_size={size} does not divide {replicas} replicas"
    if size == replicas:
        return f"zero_hpz_partition_size={size}: these are all replicas, whose second copy would be the first once more"
    return None


def _hpz_node(run: Run, choice: Choice) -> str | None:
    size, tensor = choice["zero_hpz_partition_size"], choice["tensor_parallel"]
    if size == 1 or run.ranks_per_node % (size * tensor) == 0:
        return None
    slices = f" × tensor_parallel={tensor} do" if tensor > 1 else " does"
    return f"zero_hpz_partition_size={size}{slices} not divide a node of {run.ranks_per_node} ranks"


RULES = (
    Rule("whole model", ("tensor_parallel",), _whole_model, "megatrain/model/families/transformers/rules.py"),
    Rule("whole sequences", ("context_parallel",), _whole_model, "megatrain/model/families/transformers/rules.py"),
    Rule("ranks", ("tensor_parallel",), _ranks, "megatrain/topology.py"),
    Rule(
        "slices", ("tensor_parallel",), _slices, "whole heads and equal slices; megatrain/parallel/tensor_parallel.py"
    ),
    Rule("node", ("tensor_parallel",), _within_a_node, "collectives at every layer: the network is too slow for them"),
    Rule("context ranks", ("tensor_parallel", "context_parallel"), _context_ranks, "megatrain/topology.py"),
    Rule(
        "context heads",
        ("tensor_parallel", "context_parallel"),
        _context_heads,
        "an all-to-all hands out whole heads; megatrain/parallel/context_parallel.py",
    ),
    Rule(
        "context length",
        ("context_parallel",),
        _context_length,
        "equal parts of each sequence; megatrain/parallel/context_parallel.py",
    ),
    Rule("context of the task", ("context_parallel",), _context_of_the_task, "megatrain/tasks/preference/task.py"),
    Rule(
        "batch", ("tensor_parallel", "data_parallel"), _whole_batches, "deepspeed/runtime/config.py, _batch_assertion"
    ),
    Rule(
        "sequence needs tensor", ("tensor_parallel", "sequence_parallel"), _sequence_needs_tensor, "megatrain/parallel"
    ),
    Rule(
        "sequence length",
        ("tensor_parallel", "context_parallel", "sequence_parallel"),
        _sequence_divides,
        "reduce-scatter splits the sequence evenly; megatrain/parallel/collectives.py",
    ),
    Rule("fp8 sides", ("tensor_parallel",), _fp8_sides, "megatrain/parallel/float8.py"),
    Rule("fp8 tokens", ("context_parallel", "micro_batch_size"), _fp8_tokens, "torch._scaled_mm, of weight gradients"),
    Rule("stage", ("zero_stage",), _known_stage, "deepspeed/runtime/zero/config.py, ZeroStageEnum"),
    Rule(
        "searching passes",
        ("zero_stage",),
        _searching_passes,
        "deepspeed/runtime/zero/stage3.py, reduce_leaf_module_grads: gradients were wrong",
    ),
    Rule(
        "offload needs ZeRO",
        ("zero_stage", "offload_optimizer"),
        _offload_needs_zero,
        "deepspeed/runtime/engine.py, _configure_optimizer",
    ),
    Rule("hpZ needs stage 3", ("zero_stage", "zero_hpz_partition_size"), _hpz_needs_stage_3, "deepspeed/runtime/zero"),
    Rule(
        "hpZ replicas",
        ("tensor_parallel", "zero_hpz_partition_size"),
        _hpz_replicas,
        "deepspeed/runtime/zero/partition_parameters.py, Init: equal parts, of more than one group",
    ),
    Rule(
        "hpZ node",
        ("tensor_parallel", "zero_hpz_partition_size"),
        _hpz_node,
        "a group across nodes would gather over the network; megatrain/topology.py",
    ),
    Rule(
        "micro-batch",
        ("tensor_parallel", "data_parallel", "micro_batch_size"),
        _whole_micro_batches,
        "deepspeed/runtime/config.py, _batch_assertion",
    ),
)
