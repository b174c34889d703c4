"""Prompts of a run's validation, and how near what a model generates is to the responses that are there."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from megatrain.config.resolved import ResolvedFinetune, ResolvedRun
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.example_rows import all_usable
from megatrain.data.examples.prompt_completion import Pair, PairReader
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.evaluation.text_metrics import text_metrics
from megatrain.generation.prompts import Ending, Prompts
from megatrain.tasks.sft.section import SFTSection


@dataclass(frozen=True, slots=True)
class Generated:
    """A response to a prompt, beside the one that is there."""

    prompt: str
    there: str
    said: str


class ResponseEvaluation:
    """The first examples of a fine-tuning's validation, to be answered.

    Args:
        paths: of the files of a set.

    Attributes:
        prompts: ids; one that leaves no room for a response in a sequence has lost its start, as in training.
        cut: how many have.
        ending: when a response is at its end.
        max_new_tokens: of a response.
        vocab_size: ids from there on are never drawn.
        longest: tokens of a sequence, where positions are learned.
    """

    def __init__(self, config: ResolvedFinetune, paths: Sequence[str]) -> None:
        section, task = config.evaluation.generate, config.task
        assert section is not None, "the caller asks"
        assert isinstance(task, SFTSection), "a rule between the fields"
        tokenizer, template = Tokenizer.load(config.tokenizer.path), ChatTemplate.load(config.tokenizer.path)
        reader = PairReader(task, template)
        self._metrics = section.metrics
        self._pairs: list[Pair] = list(islice(all_usable(paths, reader.pair), section.examples))
        rows = config.model.padded_vocab_size
        encode = Prompts(tokenizer, template=template, special_tokens=task.special_tokens, rows=rows)
        ends = encode.ends(of_turns=any(pair.templated for pair in self._pairs))
        self._ends = [tokenizer.decode([number]) for number in ends]
        whole = [encode.of_pair(pair) for pair in self._pairs]
        room = max(config.sequence_length - section.max_new_tokens, config.sequence_length // 2, 1)
        self.prompts = [ids[-room:] for ids in whole]
        self.cut = sum(len(ids) > room for ids in whole)
        self.ending = Ending(tokenizer, ends)
        self.max_new_tokens, self.vocab_size = section.max_new_tokens, tokenizer.vocab_size
        self.longest = config.model.longest_sequence

    @classmethod
    def of(cls, config: ResolvedRun) -> "Mapping[str, ResponseEvaluation]":
        """Of each validation set; none where the run asks for none."""
        if config.evaluation.generate is None or not isinstance(config, ResolvedFinetune):
            return {}
        return {name: cls(config, paths) for name, paths in config.finetune.validation_sets.items()}

    def options(self) -> dict[str, Any]:
        """Arguments of `generation.decode.continued`, besides the prompts."""
        return {
            "max_new_tokens": self.max_new_tokens,
            "ends": self.ending,
            "vocab_size": self.vocab_size,
            "longest": self.longest,
        }

    def lines(self) -> Iterator[str]:
        if self.cut:
            yield (
                f"evaluation.generate: {self.cut:,} of {len(self.prompts):,} prompts lose their start, so that a "
                "response has room in finetune.sequence_length"
            )

    def generated(self, made: Sequence[Sequence[int]]) -> list[Generated]:
        """Of the ids that follow each prompt."""
        return [
            Generated(pair.prompt, self._response(pair), self.ending.text(prompt, tokens))
            for pair, prompt, tokens in zip(self._pairs, self.prompts, made, strict=True)
        ]

    def measure(self, found: Sequence[Generated]) -> dict[str, float]:
        """Values of registered metrics."""
        return text_metrics([one.said for one in found], [one.there for one in found], self._metrics)

    def _response(self, pair: Pair) -> str:
        """Without what ends it."""
        places = [place for end in self._ends if (place := pair.response.find(end)) >= 0]
        return pair.response[: min(places)] if places else pair.response
