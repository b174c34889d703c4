"""The chat template of a tokenizer: messages -> the text that a model was trained to see them as.

The same Jinja dialect, in the same sandbox, as `apply_chat_template` of transformers. A template is somebody else's
program: it gets plain data, no clock (a date in it would make other examples tomorrow), and limited time and memory.
"""

import json
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox

from megatrain.base.errors import DataError
from megatrain.base.files import read_bytes, read_json
from megatrain.data.text.tokenizer import token_text

_TEMPLATE = "chat_template.jinja"
_CONFIGS = ("special_tokens_map.json", "tokenizer_config.json")  # the second counts where both name a token
_LIMIT = 1 << 20  # bytes of a template
_SECONDS = 5.0  # of processor time, for one rendering
_MEMORY = 256 << 20  # bytes of address space, for one rendering
_LONGEST_PRODUCT = 1 << 20  # of a text and a number

Message = Mapping[str, Any]


class ChatTemplate:
    """A template and the special tokens that it may name.

    Args:
        source: the template.
        name: the file it is of, for messages.
        tokens: such as bos_token.

    Raises:
        DataError: it is not a template.
    """

    def __init__(self, source: str, *, name: str, tokens: Mapping[str, str]) -> None:
        self._name = name
        self.source = source
        self._tokens = dict(tokens)
        self._too_slow: DataError | None = None
        try:
            with _time_limit(_SECONDS), _memory_limit(_MEMORY):  # Jinja works out what is constant
                environment = _environment()
                self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, TimeoutError, MemoryError) as error:
            raise DataError(f"{name}: is not a chat template: {str(error) or type(error).__name__}") from None
        marks = environment.extensions[_Generation.identifier]
        assert isinstance(marks, _Generation)
        self._generation = marks

    @classmethod
    def load(cls, tokenizer: str | Path) -> "ChatTemplate | None":
        """The template beside a tokenizer.json, or None.

        Raises:
            DataError: a file cannot be read, or is not what its name says.
        """
        folder = Path(tokenizer) if Path(tokenizer).is_dir() else Path(tokenizer).parent
        merged: dict[str, Any] = {}
        for file in (folder / name for name in _CONFIGS):
            found = read_json(file, error=DataError) if file.exists() else {}
            merged |= found if isinstance(found, dict) else {}
        texts = {key: token_text(value) for key, value in merged.items() if key.endswith("_token")}
        tokens = {key: text for key, text in texts.items() if text is not None}
        if (file := folder / _TEMPLATE).exists():
            content = read_bytes(file, limit=_LIMIT, error=DataError)
            return cls(content.decode("utf-8", errors="replace"), name=str(file), tokens=tokens)
        template = merged.get("chat_template")
        if isinstance(template, list):  # several with names
            named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
            template = named.get("default")
        if not isinstance(template, str):
            return None
        return cls(template, name=f"{folder / _CONFIGS[-1]}: chat_template", tokens=tokens)

    def render(self, messages: Sequence[Message], *, tools: object = None, add_generation_prompt: bool = False) -> str:
        """The messages as text; with the beginning of an assistant's turn where that is asked for.

        Raises:
            DataError: the template refuses the messages, or does not come to an end.
        """
        return self._rendered(messages, tools, add_generation_prompt)[0]

    @property
    def has_marks(self) -> bool:
        """Whether it says itself what the assistant generates."""
        return self._generation.used

    def render_marked(self, messages: Sequence[Message], *, tools: object = None) -> tuple[str, list[tuple[int, int]]]:
        """The messages as text, and where in it the parts lie that the template marks: transformers' own definition.

        Raises:
            DataError: as `render`; or the marks are where their place in the text cannot be known, as in a macro.
        """
        text, marked = self._rendered(messages, tools, add_generation_prompt=False)
        if any(text[start : start + len(part)] != part for start, part in marked):
            raise DataError(
                f"{self._name}: {{% generation %}} stands where its place in the text is not known, as in a macro or "
                "a {% set %}: move it out"
            )
        return text, [(start, start + len(part)) for start, part in marked]

    def _rendered(
        self, messages: Sequence[Message], tools: object, add_generation_prompt: bool
    ) -> tuple[str, list[tuple[int, str]]]:
        if self._too_slow is not None:
            raise self._too_slow  # a template that does not end would take its time with each example
        parts: list[str] = []
        try:
            with _time_limit(_SECONDS), _memory_limit(_MEMORY), self._generation.noting(parts) as marked:
                for part in self._template.generate(
                    **self._tokens, messages=messages, tools=tools, add_generation_prompt=add_generation_prompt
                ):
                    parts.append(part)
                return "".join(parts), marked
        except TimeoutError as error:
            self._too_slow = DataError(f"{self._name}: {error}")
            raise self._too_slow from None
        except MemoryError:
            raise DataError(f"{self._name}: takes more than {_MEMORY >> 20} MiB to render") from None
        except Exception as error:  # whatever a template does with data it was not made for
            raise DataError(f"{self._name}: {str(error) or type(error).__name__}") from None

    def pair(self, messages: Sequence[Message], *, tools: object = None) -> tuple[str, str]:
        """The text up to the last message, and that message: what is given to the model, and what it is to say.

        Raises:
            DataError: the template does not render the last message behind the text of those before it.
        """
        whole = self.render(messages, tools=tools)
        for begun in (True, False):  # not every template has a beginning of its own for an answer
            before = self.render(messages[:-1], tools=tools, add_generation_prompt=begun)
            if whole.startswith(before) and len(whole) > len(before):
                return before, whole[len(before) :]
        raise DataError(
            f"{self._name}: renders the last message otherwise than behind the text of those before it; "
            "write the examples as prompt and response"
        )


class _Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what the assistant generates, as in transformers."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.used = False
        self._parts: list[str] = []
        self._marked: list[tuple[int, str]] = []

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        self.used = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller: Callable[[], str]) -> str:
        text = caller()
        self._marked.append((sum(map(len, self._parts)), text))
        return text

    @contextmanager
    def noting(self, parts: list[str]) -> Iterator[list[tuple[int, str]]]:
        """Characters before each marked text, and the text, while `parts` grows to the whole."""
        self._parts, self._marked = parts, []
        yield self._marked


class _Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """Neither can a product of a text and a number fill the memory, nor a power."""

    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        sizes = [len(one) if isinstance(one, str | list | tuple) else abs(one) for one in (left, right)]
        text = any(isinstance(one, str | list | tuple) for one in (left, right))
        if (text and sizes[0] * sizes[1] > _LONGEST_PRODUCT) or (operator == "**" and max(sizes) > 1000):
            raise jinja2.exceptions.SecurityError(f"{operator} of too much")
        return super().call_binop(context, operator, left, right)


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in what runs for longer. Signals reach the main thread only: elsewhere there is no limit."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"takes longer than {seconds:g} s to render")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def _memory_limit(size: int) -> Iterator[None]:
    """Raises MemoryError in what takes so many bytes more; in the main thread, as `_time_limit`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = (pages * resource.getpagesize() + size, before, hard)
    resource.setrlimit(resource.RLIMIT_AS, (min(n for n in limits if n != resource.RLIM_INFINITY), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (before, hard))
