"""Text from a checkpoint, in one process: to see what a run has learnt. Not a serving engine."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.state import read_state
from megatrain.config import Config
from megatrain.data.examples.chat_template import ChatTemplate, Message
from megatrain.data.examples.prompt_completion import Pair
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.generation.decode import continued, with_cache
from megatrain.generation.prompts import Ending, Prompts
from megatrain.generation.sampling import Sampling
from megatrain.huggingface.merged import read_merged_model
from megatrain.model.family import FAMILIES
from megatrain.run.directory import locate
from megatrain.run.inputs import load_run
from megatrain.tasks.sft.section import SFTSection


def generate(
    path: Path,
    prompt: str,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.8,
    seed: int = 0,
    top_k: int | None = 50,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    stops: Sequence[str] = (),
    chat: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> str:
    """The prompt and what the model adds to it, up to an end of text; of a conversation the answer alone.

    The prompt is encoded as `transformers` does with the exported tokenizer: with its BOS, and special tokens that are
    spelt out are special, unless the run was fine-tuned with task.special_tokens: text.

    Args:
        path: a run, of which the newest checkpoint that verifies is taken, or a checkpoint inside a run.
        temperature: 0 takes the likeliest token each time.
        top_k, top_p, repetition_penalty: see `generation.sampling.Sampling`.
        stops: texts that end what is added, and are no part of it.
        chat: the prompt is what a user says, and goes through the tokenizer's chat template.
        warn: told where the text becomes longer than what the model was trained on.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError: the prompt is no Unicode text, or becomes tokens that the model does not have; the model is an
            encoder or a classifier; or a value is out of its range.
        DataError: the run's tokenizer cannot be read.
    """
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, repetition_penalty=repetition_penalty)
    writer = Writer(path, sampling, max_new_tokens=max_new_tokens, stops=stops, seed=seed, warn=warn)
    if chat:
        return writer.answer([{"role": "user", "content": prompt}])
    return writer.continued_text(prompt)


class Writer:
    """A checkpoint's model, and how it is to continue texts.

    Raises:
        CheckpointError, ConfigError, DataError: see `generate`.
    """

    def __init__(
        self,
        path: Path,
        sampling: Sampling,
        *,
        max_new_tokens: int,
        stops: Sequence[str] = (),
        seed: int = 0,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        folder = find_checkpoint(path)
        run, _ = locate(path)
        self._config = load_run(run, warn=warn, verify=True)
        if self._config.tokenizer is None:
            raise CheckpointError(f"{run}: has no tokenizer; put its files into {run.tokenizer}")
        section = read_state(folder).model
        if section.num_labels is not None:
            raise ConfigError(
                f"{run}: task.name: {self._config.task.name}: is a classifier, and continues no text; "
                "`megatrain predict` tells what it says of texts"
            )
        if FAMILIES.get(section.family).whole:
            rule = (
                f"has attention without megatrain's key-value cache: `megatrain export {run}`, and generate from that"
            )
            raise ConfigError(f"{run}: model.family: {section.family}: {rule}")
        if not section.is_causal:
            raise ConfigError(f"{run}: model.family: {section.family}: is an encoder, and continues no text")
        self._tokenizer = Tokenizer.load(self._config.tokenizer.path)
        self._prompts = prompts_of(self._config, self._tokenizer, rows=section.padded_vocab_size)
        self._longest = section.longest_sequence
        self._model = read_merged_model(folder).eval()
        self._sampling, self._max_new_tokens, self._seed, self._warn = sampling, max_new_tokens, seed, warn
        self._stops = tuple(stops)

    def continued_text(self, prompt: str) -> str:
        """The prompt, as its tokens decode, and what follows it."""
        ids = self._prompts.text(prompt)
        prefix = self._prompts.prefix
        own = ids[len(prefix) :] if ids[: len(prefix)] == prefix else ids
        ending = Ending(self._tokenizer, self._prompts.ends(of_turns=False), self._stops)
        shown = self._tokenizer.decode([token for token in own if token != self._tokenizer.eos_id])
        return shown + self._continue([ids], ending)[0]

    def answer(self, messages: Sequence[Message]) -> str:
        """What an assistant says next in a conversation."""
        ending = Ending(self._tokenizer, self._prompts.ends(of_turns=True), self._stops)
        return self._continue([self._prompts.conversation(messages)], ending)[0]

    def answers(self, prompts: Sequence[tuple[str, str]], *, chat: bool, batch_size: int) -> Iterator[str]:
        """What follows each of several prompts, without them, in their order.

        Args:
            prompts: where each is from, for messages, and its text.
            batch_size: prompts at once.
        """
        encoded = [
            self._prompts.conversation([{"role": "user", "content": text}], where=where)
            if chat
            else self._prompts.text(text, where)
            for where, text in prompts
        ]
        return self._in_batches(encoded, batch_size, of_turns=chat)

    def responses(self, pairs: Sequence[Pair], *, batch_size: int) -> Iterator[str]:
        """What the model responds to the prompts of examples, in their order."""
        encoded = [self._prompts.of_pair(pair) for pair in pairs]
        return self._in_batches(encoded, batch_size, of_turns=any(pair.templated for pair in pairs))

    def _in_batches(self, encoded: Sequence[list[int]], size: int, *, of_turns: bool) -> Iterator[str]:
        ending = Ending(self._tokenizer, self._prompts.ends(of_turns=of_turns), self._stops)
        for first in range(0, len(encoded), size):
            yield from self._continue(encoded[first : first + size], ending, first=first)

    def _continue(self, prompts: Sequence[list[int]], ending: Ending, first: int = 0) -> list[str]:
        """
        Args:
            first: the number of the first prompt, for its seed.
        """
        self._check_lengths(max(map(len, prompts)))
        with with_cache(self._model, places=max(map(len, prompts)) + self._max_new_tokens) as next_logits:
            made = continued(
                next_logits,
                prompts,
                self._sampling,
                max_new_tokens=self._max_new_tokens,
                ends=ending,
                vocab_size=self._tokenizer.vocab_size,
                seeds=[self._seed + first + number for number in range(len(prompts))],
                longest=self._longest,
            )
        return [ending.text(prompt, tokens) for prompt, tokens in zip(prompts, made, strict=True)]

    def _check_lengths(self, tokens: int) -> None:
        if self._longest is not None and tokens >= self._longest:
            raise ConfigError(
                f"PROMPT: has {tokens:,} tokens; the model has {self._longest:,} learned positions, and can add none"
            )
        known = self._config.sequence_length
        if tokens + self._max_new_tokens > known:
            self._warn(
                f"the prompt has {tokens:,} tokens and {self._max_new_tokens:,} are to follow; the run was trained on "
                f"sequences of {known:,}: what lies beyond may be noise"
            )
            self._warn = lambda text: None  # once


def prompts_of(config: Config, tokenizer: Tokenizer, *, rows: int) -> Prompts:
    """How a run's model is to read prompts.

    Args:
        rows: of the model's embedding.
    """
    assert config.tokenizer is not None, "the caller has its tokenizer"
    return Prompts(
        tokenizer,
        template=ChatTemplate.load(config.tokenizer.path),
        special_tokens=config.task.special_tokens if isinstance(config.task, SFTSection) else "parse",
        rows=rows,
    )
