import os
import struct

import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.loading.shards import PreparedData
from megatrain.data.text.megatron import read_megatron

CODES = {np.uint8: 1, np.int16: 3, np.int32: 4, np.int64: 5, np.uint16: 8}


def write_megatron(prefix, documents, dtype=np.uint16, modes=False):
    """By the layout that Megatron publishes. A document is a list of sequences."""
    sequences = [np.array(sequence, dtype=dtype) for document in documents for sequence in document]
    lengths = np.array([len(sequence) for sequence in sequences], dtype="<i4")
    bytes_before = np.concatenate([[0], np.cumsum(lengths.astype(np.int64) * np.dtype(dtype).itemsize)])
    bounds = np.cumsum([0, *map(len, documents)]).astype("<i8")
    prefix.with_suffix(".bin").write_bytes(b"".join(sequence.tobytes() for sequence in sequences))
    prefix.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)
        + struct.pack("<B", CODES[dtype])
        + struct.pack("<Q", len(lengths))
        + struct.pack("<Q", len(bounds))
        + lengths.tobytes()
        + bytes_before[:-1].astype("<i8").tobytes()
        + bounds.tobytes()
        + (bytes(len(lengths)) if modes else b"")
    )
    return prefix.with_suffix(".idx")


DOCUMENTS = [[[5, 6, 7]], [[8, 9], [10]], [[11, 12, 13, 14, 0]]]


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("modes", [False, True])
def test_every_token_type(tmp_path, dtype, modes):
    index = write_megatron(tmp_path / "a", DOCUMENTS, dtype, modes)
    found = [tokens.tolist() for tokens, _ in read_megatron(index)]
    assert found == [[5, 6, 7], [8, 9, 10], [11, 12, 13, 14, 0]]


def test_tokens_are_taken_as_they_are_and_end_with_one_eos(tmp_path, tokenizer, tokenizer_folder, prepare_text):
    texts = ["first text", "second, longer text", "third"]
    eos = tokenizer.eos_id
    ids = [tokenizer.encode(text) for text in texts]
    write_megatron(tmp_path / "a", [[ids[0]], [[*ids[1], eos]], [ids[2]]])  # one has its EOS already
    prepare_text(tmp_path / "a.bin", tmp_path / "out", tokenizer_folder, block_tokens=64)
    data = PreparedData(tmp_path / "out")
    assert data.block_tokens(0).tolist() == [*ids[0], eos, *ids[1], eos, *ids[2], eos]
    data.close()
    assert read_manifest(tmp_path / "out").recipe.sources.count == 2


def test_text_and_its_tokens_fall_to_the_same_set(tmp_path, make_corpus, tokenizer, tokenizer_folder, prepare_text):
    """A hold-out is chosen by the text, in whatever form it comes."""
    corpus = make_corpus(tmp_path / "a.jsonl", documents=40, seed=2)
    from megatrain.data.text.documents import read_documents

    ids = [[tokenizer.encode(document.content)] for document in read_documents([corpus], "text")]
    index = write_megatron(tmp_path / "b", ids)
    for source, name in ((corpus, "text"), (index, "tokens")):
        prepare_text(source, tmp_path / name, tokenizer_folder, holdout=0.3, holdout_out=tmp_path / f"{name}-held")
    for part in ("", "-held"):
        shards = [(tmp_path / f"{name}{part}" / "shard-00000.tar").read_bytes() for name in ("text", "tokens")]
        assert shards[0] == shards[1]


def test_tokens_of_another_tokenizer(tmp_path, tokenizer_folder, prepare_text):
    index = write_megatron(tmp_path / "a", [[[5, 60_000]]])
    with pytest.raises(DataError, match="its vocabulary is 400, and the tokens to import reach from 5 to 60000"):
        prepare_text(index, tmp_path / "out", tokenizer_folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index, data: (b"nonsense", data), "is not an index of Megatron"),
        (lambda index, data: (index[:9] + b"\x02" + index[10:], data), "version 2"),
        (lambda index, data: (index[:17] + b"\x06" + index[18:], data), "dtype code 6"),
        (lambda index, data: (index[:-5], data), r"is cut off: it announces 4 sequences"),
        (lambda index, data: (index[:-8] + b"\xff" * 8, data), "is damaged: its documents"),
        (
            lambda index, data: (index, data[:-1]),
            r"a\.bin: has 21 bytes; by its index, sequence 3 has 5 tokens of 2 bytes from byte 12 on: cut off",
        ),
        (lambda index, data: (index, None), r"a\.bin: is missing"),
    ],
)
def test_files_that_are_not_whole(tmp_path, damage, message):
    index = write_megatron(tmp_path / "a", DOCUMENTS)
    data = index.with_suffix(".bin")
    changed = damage(index.read_bytes(), data.read_bytes())
    index.write_bytes(changed[0])
    data.unlink() if changed[1] is None else data.write_bytes(changed[1])
    with pytest.raises(DataError, match=message):
        list(read_megatron(index))


LENGTHS, OFFSETS = slice(34, 50), slice(50, 82)  # of the four sequences, in the index


@pytest.mark.parametrize(
    ("place", "values", "message"),
    [
        (LENGTHS, [3, 50_000, 1, 5], r"a\.bin: has 22 bytes; by its index, sequence 1 has 50,000 tokens"),
        (LENGTHS, [3, -2, 1, 5], r"a\.idx: is damaged: sequence 1 has -2 tokens"),
        (LENGTHS, [-(2**31)] * 4, r"a\.idx: is damaged: sequence 0"),
        (LENGTHS, [5, 5, 5, 5], r"a\.idx: is damaged: its sequences have 40 bytes"),
        (LENGTHS, [8, 7, 1, 1], r"a\.idx: is damaged: its sequences have 34 bytes"),
        (OFFSETS, [0, -2, 10, 12], r"sequence 1 has 2 tokens of 2 bytes from byte -2 on"),
        (OFFSETS, [0, 2**63 - 1, 10, 12], r"sequence 1 has 2 tokens"),
        (OFFSETS, [-(2**63)] * 4, r"sequence 0 has 3 tokens"),
    ],
)
def test_sequences_that_are_not_in_the_file(tmp_path, place, values, message):
    index = write_megatron(tmp_path / "a", DOCUMENTS)
    content = bytearray(index.read_bytes())
    content[place] = np.array(values, "<i4" if place is LENGTHS else "<i8").tobytes()
    index.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_megatron(index))


def test_counts_that_no_file_has(tmp_path):
    index = write_megatron(tmp_path / "a", DOCUMENTS)
    content = bytearray(index.read_bytes())
    for counts in ((2**63, 4), (4, 2**64 - 1)):
        content[18:34] = np.array(counts, "<u8").tobytes()
        index.write_bytes(content)
        with pytest.raises(DataError, match="is cut off"):
            list(read_megatron(index))
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(DataError, match="it is a named pipe"):
        list(read_megatron(index))
