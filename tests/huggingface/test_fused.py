"""Weights that transformers fuses or stores transposed: taken apart and put together, whole or by slices."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint.metadata import MetadataIndex

from megatrain.base.errors import CheckpointError
from megatrain.huggingface import export as exporting
from megatrain.huggingface.names import count, from_huggingface, recognised, shapes, to_huggingface, wholes
from megatrain.huggingface.reader import PretrainedReader
from megatrain.huggingface.weight_files import weight_files
from megatrain.model.architecture import ModelSection
from megatrain.model.family import FAMILIES, ModelFamily
from megatrain.model.parameter_row import ZEROS, HuggingFaceTensor, Kind, Normal, ParameterRow

WIDTH, VOCABULARY, POSITIONS, LAYERS = 6, 10, 5, 2


class FusedSection(ModelSection):
    family: Literal["fused"] = "fused"
    num_hidden_layers: int = LAYERS
    hidden_size: int = WIDTH
    vocab_size: int = VOCABULARY


def rows(section: FusedSection) -> tuple[ParameterRow, ...]:
    """As GPT-2: [in, 3 out] of query, key and value and their biases; as ModernBERT: [2 out, in] of gate and up."""
    width, layers, inside = section.hidden_size, range(section.num_hidden_layers), Normal(0.02)

    def inner(name: str, shape: tuple[int, ...], theirs: str | HuggingFaceTensor) -> ParameterRow:
        kind = Kind.MLP if len(shape) == 2 else Kind.BIAS
        return ParameterRow(
            name=f"blocks.{{}}.{name}", shape=shape, kind=kind, init=inside, huggingface=theirs, layers=layers
        )

    def outer(name: str, shape: tuple[int, ...], kind: Kind, theirs: str) -> ParameterRow:
        return ParameterRow(name=name, shape=shape, kind=kind, init=ZEROS, huggingface=theirs)

    attention, mlp = "toy.h.{}.attn.c_attn", "toy.h.{}.mlp"
    parts = [("query", 0), ("key", 1), ("value", 2)]
    table = (
        outer("embedding.weight", (section.padded_vocab_size, width), Kind.EMBEDDING, "toy.wte.weight"),
        outer("positions.weight", (POSITIONS, width), Kind.EMBEDDING, "toy.wpe.weight"),
        *(
            inner(
                f"{name}.weight",
                (4, width),
                HuggingFaceTensor(f"{attention}.weight", transposed=True, part=part, parts=3),
            )
            for name, part in parts
        ),
        *(
            inner(f"{name}.bias", (4,), HuggingFaceTensor(f"{attention}.bias", part=part, parts=3))
            for name, part in parts
        ),
        inner("output.weight", (width, 4), HuggingFaceTensor("toy.h.{}.attn.c_proj.weight", transposed=True)),
        inner("gate.weight", (8, width), HuggingFaceTensor(f"{mlp}.Wi.weight", part=0, parts=2)),
        inner("up.weight", (8, width), HuggingFaceTensor(f"{mlp}.Wi.weight", part=1, parts=2)),
        inner("down.weight", (width, 8), f"{mlp}.Wo.weight"),
        outer("head.bias", (section.padded_vocab_size,), Kind.BIAS, "predictions.bias"),
    )
    if section.tie_word_embeddings:
        return table
    shape = (section.padded_vocab_size, width)
    return (*table, outer("head.weight", shape, Kind.HEAD, "predictions.decoder.weight"))


@pytest.fixture(scope="module", autouse=True)
def family() -> Iterator[None]:
    FAMILIES.register(
        "fused",
        ModelFamily(
            section=FusedSection,
            rows=rows,
            module="none:None",
            regions={},
            divisible=lambda section: (),
            huggingface_prefix="toy.",
            huggingface_ignored=(r"toy\.h\.\d+\.attn\.bias", r"pooler\..*"),
            huggingface_tied=("predictions.decoder.weight", "predictions.decoder.bias"),
        ),
    )
    yield
    FAMILIES._entries.pop("fused")


@pytest.fixture
def section() -> FusedSection:
    return FusedSection()


@pytest.fixture
def state(section: FusedSection) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes(section).items()}


def test_what_theirs_are_made_of(section, state) -> None:
    theirs = to_huggingface(state, section)
    ours = [state[f"blocks.1.{name}.weight"] for name in ("query", "key", "value")]
    fused = theirs["toy.h.1.attn.c_attn.weight"]
    assert fused.shape == (WIDTH, 12)
    assert torch.equal(fused, torch.cat(ours).T)
    biases = [state[f"blocks.1.{name}.bias"] for name in ("query", "key", "value")]
    assert torch.equal(theirs["toy.h.1.attn.c_attn.bias"], torch.cat(biases))
    assert torch.equal(theirs["toy.h.0.attn.c_proj.weight"], state["blocks.0.output.weight"].T)
    mlp = [state["blocks.0.gate.weight"], state["blocks.0.up.weight"]]
    assert torch.equal(theirs["toy.h.0.mlp.Wi.weight"], torch.cat(mlp))
    assert all(tensor.is_contiguous() for tensor in theirs.values())
    assert len(theirs) == count(section) == 4 + 5 * LAYERS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_is_the_identity(section, state, dtype) -> None:
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    theirs = to_huggingface(state, section)
    back = from_huggingface(theirs, section)
    assert list(back) == list(state)
    assert all(torch.equal(back[name], tensor) and back[name].dtype == dtype for name, tensor in state.items())
    for name, other in {"blocks.1.down.weight": "toy.h.1.mlp.Wo.weight", "embedding.weight": "toy.wte.weight"}.items():
        assert back[name].data_ptr() == theirs[other].data_ptr() == state[name].data_ptr()


def test_mistakes_are_told_in_the_terms_of_either(section, state) -> None:
    theirs = to_huggingface(state, section)
    theirs["toy.h.0.attn.c_attn.weight"] = theirs["toy.h.0.attn.c_attn.weight"].T
    theirs["toy.h.1.attn.c_attn.scale"] = torch.zeros(3)
    del theirs["toy.h.1.mlp.Wi.weight"]
    with pytest.raises(CheckpointError) as caught:
        from_huggingface(theirs, section)
    assert str(caught.value).splitlines() == [
        "toy.h.1.mlp.Wi.weight: is missing",
        "toy.h.1.attn.c_attn.scale: is not a weight of this architecture",
        "toy.h.0.attn.c_attn.weight: has shape (12, 6), the model section says (6, 12)",
    ]
    del state["blocks.1.key.weight"]
    state["blocks.0.value.bias"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        to_huggingface(state, section)
    assert str(caught.value).splitlines() == [
        "blocks.1.key.weight: is missing",
        "blocks.0.value.bias: has shape (5,), the model section says (4,)",
    ]


def test_a_table_that_lacks_a_part(section, monkeypatch) -> None:
    whole = rows(section)
    without = tuple(row for row in whole if row.name != "blocks.{}.key.bias")
    monkeypatch.setattr("megatrain.model.architecture.rows", lambda _: without)
    with pytest.raises(ValueError, match=r"toy.h.0.attn.c_attn.bias: the table does not have its 3 parts"):
        wholes(section)


def write(folder: Path, theirs: dict[str, torch.Tensor]) -> None:
    save_file(theirs, folder / "model.safetensors", metadata={"format": "pt"})


def chunks(shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every place of every chunk in a tensor."""
    of_each = [[(begin, end - begin) for begin in range(size) for end in range(begin + 1, size + 1)] for size in shape]
    for spans in product(*of_each):
        yield tuple(begin for begin, _ in spans), tuple(length for _, length in spans)


class Planner:
    """Of torch's LoadPlanner what a storage asks for."""

    def __init__(self, targets: list[torch.Tensor]) -> None:
        self._targets = targets
        self.committed = 0

    def resolve_tensor(self, item: SimpleNamespace) -> torch.Tensor:
        return self._targets[item.number]

    def commit_tensor(self, item: SimpleNamespace, tensor: torch.Tensor) -> None:
        self.committed += 1


@pytest.mark.parametrize("prefixed", [True, False])
def test_any_chunk_is_read_from_its_place(section, state, tmp_path, prefixed) -> None:
    theirs = to_huggingface(state, section)
    write(tmp_path, theirs if prefixed else {name.removeprefix("toy."): t for name, t in theirs.items()})
    reader = PretrainedReader(tmp_path, section)
    items, targets, expected = [], [], []
    for name in [name for name in state if not name.startswith("blocks.0")]:
        for offsets, lengths in chunks(tuple(state[name].shape)):
            index = MetadataIndex(f"weight.{name}")
            items.append(
                SimpleNamespace(storage_index=index, storage_offsets=offsets, lengths=lengths, number=len(items))
            )
            targets.append(torch.full(lengths, float("nan")))
            cut = tuple(slice(begin, begin + size) for begin, size in zip(offsets, lengths, strict=True))
            expected.append(state[name][cut])
    planner = Planner(targets)
    reader.read_data(SimpleNamespace(items=items), planner).wait()
    assert planner.committed == len(items) > 1000
    assert all(torch.equal(got, wanted) for got, wanted in zip(targets, expected, strict=True))


def test_headers_are_held_against_their_shapes(section, state, tmp_path) -> None:
    theirs = to_huggingface(state, section)
    write(tmp_path, theirs)
    assert weight_files(tmp_path, section).keys() == theirs.keys()
    theirs["toy.h.0.attn.c_attn.weight"] = theirs["toy.h.0.attn.c_attn.weight"].T.contiguous()
    del theirs["toy.h.1.attn.c_attn.bias"]
    write(tmp_path, theirs)
    with pytest.raises(CheckpointError) as caught:
        weight_files(tmp_path, section)
    assert str(caught.value).splitlines() == [
        f"{tmp_path}: toy.h.0.attn.c_attn.weight: has shape (12, 6), the model section says (6, 12)",
        f"{tmp_path}: toy.h.1.attn.c_attn.bias: is missing",
    ]
    with pytest.raises(CheckpointError, match=r"are 13 tensors; the model section says 250,004"):
        weight_files(tmp_path, FusedSection(num_hidden_layers=50_000))


class TestNamesInFiles:
    def test_without_the_prefix(self, section, state, tmp_path) -> None:
        theirs = {name.removeprefix("toy."): tensor for name, tensor in to_huggingface(state, section).items()}
        theirs |= {"h.0.attn.bias": torch.zeros(1), "pooler.dense.weight": torch.zeros(2)}
        write(tmp_path, theirs)
        files = weight_files(tmp_path, section)
        assert theirs.keys() - files.keys() == {"h.0.attn.bias", "pooler.dense.weight"}
        back = from_huggingface(theirs, section)
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())

    def test_with_it_in_part(self, section, state, tmp_path) -> None:
        theirs = to_huggingface(state, section)
        theirs["wte.weight"] = theirs.pop("toy.wte.weight")
        write(tmp_path, theirs)
        with pytest.raises(
            CheckpointError, match=r"safetensors: wte.weight: is not a weight.*\n.*toy.wte.weight: is missing"
        ):
            weight_files(tmp_path, section)

    def test_buffers_are_read_past(self, section) -> None:
        wanted = wholes(section)
        extra = ["toy.h.11.attn.bias", "pooler.dense.bias", "toy.h.x.attn.bias", "toy.pooler"]
        stored, unknown = recognised([*wanted, *extra], wanted, section)
        assert list(stored) == list(wanted)
        assert unknown == ["toy.h.x.attn.bias", "toy.pooler"]

    def test_copies_of_what_is_tied(self, section, state) -> None:
        copies = ["predictions.decoder.weight", "predictions.decoder.bias"]
        tied = FusedSection(tie_word_embeddings=True)
        assert recognised(copies, wholes(tied), tied) == ({}, [])
        assert recognised([*copies, "lm_head.weight"], wholes(section), section)[1] == [copies[1], "lm_head.weight"]
        theirs = to_huggingface(state, tied)
        assert copies[0] not in theirs
        theirs |= dict.fromkeys(copies, torch.zeros(1))
        assert from_huggingface(theirs, tied).keys() == state.keys() - {"head.weight"}


@pytest.mark.parametrize("shard_bytes", [1, 100, 400, 1000, 10**6])
def test_no_file_holds_half_of_a_fused_tensor(section, state, tmp_path, monkeypatch, shard_bytes) -> None:
    padding = {"embedding.weight", "head.weight", "head.bias"}
    padded = {
        name: torch.cat([tensor, torch.full((3, *tensor.shape[1:]), 7.0)]) if name in padding else tensor
        for name, tensor in state.items()
    }
    monkeypatch.setattr(exporting, "read_tensors", lambda *_, names, **__: {name: padded[name] for name in names})
    monkeypatch.setattr(exporting, "read_state", lambda folder: SimpleNamespace(parameters="all"))
    files, size = exporting._write_weights([Path("none")], tmp_path, section, "float32", shard_bytes, lambda _: None)
    written = sorted(tmp_path.glob("*.safetensors"))
    held = [load_file(file) for file in written]
    assert len(held) == files
    assert size == sum(4 * tensor.numel() for tensor in state.values())
    assert all(len(one) == 1 or sum(t.nbytes for t in one.values()) <= shard_bytes for one in held)
    got = {name: tensor for one in held for name, tensor in one.items()}
    expected = to_huggingface(state, section)
    assert sum(map(len, held)) == len(expected)
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())
    assert weight_files(tmp_path, section).keys() == expected.keys()
    if files > 1:
        places = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
        assert places.keys() == expected.keys()
