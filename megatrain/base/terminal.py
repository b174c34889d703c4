"""What is shown to people: text that cannot steer their terminal, and commands that they can copy into a shell.

Paths, manifests and other people's error texts may hold escape sequences; a terminal would obey them.
"""

import json
import os
import re
import shlex
import sys
from typing import Any, TextIO

from megatrain.base.credentials import without_credentials

# Control characters (C0, DEL, C1), line and paragraph separators, marks that turn the direction of writing, and halves
# of surrogate pairs, which Python makes of the bytes of a file name that is not UTF-8.
_CONTROL = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_ANY = re.compile(f"[{_CONTROL}]")
_ANY_BUT_LAYOUT = re.compile(f"(?![\n\t])[{_CONTROL}]")


def has_control_characters(text: str) -> bool:
    """Whether a terminal, a log or a file name could not take this text as it is; newlines and tabs count."""
    return _ANY.search(text) is not None


def printable(text: str) -> str:
    """The text with every control character but newline and tab written as an escape, such as \\x1b."""
    return _ANY_BUT_LAYOUT.sub(_escape, text)


def printable_json(value: Any) -> str:
    """A line of JSON that keeps every other alphabet as it is."""
    return _ANY.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def say(text: object = "", *, file: TextIO | None = None, end: str = "\n", flush: bool = False) -> None:
    """`print`, of what a terminal can be shown; to standard output unless `file` is given."""
    print(printable(str(text)), file=file or sys.stdout, end=end, flush=flush)


def complain(text: object, kind: str = "error") -> None:
    """Each line of a message to standard error, after what it is: "error: …" or "warning: …". Credentials, which the
    addresses in it may hold, are dropped.
    """
    for line in without_credentials(str(text)).rstrip("\n").split("\n"):
        say(f"{kind}: {line}", file=sys.stderr, flush=True)


def is_terminal(stream: TextIO) -> bool:
    """Whether what is written ends on a terminal: this is one, or the launcher has said so by rich's variable."""
    return stream.isatty() or os.environ.get("TTY_COMPATIBLE") == "1"


def copyable(path: object) -> str:
    """A path as one word of a shell command, which no command takes for an option."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def accept_any_text() -> None:
    """Let standard output and error write escapes for characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
