import pytest

from quickstart.shell import BrokenPromiseError, Outcome, expect, megatrain


def test_a_command_is_shown_before_what_it_prints(capsys):
    outcome = megatrain("--version")
    shown = capsys.readouterr().out.strip().splitlines()
    assert shown[0] == "$ megatrain --version"
    assert shown[1].strip() == outcome.lines[0]
    assert outcome.exit_code == 0


def test_another_exit_code_than_promised_is_said():
    with pytest.raises(BrokenPromiseError, match="exited with 2, not 0"):
        megatrain("no-such-verb")
    assert megatrain("no-such-verb", exit_code=2).exit_code == 2


def test_a_line_to_stop_at_has_to_come():
    with pytest.raises(BrokenPromiseError, match="never printed"):
        megatrain("--version", stop_at="step 30")


def test_a_broken_promise_is_named():
    with pytest.raises(BrokenPromiseError, match="the sky is blue"):
        expect("the sky is blue", False)


def test_finding_a_line():
    outcome = Outcome(0, ["a", "step 3/9", "step 4/9"])
    assert (match := outcome.find(r"step (\d)")) is not None
    assert match[1] == "3"
    assert outcome.find("nothing like it") is None
