"""`megatrain data preview`: what is learnt of an example, in marks, in colour, and as JSON."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.commands.data import preview
from megatrain.base.errors import ConfigError
from megatrain.data.text.pieces import Piece, Shown
from tests.launcher.preflight.test_examples import FINETUNE, finetune  # noqa: F401 - a fixture


@pytest.fixture
def run(finetune, here):  # noqa: F811
    finetune()
    (here / "run.yaml").write_text(FINETUNE)

    def run(*arguments: object) -> list[str]:
        result = CliRunner().invoke(app, ["data", "preview", "run.yaml", *map(str, arguments)])
        if result.exception:
            raise result.exception
        return result.stdout.splitlines()

    return run


def test_marks_stand_for_colours(run) -> None:
    lines = run("-n", 2)
    assert lines[0].startswith("── a.jsonl:1 · ")
    assert lines[1] == "‹<s>›who 0⟦ me⟧⟦‹</s>›⟧"
    assert lines[-1].startswith("2 shown: ")
    assert lines[-1].endswith(" of them learnt; 0 with a note")


def test_drawn_by_a_seed(run) -> None:
    assert run("--seed", 3) == run("--seed", 3) != run("--seed", 4)


def test_as_json(run) -> None:
    (found,) = map(json.loads, run("-n", 1, "--json"))
    assert found["where"] == "a.jsonl:1"
    assert found["tokens"] == len(found["token_ids"]) == sum(piece["tokens"] for piece in found["pieces"])
    assert found["targets"] == sum(piece["tokens"] for piece in found["pieces"] if piece["learnt"])


def test_without_a_validation(run) -> None:
    with pytest.raises(ConfigError, match=r"--validation: run.yaml has no finetune.validation"):
        run("--validation")


def test_colour_cannot_be_steered_by_a_text() -> None:
    pieces = (Piece("\x1b[31ma", 1, False, False), Piece("b", 1, True, True, "X\x1b"))
    text = preview._text(Shown("a:1", pieces, (1, 2), 1, None), colour=True)
    assert text.splitlines()[1] == "\\x1b[31ma\x1b[0m\x1b[32m\x1b[2mb\x1b[0m\x1b[33m/X\\u001b\x1b[0m"


def test_without_torch() -> None:
    """Of a fine-tuning: its examples are read as the preflight reads them."""
    code = (
        "import sys, launcher.commands.data.preview, megatrain.data.examples.preview\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
