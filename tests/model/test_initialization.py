import hashlib
import math
from dataclasses import replace

import pytest
import torch

from megatrain.model import initialization
from megatrain.model.architecture import row_of
from megatrain.model.families.llama.module import Llama
from megatrain.model.initialization import initial_weight, materialize, write_initial_weight

SHAPE = (400, 300)


def a_row(section, name, shape=SHAPE):
    """The row of a weight, at another size."""
    return replace(row_of(section, name), shape=shape)


def test_a_function_of_seed_and_name_alone(model_section) -> None:
    section = model_section()
    torch.manual_seed(1)
    first = initial_weight(a_row(section, "head.weight"), 5)
    torch.manual_seed(2)
    assert torch.equal(initial_weight(a_row(section, "head.weight"), 5), first)
    assert not torch.equal(initial_weight(a_row(section, "head.weight"), 6), first)
    assert not torch.equal(initial_weight(a_row(section, "embedding.weight"), 5), first)


@pytest.mark.parametrize(
    ("name", "deviation"),
    [
        ("blocks.0.attention.query.weight", 0.3),
        ("blocks.0.attention.output.weight", 0.3 / math.sqrt(2 * 2)),
        ("blocks.1.mlp.down.weight", 0.3 / math.sqrt(2 * 2)),
        ("embedding.weight", 0.3),
    ],
)
def test_standard_deviations(model_section, name, deviation) -> None:
    weight = initial_weight(a_row(model_section(), name), 0)
    assert weight.dtype == torch.float32
    assert weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert weight.mean().abs().item() < 0.03 * deviation


def test_norm_weights_are_one(model_section) -> None:
    assert torch.equal(initial_weight(a_row(model_section(), "norm.weight", (24,)), 0), torch.ones(24))


def test_a_weight_of_one_chunk_comes_from_one_stream(model_section) -> None:
    """What seeds have always given."""
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(b"5:head.weight").digest()[:7], "little"))
    expected = torch.empty(SHAPE).normal_(0.0, 0.3, generator=generator)
    assert torch.equal(initial_weight(a_row(model_section(), "head.weight"), 5), expected)


@pytest.mark.parametrize("chunk", [300, 301, 7 * 300, 100])  # one row, one row, seven rows, and never less than a row
@pytest.mark.parametrize("threads", [1, 3])
def test_any_part_is_the_same_without_the_rest(model_section, monkeypatch, chunk, threads) -> None:
    monkeypatch.setattr(initialization, "CHUNK_ELEMENTS", chunk)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    name, section = "blocks.0.mlp.down.weight", model_section()
    whole = initial_weight(a_row(section, name), 5)
    assert whole.unique().numel() > 0.99 * whole.numel(), "no chunk repeats another"
    assert whole.std().item() == pytest.approx(0.3 / math.sqrt(2 * 2), rel=0.02)
    for rows, columns in [
        (slice(100, 200), slice(0, 300)),  # a column-parallel slice
        (slice(0, 400), slice(150, 300)),  # a row-parallel slice
        (slice(33, 34), slice(7, 300)),  # the ragged start of a ZeRO part
        (slice(0, 0), slice(0, 300)),
    ]:
        part = torch.full_like(whole[rows, columns], torch.nan)
        write_initial_weight(a_row(section, name), [((rows.start, columns.start), part)], 5)
        assert torch.equal(part, whole[rows, columns])


def test_parts_of_one_chunk_are_drawn_once(model_section, monkeypatch) -> None:
    monkeypatch.setattr(initialization, "CHUNK_ELEMENTS", 100 * 300)
    drawn, real = [], initialization._generator
    monkeypatch.setattr(initialization, "_generator", lambda *of: drawn.append(of) or real(*of))
    flat = torch.zeros(299 + 300 + 2)  # a ZeRO part: a ragged start, whole rows, a ragged end
    parts = [
        ((110, 1), flat[:299].view(1, -1)),
        ((111, 0), flat[299:599].view(1, -1)),
        ((112, 0), flat[599:].view(1, 2)),
    ]
    write_initial_weight(a_row(model_section(), "head.weight"), parts, 5)
    assert drawn == [(5, "head.weight", 1)]
    assert torch.equal(flat, initial_weight(a_row(model_section(), "head.weight"), 5).flatten()[110 * 300 + 1 :][:601])


def test_a_thread_that_fails_is_heard(model_section, monkeypatch) -> None:
    monkeypatch.setattr(initialization, "CHUNK_ELEMENTS", 300)
    monkeypatch.setattr(initialization, "_generator", lambda *of: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        initial_weight(a_row(model_section(), "head.weight"), 5)


def test_materialize_keeps_ties_marks_and_frozen_parameters(model_section) -> None:
    with torch.device("meta"):
        model = Llama(model_section(tie_word_embeddings=True))
    model.norm.weight.requires_grad_(False)
    model.head.weight.mark = "kept"
    names = []

    def initial(name, parameter):
        names.append(name)
        return torch.full(parameter.shape, float(len(names)))

    placed = []
    materialize(model, initial, dtype=torch.bfloat16, placed=lambda name, p: placed.append((name, len(names))))

    assert placed == [(name, i + 1) for i, name in enumerate(names)], "each before the next is made"
    assert names == [name for name, _ in model.named_parameters()]
    assert model.head.weight is model.embedding.weight
    assert model.head.weight.mark == "kept"
    assert not model.norm.weight.requires_grad
    assert all(p.device.type == "cpu" and p.dtype == torch.bfloat16 for p in model.parameters())
    assert model.embedding.weight.unique().tolist() == [1.0]
