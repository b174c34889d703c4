"""Nothing that is shown steers a terminal, and what can be copied is one word."""

import shlex
import subprocess
import sys

import pytest

from megatrain.base.terminal import complain, copyable, has_control_characters, printable, say

HOSTILE = "a\x1b[2Jb\x00\x7f\x9b31m\r\u202eend\udcff\u2028"


def test_control_characters_are_written_as_escapes():
    assert printable(HOSTILE) == r"a\x1b[2Jb\x00\x7f\x9b31m\x0d\u202eend\xff\u2028"
    assert printable("two\tcolumns\nand ü, 日本, 💥") == "two\tcolumns\nand ü, 日本, 💥"


def test_what_is_said_is_printable(capsys):
    say(HOSTILE)
    complain(f"first {HOSTILE}\nsecond", "warning")
    said = capsys.readouterr()
    assert not has_control_characters(said.out.rstrip("\n"))
    assert said.err.splitlines()[-1] == "warning: second"
    assert all(line.startswith("warning: ") for line in said.err.splitlines())


@pytest.mark.parametrize("path", ["runs/tiny", "a b/$(touch owned)", "it's", "-rf", "ü"])
def test_a_path_is_one_word_of_a_command_and_no_option(path):
    (word,) = shlex.split(copyable(path))
    assert word in (path, f"./{path}")
    assert not word.startswith("-")


def test_streams_that_lack_a_character_write_an_escape():
    code = "from megatrain.base.terminal import *; accept_any_text(); say('3 × ü')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii"}, capture_output=True, text=True, check=True
    )
    assert done.stdout == "3 \\xd7 \\xfc\n"


def test_a_message_does_not_repeat_a_password(capsys):
    complain("http://ada:hunter2@host/a.jsonl: cannot be read")
    said = capsys.readouterr().err
    assert "hunter2" not in said
    assert "host/a.jsonl: cannot be read" in said
