"""Examples of the validation that training has, too: the same tokens and the same targets, by file and line."""

import hashlib
from collections.abc import Iterator

from launcher.preflight.finding import Finding
from megatrain.base.errors import MegatrainError
from megatrain.data.examples.example_set import ExampleSet
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.rows import read_rows

_SHOWN = 10


def check_duplicates(
    train: ExampleSet, validation: ExampleSet, field: str = "finetune.validation"
) -> Iterator[Finding]:
    """A warning that names pairs of places, ten at most; `field` is that of the validation."""
    ours, theirs = list(_contents(validation)), list(_contents(train))
    if (len(ours), len(theirs)) != (validation.examples, train.examples):
        return  # rows of which each became several examples, or none: they would be named wrongly
    first: dict[bytes, int] = {}
    for number, content in enumerate(theirs):
        first.setdefault(content, number)
    twice = [(number, first[one]) for number, one in enumerate(ours) if one in first]
    if not twice:
        return
    shown = twice[:_SHOWN]
    here, there = _places(validation, {number for number, _ in shown}), _places(train, {number for _, number in shown})
    pairs = ", ".join(f"{here[number]} = {there[other]}" for number, other in shown)
    more = f" and {len(twice) - _SHOWN:,} more" if len(twice) > _SHOWN else ""
    yield Finding(
        "warning",
        f"{field}: {len(twice):,} of {validation.examples:,} examples are in finetune.train as well: "
        f"{pairs}{more}. Leave them out of one: what was learnt by heart says nothing of new examples.",
    )


def _contents(examples: ExampleSet) -> Iterator[bytes]:
    """What an example is to the model, 16 bytes, in the order of the files."""
    for row in examples.rows:
        begin = 0
        for end in row.ends.tolist()[examples.parts - 1 :: examples.parts]:
            found = hashlib.blake2b(row.tokens[begin:end].tobytes(), digest_size=16)
            found.update(row.is_target[begin:end].tobytes())
            for more in (row.labels, row.token_types):
                if more is not None:
                    found.update(more[begin:end].tobytes())
            yield found.digest()
            begin = end


def _places(examples: ExampleSet, wanted: set[int]) -> dict[int, str]:
    """File and line of examples by their number; the number itself in a file whose rows are not examples one by one."""
    found: dict[int, str] = {}
    begin = 0
    for file in examples.files:
        kept = file.examples - file.dropped
        inside = {number - begin for number in wanted if begin <= number < begin + kept}
        if inside:
            found |= {begin + number: f"{file.path} example {number + 1}" for number in inside}
            try:
                places = [row.where for given in find_inputs([file.path]).inputs for row in read_rows(given)]
            except MegatrainError:
                places = []
            if not file.dropped and len(places) == kept:
                found |= {begin + number: places[number] for number in inside}
        begin += kept
    return {number: found.get(number, f"example {number + 1}") for number in wanted}
