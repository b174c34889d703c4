import json
import subprocess
import sys

import pytest

from megatrain.base.errors import DataError
from megatrain.base.files import sha256_file
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.loading.shards import PreparedData


def test_it_reads_back_what_prepare_wrote(prepared, tokenizer, corpus):
    manifest = read_manifest(prepared)
    assert manifest == read_manifest(prepared / "manifest.json")
    assert manifest.vocab_size == tokenizer.vocab_size
    assert manifest.eos_id == tokenizer.eos_id
    assert manifest.tokenizer_sha256 == tokenizer.sha256
    assert manifest.documents == 120
    (source,) = map(json.loads, (prepared / "sources.jsonl").read_text().splitlines())
    assert source == {"name": str(corpus), "bytes": corpus.stat().st_size, "sha256": sha256_file(corpus, DataError)}
    assert manifest.recipe.sources.count == 1
    assert manifest.manifest_hash == json.loads((prepared / "manifest.json").read_text())["manifest_hash"]


def test_rows_agree_with_the_index(prepared):
    data = PreparedData(prepared)
    for length in (1, 16, 32, 256):
        assert data.manifest.rows(length) == sum((int(count) - 1) // length for count in data.index.tokens)
    data.close()


def test_a_sequence_length_that_does_not_divide_the_block(prepared):
    with pytest.raises(
        DataError, match=r"sequence_length: 100: does not divide .*\(256 tokens\)\. Try 128.*block-tokens 200"
    ):
        read_manifest(prepared).rows(100)


def test_the_launcher_can_read_it_without_torch():
    code = "import sys, megatrain.data.folder.manifest as _; print({'torch', 'numpy', 'datasets'} & {*sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"is not a prepared folder: it has no manifest\.json\. Run `megatrain data prepare`"),
        (lambda text: text[: len(text) // 2], r"manifest\.json: is not JSON: Unterminated"),
        (lambda text: text.replace('"documents": 120', '"documents": 121'), "was damaged or edited"),
        (
            lambda text: text.replace('"format_version": 2', '"format_version": 9'),
            "format_version: 9: this megatrain reads 2",
        ),
        (lambda text: "[]", "must be a JSON object"),
    ],
)
def test_a_manifest_that_is_not_whole(tmp_path, prepared, change, message):
    if change:
        (tmp_path / "manifest.json").write_text(change((prepared / "manifest.json").read_text()))
    with pytest.raises(DataError, match=message):
        read_manifest(tmp_path)
