import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from launcher.data_cli import app
from megatrain.errors import DataError


@pytest.fixture
def folder(tmp_path):
    lines = [json.dumps({"body": f"Document number {number}, of some words."}) for number in range(200)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return tmp_path


def run(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
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
    assert "out/shard-00000.tar: is missing\n" in str(error.value)
    assert "held/manifest.json: was damaged" in str(error.value)
    assert error.value.exit_code == 4


def test_help_answers_without_heavy_imports():
    code = (
        "import sys; from launcher.data_cli import app\n"
        "try: app(['prepare', '--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'numpy', 'datasets', 'tokenizers') if m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "megatrain data prepare corpus/*.jsonl.zst" in result.stdout
