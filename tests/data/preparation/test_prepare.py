import errno
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.folder.hashed_files import sole_writer
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.loading.shards import PreparedData
from megatrain.data.preparation.prepare import PrepareOptions, prepare
from megatrain.data.text.documents import read_documents


class KilledError(BaseException):
    """Ends a run where SIGKILL would: nothing catches it."""


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def documents(folder, tokenizer) -> list[str]:
    """The texts that a prepared folder holds, cut at its document ends."""
    data = PreparedData(folder)
    blocks = [data.block_tokens(block) for block in range(len(data.index))]
    stream = np.concatenate([blocks[0], *(block[1:] for block in blocks[1:])])
    stride = data.manifest.block_tokens
    ends = np.unique(np.concatenate([stride * block + data.block_ends(block) for block in range(len(blocks))]))
    data.close()
    assert (stream[ends - 1] == tokenizer.eos_id).all()
    return [tokenizer.decode(ids[:-1]) for ids in np.split(stream, ends[:-1])]


def test_the_folder_holds_its_documents_and_nothing_else(prepared, corpus, tokenizer):
    assert documents(prepared, tokenizer) == [document.content for document in read_documents([corpus], "text")]
    names = set(contents(prepared))
    assert {name for name in names if not name.startswith("shard-")} == {
        "index.npz",
        "manifest.json",
        "sources.jsonl",
        "tokenizer.json",
    }


def test_stock_webdataset_reads_the_shards(prepared):
    data = PreparedData(prepared)
    urls = [str(prepared / shard.name) for shard in data.manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [f"{block:08d}" for block in range(len(data.index))]
    for block, sample in enumerate(samples):
        assert np.array_equal(np.frombuffer(sample["tokens"], "<u2"), data.block_tokens(block))
        assert np.array_equal(np.frombuffer(sample["ends"], "<u4"), data.block_ends(block))
    data.close()


def test_tar_headers_tell_nothing_of_their_maker(prepared):
    listing = subprocess.run(["tar", "tvf", prepared / "shard-00000.tar"], capture_output=True, text=True, check=True)
    assert "-rw-r--r-- 0/0" in listing.stdout.splitlines()[0]
    with tarfile.open(prepared / "shard-00000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, prepared, corpus, tokenizer_folder, prepare_text):
    prepare_text(corpus, tmp_path / "two", tokenizer_folder, workers=2)
    assert contents(tmp_path / "two") == contents(prepared)


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path, corpus, tokenizer_folder, tokenizer, prepare_text):
    content = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    marker = content["added_tokens"][0] | {"id": 70_000, "content": "<|far|>"}
    content["added_tokens"].append(marker)
    content["model"]["vocab"]["<|far|>"] = 70_000
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    prepare_text(corpus, tmp_path / "wide", tmp_path)
    assert read_manifest(tmp_path / "wide").recipe.dtype == "uint32"
    assert documents(tmp_path / "wide", tokenizer) == [d.content for d in read_documents([corpus], "text")]


def test_held_out_text_is_in_one_set_only_copies_included(
    tmp_path, make_corpus, tokenizer_folder, tokenizer, prepare_text
):
    once = make_corpus(tmp_path / "once.jsonl", documents=300, seed=5).read_text()
    (tmp_path / "twice.jsonl").write_text(once + "".join(reversed(once.splitlines(keepends=True))))
    train, held = tmp_path / "train", tmp_path / "held"
    prepare_text(tmp_path / "twice.jsonl", train, tokenizer_folder, holdout=0.2, holdout_out=held)
    in_train, in_held = documents(train, tokenizer), documents(held, tokenizer)
    assert not set(in_train) & set(in_held)
    assert len(in_train) + len(in_held) == 600
    assert 0.12 < len(set(in_held)) / 300 < 0.28
    assert (read_manifest(train).recipe.part, read_manifest(held).recipe.part) == ("train", "holdout")


def test_data_of_another_recipe_is_never_overwritten(tmp_path, corpus, tokenizer_folder, prepare_text, prepared):
    out = shutil.copytree(prepared, tmp_path / "out")
    before = contents(out)
    with pytest.raises(
        DataError, match=r"holds prepared data made with other block_tokens, shard_blocks\. Choose another"
    ):
        prepare_text(corpus, out, tokenizer_folder, block_tokens=512)
    (out / "manifest.json").unlink()
    with pytest.raises(DataError, match="holds shards of something else"):
        prepare_text(corpus, out, tokenizer_folder)
    before.pop("manifest.json")
    assert contents(out) == before


def test_unfinished_data_of_changed_inputs_is_refused(
    tmp_path, make_corpus, tokenizer_folder, prepare_text, monkeypatch
):
    corpus = make_corpus(tmp_path / "a.jsonl", documents=50, seed=9)

    def killed(descriptor):
        if list((tmp_path / "out").glob("shard-*.tar")):
            raise KilledError

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KilledError):
        prepare_text(corpus, tmp_path / "out", tokenizer_folder)
    monkeypatch.undo()
    with open(corpus, "a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(DataError, match="holds unfinished data made with other sources"):
        prepare_text(corpus, tmp_path / "out", tokenizer_folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"holdout": 1.0, "holdout_out": Path("h")}, "--holdout: 1.0: must be a fraction"),
        ({"holdout": 0.1}, "--holdout and --holdout-out go together"),
        ({"holdout_out": Path("h")}, "--holdout and --holdout-out go together"),
        ({"holdout": 0.1, "holdout_out": Path("./out")}, "must be another folder than --out"),
        ({"block_tokens": 0}, "--block-tokens: 0: must be from 1 to 1,073,741,824"),
        ({"workers": 0}, "--workers: 0: must be at least 1"),
        ({"maximum_bytes": 0}, "--max-document-mebibytes: 0: must be from 1 to 1,048,576"),
        ({"maximum_bytes": 10**30}, "--max-document-mebibytes: .*: must be from 1"),
        ({"shard_bytes": -1 << 20}, "--shard-mebibytes: -1: must be from 1 to 1,048,576"),
        ({"shard_bytes": 10**30}, "--shard-mebibytes: .*: must be from 1"),
        ({"inputs": (".",)}, "out: is inside the input"),
    ],
)
def test_contradictory_options(options, message):
    with pytest.raises(ConfigError, match=message):
        PrepareOptions(**{"inputs": ("a.txt",), "out": Path("out"), "tokenizer": Path("tokenizer")} | options)


def test_text_too_short_for_a_set(tmp_path, make_corpus, tokenizer_folder, prepare_text):
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"no document fell to the train set\. The inputs hold no text"):
        prepare_text(tmp_path / "empty.txt", tmp_path / "a", tokenizer_folder)
    corpus = make_corpus(tmp_path / "a.jsonl", documents=3, seed=1)
    with pytest.raises(
        DataError, match=r"c: no document fell to the holdout set\. --holdout 0\.0001 of so few.*raise it"
    ):
        prepare_text(corpus, tmp_path / "b", tokenizer_folder, holdout=0.0001, holdout_out=tmp_path / "c")
    assert contents(tmp_path / "b") == contents(tmp_path / "c") == {}
    prepare_text(corpus, tmp_path / "b", tokenizer_folder, holdout=0.7, holdout_out=tmp_path / "c", block_tokens=4)
    assert read_manifest(tmp_path / "b").documents + read_manifest(tmp_path / "c").documents == 3


def test_a_finished_shard_that_was_deleted_meanwhile_is_written_again(
    tmp_path, corpus, tokenizer_folder, prepare_text, prepared, monkeypatch
):
    out = tmp_path / "out"

    def killed(descriptor):
        if (out / "shard-00003.tar").exists():
            raise KilledError

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KilledError):
        prepare_text(corpus, out, tokenizer_folder)
    monkeypatch.undo()
    (out / "shard-00001.tar").unlink()
    prepare_text(corpus, out, tokenizer_folder)
    assert contents(out) == contents(prepared)


def test_a_folder_that_got_no_shard_is_free_for_other_inputs(
    tmp_path, corpus, tokenizer_folder, prepare_text, prepared
):
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        prepare_text(tmp_path / "a.png", tmp_path / "out", tokenizer_folder)
    prepare_text(corpus, tmp_path / "out", tokenizer_folder)
    assert contents(tmp_path / "out") == contents(prepared)


def test_two_writers_of_one_folder(tmp_path, corpus, tokenizer_folder, prepare_text):
    with sole_writer(tmp_path), pytest.raises(DataError, match="another process is writing here"):
        prepare_text(corpus, tmp_path, tokenizer_folder)
    prepare_text(corpus, tmp_path, tokenizer_folder)


def test_a_folder_that_cannot_be_written(tmp_path, corpus, tokenizer_folder, prepare_text, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file/out: cannot be written: Not a directory"):
        prepare_text(corpus, tmp_path / "file" / "out", tokenizer_folder)

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="cannot be written: No space left on device"):
        prepare_text(corpus, tmp_path / "out", tokenizer_folder)


@pytest.mark.parametrize("block_tokens", [1, 2, 3, 7, 64, 100_000])
def test_blocks_of_any_length_hold_the_same_documents(
    tmp_path, make_corpus, tokenizer_folder, tokenizer, prepare_text, block_tokens
):
    corpus = make_corpus(tmp_path / "a.jsonl", documents=6, seed=3)
    out = tmp_path / "out"
    prepare_text(corpus, out, tokenizer_folder, block_tokens=block_tokens, shard_bytes=block_tokens * 2 * 50)
    assert documents(out, tokenizer) == [document.content for document in read_documents([corpus], "text")]


def test_rows_without_a_text_are_counted_in_the_manifest(tmp_path, corpus, tokenizer_folder, prepare_text, prepared):
    source = tmp_path / "a.jsonl"
    source.write_text('{"text": null}\n' + corpus.read_text() + '{"other": 1}\n')
    prepare_text(source, tmp_path / "out", tokenizer_folder, skip_null=True)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.left_out == {"null_text": 2}
    assert manifest.recipe.selection == {"skip_null": True}
    assert (tmp_path / "out" / "shard-00000.tar").read_bytes() == (prepared / "shard-00000.tar").read_bytes()
    with pytest.raises(DataError, match=r"a\.jsonl:1: text: null: must be text"):
        prepare_text(source, tmp_path / "refused", tokenizer_folder)


def test_a_file_name_that_is_not_utf_8(tmp_path, corpus, tokenizer_folder, prepare_text):
    source = shutil.copy(corpus, tmp_path / os.fsdecode(b"\xff.jsonl"))
    prepare_text(source, tmp_path / "out", tokenizer_folder)
    assert json.loads((tmp_path / "out" / "sources.jsonl").read_bytes())["name"] == str(source)


def test_a_document_that_the_tokenizer_cannot_encode(tmp_path, make_tokenizer):
    """A regular expression that gives up is a panic of its library: file and line are named."""
    folder = make_tokenizer("byte_level")
    written = json.loads((folder / "tokenizer.json").read_text())
    pattern = {"Regex": "(a+)+$"}
    written["pre_tokenizer"] = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(written))
    lines = [json.dumps({"text": text}) for text in ("who", "what", "a" * 40 + "!", "where")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = PrepareOptions(
        inputs=[str(tmp_path / "a.jsonl")], out=tmp_path / "out", tokenizer=folder, block_tokens=64, workers=1
    )
    with pytest.raises(DataError, match=r"a\.jsonl:3: .*tokenizer.json: cannot encode the text 'aaaa"):
        prepare(options)
