"""Texts and conversations as ids that a model is to continue, and what ends that."""

from collections.abc import Collection, Sequence
from typing import Any

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.examples.chat_template import ChatTemplate, Message
from megatrain.data.examples.prompt_completion import Pair
from megatrain.data.text.prompts import PromptEncoder, SpecialTokens
from megatrain.data.text.tokenizer import EncodeError, Tokenizer

_PROBE = "x"  # what an assistant says, to see what a template writes behind it


class Prompts:
    """Encodes as fine-tuning does, and as `transformers` with the exported tokenizer.

    Args:
        template: the tokenizer's, for conversations.
        special_tokens: see `PromptEncoder`; of conversations they are always parsed.
        rows: of the model's embedding.

    Attributes:
        prefix: ids that the tokenizer puts in front of a text.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, template: ChatTemplate | None, special_tokens: SpecialTokens, rows: int
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._encoder = PromptEncoder(tokenizer, special_tokens=special_tokens)
        self._templated = PromptEncoder(tokenizer)
        self._rows = rows
        self.prefix = self._encoder.prefix

    def text(self, text: str, where: str = "PROMPT") -> list[int]:
        """Ids with the tokenizer's prefix; of nothing, the end of a text: as in training, a document begins behind the
        end of another.

        Args:
            where: the text is from, for messages.

        Raises:
            ConfigError: it is no Unicode text, the tokenizer cannot encode it, or the model lacks one of its tokens.
        """
        try:
            text.encode("utf-8")
            ids = self._encoder.prompt(text)
        except UnicodeEncodeError as error:
            raise ConfigError(f"{where}: half a surrogate pair at character {error.start}: not Unicode") from None
        except EncodeError as error:
            raise ConfigError(f"{where}: {error}") from None
        return self._checked(ids or [self._tokenizer.eos_id], where)

    def templated(self, text: str, where: str = "PROMPT") -> list[int]:
        """Ids of what a template has made of a conversation: it writes the prefix itself. Raises as `text`."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(f"{where}: half a surrogate pair at character {error.start}: not Unicode") from None
        (encoding,) = self._templated.texts([text])
        if isinstance(encoding, EncodeError):
            raise ConfigError(f"{where}: {encoding}")
        return self._checked(list(encoding.ids) or [self._tokenizer.eos_id], where)

    def of_pair(self, pair: Pair) -> list[int]:
        """Ids of an example's prompt. Raises as `text`."""
        return (self.templated if pair.templated else self.text)(pair.prompt, pair.where)

    def conversation(self, messages: Sequence[Message], *, tools: Any = None, where: str = "PROMPT") -> list[int]:
        """Ids of a conversation up to the beginning of an answer.

        Raises:
            ConfigError: there is no chat template, it refuses the messages; or as `text`.
        """
        if self._template is None:
            raise ConfigError(
                f"{self._tokenizer.name}: has no chat template (chat_template.jinja beside it, or chat_template in "
                "tokenizer_config.json); leave --chat out, or add one"
            )
        try:
            text = self._template.render(messages, tools=tools, add_generation_prompt=True)
        except DataError as error:
            raise ConfigError(f"{where}: {error}") from None
        return self.templated(text, where)

    def ends(self, *, of_turns: bool) -> frozenset[int]:
        """Ids that end a text, or a turn of a conversation: then also the first special token that the template writes
        behind what an assistant says."""
        ids = {self._tokenizer.eos_id}
        if of_turns and self._template is not None:
            try:
                turn = ({"role": "user", "content": _PROBE}, {"role": "assistant", "content": _PROBE})
                behind = self._template.render(turn).rpartition(_PROBE)[2]
            except DataError:  # it wants other messages; the end of a text is left
                behind = ""
            encoded = self._templated.texts([behind]) if behind else ()
            found = [number for one in encoded if not isinstance(one, EncodeError) for number in one.ids]
            ids.update([number for number in found if number in self._templated.special_ids][:1])
        return frozenset(ids)

    def _checked(self, ids: list[int], where: str) -> list[int]:
        if (largest := max(ids)) >= self._rows:
            raise ConfigError(
                f"{where}: holds the id {largest} of the tokenizer; the model's embedding has {self._rows} rows"
            )
        return ids


class Ending:
    """When what is generated is at its end, and its text.

    Args:
        ids: tokens that end it, and are no part of the text.
        stops: texts that end it; neither they nor what follows them are part of it.
    """

    def __init__(self, tokenizer: Tokenizer, ids: Collection[int], stops: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._ids = frozenset(ids)
        self._stops = tuple(stop for stop in stops if stop)

    def __call__(self, made: Sequence[int]) -> bool:
        if made[-1] in self._ids:
            return True
        if not self._stops:
            return False
        text = self._tokenizer.decode(made)
        return any(stop in text for stop in self._stops)

    def text(self, before: Sequence[int], made: Sequence[int]) -> str:
        """What was generated behind some ids."""
        ended = next((place for place, token in enumerate(made) if token in self._ids), len(made))
        given, whole = self._tokenizer.decode(before), self._tokenizer.decode([*before, *made[:ended]])
        # a decoder may drop the space in front of a text, and needs what stands before it to keep it
        text = whole[len(given) :] if whole.startswith(given) else self._tokenizer.decode(made[:ended])
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        return text[: min(places)] if places else text
