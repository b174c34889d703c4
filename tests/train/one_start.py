"""One start of a run of a single rank, whose engine holds two tensors."""

import torch
import torch.distributed as dist

from megatrain.checkpoint.store import CheckpointStore
from megatrain.run.directory import RunDir
from megatrain.train.checkpointing import Checkpointer
from tests.trained import make_config


class Engine:
    """Holds two tensors, and no network."""

    def __init__(self) -> None:
        self.tensors = {"weight.a": torch.zeros(4, 3), "exp_avg.a": torch.zeros(4, 3)}

    def sharded_state(
        self, *, parameters: str = "all", weights_only: bool = False, for_saving: bool = False
    ) -> dict[str, torch.Tensor]:
        return {name: tensor for name, tensor in self.tensors.items() if not weights_only or name.startswith("weight")}

    def after_load(self, *, optimizer_step: int) -> None:
        pass


class Start:
    """One start of the run."""

    def __init__(self, run: RunDir, keep_last: int = 9) -> None:
        self.run, self.said, self.engine = run, [], Engine()
        store = CheckpointStore(run, dist.group.WORLD, layout="", keep_last=keep_last, report=self.said.append)
        config = make_config("tokenizer", checkpoint={"interval_steps": 10})
        self.checkpointer = Checkpointer(config, self.engine, store)

    def save(self, *steps: int) -> "Start":
        for step in steps:
            self.engine.tensors["weight.a"].fill_(step)
            self.checkpointer.save(step, {"position": 8 * step})
            self.checkpointer.retain()
        return self

    def resume(self, wanted: str = "auto") -> int:
        position = self.checkpointer.resume(wanted)
        assert (self.engine.tensors["weight.a"] == position.step).all()
        return position.step
