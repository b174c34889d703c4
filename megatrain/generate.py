"""Text from a checkpoint, in one process: to see what a run has learnt. Not a serving engine."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.state import read_state
from megatrain.config import Config
from megatrain.data.text.prompts import PromptEncoder
from megatrain.data.text.tokenizer import EncodeError, Tokenizer
from megatrain.huggingface.merged import read_merged_model
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
    top_k: int = 50,
    warn: Callable[[str], None] = lambda text: None,
) -> str:
    """The prompt and what the model adds to it, up to an end of text.

    The prompt is encoded as `transformers` does with the exported tokenizer: with its BOS, and special tokens that are
    spelt out are special, unless the run was fine-tuned with task.special_tokens: text.

    Args:
        path: a run, of which the newest checkpoint that verifies is taken, or a checkpoint inside a run.
        temperature: 0 takes the likeliest token each time.
        warn: told where the text becomes longer than what the model was trained on.

    Raises:
        CheckpointError: there is no whole checkpoint.
        ConfigError: the prompt is no Unicode text, or becomes tokens that the model does not have; the model is an
            encoder or a classifier.
        DataError: the run's tokenizer cannot be read.
    """
    folder = find_checkpoint(path)
    run, _ = locate(path)
    config = load_run(run, warn=warn, verify=True)
    if config.tokenizer is None:
        raise CheckpointError(f"{run}: has no tokenizer; put its files into {run.tokenizer}")
    section = read_state(folder).model
    if section.num_labels is not None:
        raise ConfigError(f"{run}: task.name: {config.task.name}: is a classifier, and continues no text")
    if not section.is_causal:
        raise ConfigError(f"{run}: model.family: {section.family}: is an encoder, and continues no text")
    tokenizer = Tokenizer.load(config.tokenizer.path)
    model = read_merged_model(folder).eval()
    start, prefix = encode_prompt(prompt, tokenizer, config)
    if (largest := max(start)) >= (rows := section.padded_vocab_size):
        raise ConfigError(f"PROMPT: holds the id {largest} of the tokenizer; the model's embedding has {rows} rows")
    if len(start) + max_new_tokens > config.sequence_length:
        warn(
            f"the prompt has {len(start):,} tokens and {max_new_tokens:,} are to follow; the run was trained on "
            f"sequences of {config.sequence_length:,}: what lies beyond may be noise"
        )
    tokens = sample(
        model,
        torch.tensor([start]),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        eos_id=tokenizer.eos_id,
        vocab_size=tokenizer.vocab_size,
        generator=torch.Generator().manual_seed(seed),
    )
    return tokenizer.decode([token for token in tokens[0, prefix:].tolist() if token != tokenizer.eos_id])


def encode_prompt(prompt: str, tokenizer: Tokenizer, config: Config) -> tuple[list[int], int]:
    """Ids of what a run's model is to continue, and how many at their front are not the prompt's own.

    Raises:
        ConfigError: it is no Unicode text, or the tokenizer cannot encode it.
    """
    special_tokens = config.task.special_tokens if isinstance(config.task, SFTSection) else "parse"
    encoder = PromptEncoder(tokenizer, special_tokens=special_tokens)
    try:
        prompt.encode("utf-8")
        ids = encoder.prompt(prompt)
    except UnicodeEncodeError as error:
        raise ConfigError(f"PROMPT: half a surrogate pair at character {error.start}: not Unicode") from None
    except EncodeError as error:
        raise ConfigError(f"PROMPT: {error}") from None
    begins = len(encoder.prefix) if ids[: len(encoder.prefix)] == encoder.prefix else 0
    return ids or [tokenizer.eos_id], begins  # as in training, a document begins behind the end of another


@torch.no_grad()
def sample(
    model: nn.Module,
    tokens_1S: Tensor,
    *,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    eos_id: int,
    vocab_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Append up to max_new_tokens to int64 [1, S]; the padded end of the vocabulary is never drawn."""
    for _ in range(max_new_tokens):
        logits = model(tokens_1S)[0, -1, :vocab_size].float()
        if temperature == 0:
            chosen = logits.argmax()[None]
        else:
            values, ids = torch.topk(logits / temperature, min(top_k, vocab_size))
            chosen = ids[torch.multinomial(values.softmax(-1), 1, generator=generator)]
        tokens_1S = torch.cat((tokens_1S, chosen[None]), dim=1)
        if int(chosen) == eos_id:
            break
    return tokens_1S
