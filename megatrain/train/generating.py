"""Texts from the model that is being trained, where and how it lies: prompts are shared out over the replicas."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from megatrain.base.files import write_atomically
from megatrain.base.terminal import printable_json
from megatrain.config.resolved import ResolvedParallel, ResolvedRun
from megatrain.evaluation.generated import Generated, ResponseEvaluation
from megatrain.generation.decode import Ends, continued, with_cache
from megatrain.generation.ranks import MeshRanks
from megatrain.generation.sampling import Sampling
from megatrain.run.directory import RunDir
from megatrain.train.engine import Engine

_NOTHING = [0]  # what a rank feeds that has no prompt, where all have to take part


def generate_on_layout(
    engine: Engine,
    parallel: ResolvedParallel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    ends: Ends,
    vocab_size: int,
    batch_size: int,
    longest: int | None = None,
    beat: Callable[[], None] = lambda: None,
) -> list[list[int]]:
    """What follows each prompt, on every rank; see `generation.decode.continued`. Collective.

    Args:
        prompts: of all ranks, the same on each.
        batch_size: prompts at once, on a replica.
        beat: called at each forward pass.
    """
    mesh = engine.mesh
    ranks = MeshRanks(
        mesh,
        forward_is_collective=engine.forward_is_collective,
        sequence_parallel=parallel.sequence_parallel,
        device=engine.device,
    )
    mine: dict[int, list[int]] = {}
    at_once = batch_size * mesh.replicas
    with engine.evaluating() as (module, forward):

        def call(*inputs: Any, **options: Any) -> Any:
            beat()
            return forward(*inputs, **options)

        for first in range(0, len(prompts), at_once):
            numbers = range(first, min(first + at_once, len(prompts)))[mesh.get_data_parallel_rank() :: mesh.replicas]
            given = [prompts[number] for number in numbers] or [_NOTHING]
            places = max(map(len, given)) + max_new_tokens
            with with_cache(module, places=places, call=call, ranks=ranks) as next_logits:
                made = continued(
                    next_logits,
                    given,
                    sampling,
                    max_new_tokens=max_new_tokens if numbers else 0,
                    ends=ends,
                    vocab_size=vocab_size,
                    seeds=list(numbers) or [0],
                    longest=longest,
                    ranks=ranks,
                )
            mine |= dict(zip(numbers, made, strict=False))
    everyones: list[dict[int, list[int]]] = [{}] * mesh.world_size
    dist.all_gather_object(everyones, mine, group=mesh.control_group)
    found = {number: tokens for one in everyones for number, tokens in one.items()}
    return [found[number] for number in range(len(prompts))]


class Responder:
    """Answers prompts of a validation set with the model that is being trained, and measures the answers."""

    def __init__(self, config: ResolvedRun, run: RunDir, responses: ResponseEvaluation, of_set: str = "") -> None:
        self._config, self._run, self._responses = config, run, responses
        self._suffix = f".{of_set}" if of_set else ""

    def evaluate(self, engine: Engine, step: int, beat: Callable[[], None]) -> dict[str, float]:
        """Values of registered metrics, the same on every rank; rank 0 writes the answers. Collective."""
        made = generate_on_layout(
            engine,
            self._config.parallel,
            self._responses.prompts,
            Sampling(),
            batch_size=self._config.training.micro_batch_size,
            beat=beat,
            **self._responses.options(),
        )
        found = self._responses.generated(made)
        if engine.mesh.is_main:
            self._write(step, found)
        return self._responses.measure(found)

    def _write(self, step: int, found: Sequence[Generated]) -> None:
        self._run.generated.mkdir(exist_ok=True)
        lines = "".join(f"{printable_json(asdict(one))}\n" for one in found)
        write_atomically(self._run.generated / f"step-{step:08d}{self._suffix}.jsonl", lines)
