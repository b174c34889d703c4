import base64
import json
import os
import re
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from megatrain.base.errors import ConfigError, DataError


@pytest.fixture
def folder(tmp_path):
    lines = [json.dumps({"body": f"Document number {number}, of some words."}) for number in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(app, ["data", *map(str, arguments)])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def prepare(folder):
    run("tokenizer", "train", folder / "a.jsonl", "--out", folder / "t", "--vocab-size", 300, "--text-field", "body")
    return run(
        *("prepare", folder / "a.jsonl", "--out", folder / "out", "--tokenizer", folder / "t", "--text-field", "body"),
        *("--holdout", 0.1, "--holdout-out", folder / "held", "--block-tokens", 64, "--workers", 1),
    )


def test_from_text_to_verified_shards(folder):
    assert "documents, 1 shards" in prepare(folder).output
    assert json.loads(run("inspect", folder / "held", "--json").stdout)["part"] == "holdout"
    assert "it begins:\n  Document number" in run("inspect", folder / "out").stdout
    verified = run("verify", folder / "out", folder / "held")
    assert verified.exit_code == 0
    assert verified.stdout.count("every byte is as it was written") == 2


def test_verify_names_every_damaged_file_of_every_folder(folder):
    prepare(folder)
    (folder / "out" / "shard-00000.tar").unlink()
    (folder / "held" / "manifest.json").write_text("{")
    with pytest.raises(DataError) as error:
        run("verify", folder / "out", folder / "held")
    assert "out/shard-00000.tar: cannot be read: No such file or directory\n" in str(error.value)
    assert "held/manifest.json: is not JSON" in str(error.value)
    assert error.value.exit_code == 4


def test_selection_and_packing_are_reported(folder):
    run("tokenizer", "train", folder / "a.jsonl", "--out", folder / "t", "--vocab-size", 300, "--text-field", "body")
    (folder / "b.jsonl").write_text((folder / "a.jsonl").read_text() + "\n" + json.dumps({"body": "x"}))
    output = run(
        *("prepare", folder / "a.jsonl", folder / "b.jsonl", "--out", folder / "out", "--tokenizer", folder / "t"),
        *("--text-field", "body", "--dedup", "exact", "--min-characters", 5, "--workers", 1),
        *("--pack", "best_fit", "--sequence-length", 64, "--block-tokens", 128),
    ).output
    assert "dropped: 1 too short, 200 duplicate\n" in output
    assert "packed by best fit: " in output
    assert "cut documents: 0, all longer than a row (concatenation: " in output
    inspected = run("inspect", folder / "out", "--png", folder / "lengths.png").stdout
    assert "dropped: 1 too short, 200 duplicate" in inspected
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG\r\n")
    facts = json.loads(run("inspect", folder / "out", "--json").stdout)
    assert facts["packing"]["documents_cut"] == 0
    assert facts["left_out"] == {"too_short": 1, "duplicate": 200}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dedup", "some"), "--dedup: some: must be none, exact or near"),
        (("--pack", "tight"), "--pack: tight: must be concat or best_fit"),
        (("--pack", "best_fit"), "--pack best_fit and --sequence-length go together"),
        (("--sequence-length", 64), "--pack best_fit and --sequence-length go together"),
        (("--pack", "best_fit", "--sequence-length", 100), "--sequence-length: 100: must divide --block-tokens 262144"),
    ],
)
def test_options_that_do_not_go_together(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        run("prepare", folder / "a.jsonl", "--out", folder / "out", "--tokenizer", folder / "t", *options)


def test_a_tokenizer_is_imported(folder):
    tokens = [bytes([byte]) for byte in range(256)] + [b"th", b"the"]
    lines = [base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens)]
    (folder / "mine.tiktoken").write_bytes(b"".join(lines))
    output = run("tokenizer", "import", folder / "mine.tiktoken", "--out", folder / "t", "--pattern", r"\s+|\S+").output
    assert "260 tokens; end of document: id 258, padding: id 259" in output
    assert (folder / "t" / "tokenizer.json").exists()


def test_verify_tells_how_far_it_is(folder):
    prepare(folder)
    assert re.search(r"verify .*/out: .*100%", run("verify", folder / "out").stderr)


def test_help_answers_without_heavy_imports():
    code = (
        "import sys; from launcher.cli import app\n"
        "try: app(['data', 'prepare', '--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'datasets', 'tokenizers') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "megatrain data prepare corpus/*.jsonl.zst" in result.stdout
