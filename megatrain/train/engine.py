"""The one place that builds DeepSpeed, and the small face of it that the loop sees."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import megatrain.train.deepspeed_patches  # noqa: F401  isort: skip: first of what imports DeepSpeed
import deepspeed
import torch.distributed as dist
from deepspeed.utils import groups, set_z3_leaf_modules

from megatrain.checkpoint import deepspeed_state
from megatrain.checkpoint.local_shards import LocalShards
from megatrain.checkpoint.state import Parameters
from megatrain.data.loading.tensor_batch import TensorBatch
from megatrain.parallel import collectives
from megatrain.parallel.context_parallel import part_of_sequence
from megatrain.parallel.matrix_exchange import MatrixExchange
from megatrain.parallel.mesh import Mesh
from megatrain.parallel.tensor_parallel import shard_of
from megatrain.parallel.whole_sums import WholeTensors
from megatrain.perturbation.adversarial import Adversary
from megatrain.perturbation.noise import Place
from megatrain.tasks.base import LossSums, Model, Objective
from megatrain.train.perturbation import Perturbation
from megatrain.train.run_ahead import RunAhead

T = TypeVar("T")


class Engine:
    """A model under DeepSpeed: gradients in, updates out, and its state as tensors of any layout.

    Args:
        model: this rank's slice, as `parallel.apply.build_parallel_model` makes it.
        ds_config: as `launcher.deepspeed_config` writes it; nothing is added here.
        objective: what is computed of a batch.
        leaf_modules: classes whose parameters ZeRO-3 gathers together: hooks inside such a module would break its
            compiled graph.
        gradient_clipping: maximum norm of the whole gradient; 0 for none.
        perturbation: what disturbs the model in training; None: nothing does.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        mesh: Mesh,
        ds_config: Mapping[str, Any],
        *,
        objective: Objective[Any],
        leaf_modules: Sequence[type[nn.Module]],
        gradient_clipping: float,
        perturbation: Perturbation | None = None,
    ) -> None:
        self.mesh = mesh
        self._noise = perturbation.noise if perturbation else None
        self._adversary = perturbation.adversary if perturbation else None
        self._objective = objective
        self._accumulation: int = ds_config["gradient_accumulation_steps"]
        self._partitioned: bool = ds_config["zero_optimization"]["stage"] > 0
        self.forward_is_collective: bool = ds_config["zero_optimization"]["stage"] == 3  # all replicas take part
        self._clipping = gradient_clipping
        if ds_config["zero_optimization"]["stage"] == 3:
            set_z3_leaf_modules(model, list(leaf_modules))
        with contextlib.redirect_stdout(io.StringIO()):  # some of its optimizers print their memory use
            self._engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=dict(ds_config), mpu=mesh, dist_init_required=False
            )
        self.device: torch.device = self._engine.device
        deepspeed_state.create_optimizer_state(self._engine)
        self._update_device = deepspeed_state.master_device(self._engine)
        self._norm = torch.zeros((), device=self.device)  # of the last gradients, without ZeRO
        self._run_ahead = RunAhead(self.device)
        self._on_host = self._update_device.type == "cpu"
        # 1: a norm was not finite, and no update is kept since
        self._held_back = torch.zeros((), device=self._update_device)
        self._factors: dict[str, LocalShards] = {}  # of matrices, by an optimizer that keeps them; on every rank
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        if getattr(inner, "_step_supports_amp_scaling", False):
            inner.found_inf = self._held_back  # such an optimizer leaves weights and state as they are while it is 1
            inner.register_step_pre_hook(self._hold_back)
        else:
            inner.step = self._unless_held_back(inner.step)

    def begin_step(self, micro_batches: int) -> None:
        """Must be called before a step that has another number of micro-batches than the last."""
        passes = micro_batches * (1 if self._adversary is None else 2)  # DeepSpeed takes each for a micro-batch
        if passes == self._accumulation:
            return
        self._accumulation = passes
        ds = self._engine
        ds.set_train_batch_size(passes * ds.train_micro_batch_size_per_gpu() * ds.dp_world_size)
        ds.micro_steps = 0  # a step ends where a multiple of the number is done
        if hasattr(ds.optimizer, "gradient_accumulation_steps"):  # its own copy
            ds.optimizer.gradient_accumulation_steps = passes

    def forward_backward(self, batch: TensorBatch, targets: float, at: Place | None = None) -> LossSums:
        """Forward and backward of one micro-batch; returns its sums, detached.

        Args:
            targets: of the whole global batch. The gradient is that of the summed loss over it, wherever in the global
                batch the targets are.
            at: which micro-batch it is; noise is a function of it.
        """
        mine = self._mine(batch)
        if self._noise is not None:
            self._noise.begin(mine, at)
        sums = self._pass(mine, targets) if self._adversary is None else self._attacked(self._adversary, mine, targets)
        if self._noise is not None:
            self._noise.end()
        return sums

    def _attacked(self, adversary: Adversary, mine: TensorBatch, targets: float) -> LossSums:
        """A clean pass and one of perturbed tokens, each of which DeepSpeed takes for a micro-batch; between them those
        that search the perturbation, whose gradients reach no weight."""
        adversary.begin(mine)
        clean = self._pass(mine, targets)
        self._engine.step()
        for ascent in range(adversary.section.ascents):
            adversary.ascend()
            if ascent + 1 < adversary.section.ascents:
                adversary.find_gradient(self._objective.loss(self._engine.module, mine).loss)
        perturbed = self._pass(mine, targets, adversary.section.weight)
        adversary.end()
        return LossSums(clean.loss, {**clean.extras, "adversarial_loss": perturbed.loss})

    def _pass(self, mine: TensorBatch, targets: float, weight: float = 1.0) -> LossSums:
        loss, extras = self._objective.loss(self._engine, mine)
        # DeepSpeed divides by the accumulation steps and averages over replicas; we want one global mean
        scale = weight * self._accumulation * self.mesh.replicas / targets
        # 1 or NaN: a loss that is not finite makes all gradients so, and the norm tells every rank
        finite = loss.detach() * 0.0 + 1.0
        self._engine.backward(loss * (finite * scale))
        return LossSums(loss.detach(), extras)

    def step(self, learning_rate: float) -> float | Tensor:
        """Finish a micro-batch; after the last of a global batch, update the weights.

        Must be called after each `forward_backward`. A parameter group takes `learning_rate` times its `lr_scale`.
        Returns the norm of the whole gradient before clipping, at the last micro-batch of a step, the same on every
        rank; 0.0 at the others. On a GPU it is fp32 [] there, and the host does not wait for it: it may be a step
        ahead. Where the host updates, it has the norm.

        A norm that is not finite, as after a loss that is not on any rank, changes neither weights nor optimizer state,
        and nothing changes them any more. The device sees to that, so a caller may look at norms later
        (`finite.FiniteGuard`).
        """
        boundary = self._engine.is_gradient_accumulation_boundary()
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate * group.get("lr_scale", 1.0)
        if boundary and not self._partitioned:
            self._norm = self._clip_whole_gradients()
        self._engine.step()
        if not boundary:
            return 0.0
        self._hold_back()  # DeepSpeed may have left the update out on its own, without a call of the optimizer
        self._run_ahead.step()
        norm = self._last_norm()
        return float(norm) if self._on_host else norm

    def _last_norm(self) -> Tensor:
        """Fp32 [] where the update is. DeepSpeed has it on either side, and as -1 where it is not finite: here
        infinite."""
        norm = self._engine.optimizer._global_grad_norm if self._partitioned else self._norm
        norm = torch.as_tensor(norm, device=self._update_device, dtype=torch.float32)
        return torch.where(norm >= 0, norm, torch.inf)

    def _unless_held_back(self, step: Callable[..., Any]) -> Callable[..., Any]:
        """An optimizer's step that is dropped after a norm that is not finite; the host waits for the norm."""

        def checked(*args: Any, **kwargs: Any) -> Any:
            self._hold_back()
            return None if self._held_back else step(*args, **kwargs)

        return checked

    def check_optimizer_state(self, names: Sequence[str], of_matrices: Sequence[str] = ()) -> None:
        """
        Args:
            names: of the state tensors that the optimizer's spec has.
            of_matrices: of those of hidden matrices, where the optimizer updates them in a way of their own.

        Raises:
            ConfigError: it keeps others, or some that are not of a weight's shape: no checkpoint would hold them.
        """
        deepspeed_state.check_optimizer_state(self._engine, names, of_matrices)

    def exchange_matrices(self) -> None:
        """Let the optimizer, which updates hidden matrices as wholes, do so where ranks hold pieces. Collective."""
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        inner.exchange = MatrixExchange(deepspeed_state.matrix_units(self._engine), self.mesh.control_group)

    def share_sums(self, names: tuple[str, str]) -> None:
        """Let the optimizer, which keeps sums over rows and columns of whole matrices, have them. Collective.

        Args:
            names: of the state that it makes of them.
        """
        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        inner.exchange = WholeTensors(deepspeed_state.whole_units(self._engine), self.mesh.control_group)
        self._factors = dict(deepspeed_state.factor_shards(inner.exchange, names))

    def keep_start(self, name: str) -> None:
        """Let a state of the optimizer hold the weights as they are: those that training starts from."""
        deepspeed_state.keep_start(self._engine, name)

    def _hold_back(self, *_: Any) -> None:
        """Before an update, with its norm known: let the optimizer leave it out if that is not finite."""
        self._held_back.logical_or_(~torch.isfinite(self._last_norm()))

    def evaluate(self, batch: TensorBatch) -> dict[str, Tensor]:
        """The objective's evaluation sums over what this rank sees of one micro-batch, fp64 []."""
        sums = self.compute(self._objective.evaluation_sums, batch)
        return {name: value.double() for name, value in sums.items()}

    @torch.no_grad()
    def compute(self, function: Callable[[Model, Any], T], batch: TensorBatch) -> T:
        """A function of the model and of what this rank sees of one micro-batch, without gradients."""
        with self.evaluating() as (_, forward):
            return function(forward, self._mine(batch))

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """The model, and what to call for a forward pass of it, in evaluation mode."""
        self._engine.eval()
        try:
            yield self._engine.module, self._engine
        finally:
            self._engine.train()

    def sharded_state(
        self, *, parameters: Parameters = "all", for_saving: bool = False, weights_only: bool = False
    ) -> dict[str, LocalShards]:
        """Weights and optimizer state that this rank owns; writing into them, then `after_load`, changes the engine."""
        found = deepspeed_state.local_shards(
            self._engine, parameters=parameters, for_saving=for_saving, weights_only=weights_only
        )
        has_factors = not weights_only and (self.mesh.is_main or not for_saving)
        return found | self._factors if has_factors else found

    def not_finite(self) -> list[str]:
        """Names of the tensors of `sharded_state` that hold a NaN or an infinity on this rank. Waits for the device."""
        return deepspeed_state.not_finite(self.sharded_state(for_saving=True))

    def after_load(self, optimizer_step: int) -> None:
        """Call after the tensors of `sharded_state` were written."""
        deepspeed_state.set_optimizer_step(self._engine, optimizer_step)
        deepspeed_state.refresh_model_weights(self._engine)

    def _mine(self, batch: TensorBatch) -> TensorBatch:
        """What this rank sees of a batch, on its device."""
        rank, size = self.mesh.context_rank, self.mesh.context_parallel
        return batch.split_sequence(lambda tensor: part_of_sequence(tensor, rank, size)).to(self.device)

    def _clip_whole_gradients(self) -> Tensor:
        """The gradient norm without ZeRO, where every rank holds whole gradients; clips them.

        DeepSpeed reports no norm here in fp32. In bf16 its norm is wrong under tensor parallelism: it is taken over
        copies that have lost their marks, so that only the slices of rank 0 count.
        """
        whole = [(p.grad, shard_of(p)) for p in self._engine.module.parameters() if p.grad is not None]
        squares = torch.zeros(2, device=self.device)  # of what is split over tensor-parallel ranks; of what is not
        for gradient, shard in whole:
            squares[1 if shard is None else 0] += torch.linalg.vector_norm(gradient, dtype=torch.float32).square()
        split = collectives.all_reduce(squares[:1], self.mesh.tensor_group)
        norm = (split[0] + squares[1]).sqrt()
        if self._clipping > 0:
            factor = torch.clamp(self._clipping / norm, max=1.0)
            for gradient, _ in whole:
                gradient.mul_(factor)
        return norm


def partitioner(mesh: Mesh, ds_config: Mapping[str, Any], device: torch.device | str) -> Callable[[nn.Parameter], None]:
    """Of a parameter, keeps what this rank owns outside of a forward or backward pass: under ZeRO-3 its part.

    DeepSpeed would partition a whole model on its own, but only once all of it is there. Nothing is sent: the values
    come later.
    """
    if ds_config["zero_optimization"]["stage"] != 3:
        return lambda parameter: None
    deepspeed.init_distributed(dist_init_required=False)
    near = _hpz_group(mesh, ds_config)
    init = deepspeed.zero.Init(
        data_parallel_group=mesh.dp_cp_group,
        zero_param_parallel_group=near,
        config_dict_or_path=dict(ds_config),
        mpu=mesh,
    )
    init.local_device = init.remote_device = torch.device(device)

    def partition(parameter: Any) -> None:
        init._convert_to_deepspeed_param(parameter)
        parameter.partition()
        parameter.ds_secondary_tensor = None  # there is nothing to gather yet

    return partition


def _hpz_group(mesh: Mesh, ds_config: Mapping[str, Any]) -> dist.ProcessGroup | None:
    """The neighbours that gather weights among themselves, if `zero_hpz_partition_size` asks for any. Collective.

    DeepSpeed takes them from a global of its own, and would fill it with runs of ranks of the world, tensor-parallel
    ones among them.
    """
    size = ds_config["zero_optimization"].get("zero_hpz_partition_size", 1)
    group = mesh.neighbours(size) if size > 1 else None
    groups._ZERO_PARAM_INTRA_PARALLEL_GROUP = group
    return group


def compute_dtype(ds_config: Mapping[str, Any]) -> torch.dtype:
    return torch.bfloat16 if "bf16" in ds_config else torch.float32


def bucket_elements(ds_config: Mapping[str, Any]) -> int | None:
    """Elements of the parameter groups that are reduced on their own; None where DeepSpeed makes buckets itself."""
    zero = ds_config["zero_optimization"]
    return zero.get("reduce_bucket_size") if zero["stage"] == 1 and "bf16" in ds_config else None


def read_ds_config(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return config
