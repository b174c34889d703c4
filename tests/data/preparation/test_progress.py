import io

from megatrain.data.preparation import progress
from megatrain.data.preparation.progress import ProgressLine


def test_a_plain_line_off_a_terminal(monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)
    output = io.StringIO()
    with ProgressLine("prepare", 1000, output) as line:
        line.update(documents=2, tokens=3000, bytes_read=100)
        line.update(documents=3, tokens=4000, bytes_read=500)
    first, second, last = output.getvalue().splitlines()
    assert first.startswith("prepare: 2 documents · 3,000 tokens · ")
    assert "· 50% · eta " in second
    assert last.startswith("prepare: 5 documents · 7,000 tokens · ")


def test_nothing_is_written_without_a_stream(capsys):
    with ProgressLine("prepare", 10, None) as line:
        line.update(documents=1, tokens=1, bytes_read=10)
    assert capsys.readouterr() == ("", "")


def test_a_live_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    output = Terminal()
    with ProgressLine("prepare", 1000, output) as line:
        line.update(documents=2, tokens=3000, bytes_read=1000)
    assert "\x1b[" in output.getvalue()
    assert "prepare: 2 documents · 3,000 tokens" in output.getvalue()
