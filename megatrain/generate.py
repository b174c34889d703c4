"""Text from a checkpoint, in one process: to see what a run has learnt. Not a serving engine."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.read import read_model
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.errors import CheckpointError
from megatrain.model.transformer import Transformer
from megatrain.run_dir import RunDir
from megatrain.run_inputs import load_run


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

    Args:
        path: a run, of which the newest checkpoint that verifies is taken, or a checkpoint inside a run.
        temperature: 0 takes the likeliest token each time.

    Raises:
        CheckpointError: there is no whole checkpoint.
        DataError: the run's tokenizer cannot be read.
    """
    folder = find_checkpoint(path)
    run = RunDir(folder.parent.parent)
    config = load_run(run, warn=warn, verify=True)
    if config.tokenizer is None:
        raise CheckpointError(f"{run}: has no tokenizer; put its files into {run.tokenizer}")
    tokenizer = Tokenizer.load(config.tokenizer.path)
    model = read_model(folder).eval()
    start = tokenizer.encode(prompt) or [tokenizer.eos_id]
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
    return tokenizer.decode([token for token in tokens[0].tolist() if token != tokenizer.eos_id])


@torch.no_grad()
def sample(
    model: Transformer,
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
