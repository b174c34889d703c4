"""One rank of the toy task. Which positions are masked is a function of their tokens, so a resume masks the same."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

from torch import Tensor

from megatrain.data.loading.batch import Batch
from megatrain.data.loading.build_loader import build_loader
from megatrain.data.loading.loader import StepBatches
from megatrain.data.loading.tensor_batch import SPLIT_SEQUENCE
from megatrain.tasks.base import LossSums, Task
from megatrain.tasks.causal_lm import CausalLM


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskedBatch(Batch):
    masked: Tensor = field(metadata=SPLIT_SEQUENCE)  # [B, S] bool


class MaskedLoader:
    def __init__(self, loader, every: int) -> None:
        self._loader, self._every = loader, every

    def __getattr__(self, name: str):
        return getattr(self._loader, name)

    def next(self) -> StepBatches[MaskedBatch]:
        step = self._loader.next()
        return StepBatches(tuple(masked(batch, self._every) for batch in step.micro_batches), step.targets)


def masked(batch: Batch, every: int) -> MaskedBatch:
    values = {one.name: getattr(batch, one.name) for one in fields(batch)}
    return MaskedBatch(**values, masked=batch.input_ids % every == 0)


class MaskedInputs(Task[MaskedBatch]):
    def __init__(self, config) -> None:
        self._config = config
        self._plain = CausalLM()

    def loader(self, share):
        loader = build_loader(self._config, data_rank=share.rank, data_size=share.size, pin_memory=share.pin_memory)
        return MaskedLoader(loader, self._config.task.every)

    def validation(self, share):
        loader = self.loader(share)
        batches = [batch for _ in range(2) for batch in loader.next().micro_batches]
        loader.close()
        return batches

    def loss(self, model, batch: MaskedBatch) -> LossSums:
        ids = batch.input_ids.masked_fill(batch.masked, 0)
        loss = model(ids, batch.labels, position_ids_BS=batch.position_ids, cu_seqlens=batch.cu_seqlens)
        return LossSums(loss, {"toy_masked": batch.masked.sum().float()})

    def evaluation_sums(self, model, batch: MaskedBatch) -> dict[str, Tensor]:
        return self._plain.evaluation_sums(model, batch)

    def evaluation_metrics(self, sums) -> dict[str, float]:
        return {"toy_bits": sums["loss"] / sums["targets"] / math.log(2)}

    def lines(self, progress) -> Iterator[str]:
        yield f"toy: every token that {self._config.task.every} divides is masked"
