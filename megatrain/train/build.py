"""A resolved run -> the parts of a run, in the order in which they depend on each other."""

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from megatrain.base.files import write_json
from megatrain.checkpoint.state import Parameters
from megatrain.checkpoint.store import CheckpointStore
from megatrain.config.resolved import ResolvedRun
from megatrain.evaluation.generated import ResponseEvaluation
from megatrain.hardware.device import device_type
from megatrain.hardware.health import check_health
from megatrain.model.architecture import row_of
from megatrain.monitor.environment import environment
from megatrain.monitor.sinks.console import Console
from megatrain.monitor.watchdog import Watchdog
from megatrain.optim.build import build_optimizer
from megatrain.optim.layers import lr_scale as layer_lr_scale
from megatrain.optim.registry import OPTIMIZERS
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.collectives import all_reduce
from megatrain.parallel.mesh import Mesh
from megatrain.run.claim import current
from megatrain.run.directory import RunDir
from megatrain.tasks.base import DataShare, Objective, Start, Task
from megatrain.topology import Topology
from megatrain.train import rank
from megatrain.train.checkpointing import Checkpointer, Position
from megatrain.train.determinism import make_deterministic
from megatrain.train.early_stopping import EarlyStopping
from megatrain.train.engine import Engine, bucket_elements, compute_dtype, partitioner, read_ds_config
from megatrain.train.finite import FiniteGuard
from megatrain.train.generating import Responder
from megatrain.train.loop import TrainingComponents
from megatrain.train.perturbation import perturbation_of
from megatrain.train.report import Reporter
from megatrain.train.signals import StopRequest
from megatrain.train.start_position import restore

_AFTER_WATCHDOG_SECONDS = 60  # a collective gives up later than the watchdog, which says more


def build(config: ResolvedRun, run: RunDir, task: Task[Any], *, resume: str) -> tuple[TrainingComponents, Position]:
    """Build everything that a run needs, restored to where it starts."""
    stop = StopRequest()  # first: a signal during a long start must not be lost
    watchdog = Watchdog(run, rank=rank.rank(), hang_timeout_seconds=config.monitor.hang_timeout_seconds)
    device, mesh = _join(config, stop)
    console = Console(config, run, rank=mesh.rank, world_size=mesh.world_size)
    console.header(_read_plan(run), goes_on=bool(run.steps()))
    _look_at_hardware(config, run, mesh, device, console, watchdog)

    watchdog.beat("building")
    share = DataShare(rank=mesh.data_rank, size=mesh.data_parallel, pin_memory=device_type() == "cuda")
    loader = task.loader(share)
    ds_config = read_ds_config(run.ds_config)
    engine = build_engine(config, mesh, ds_config, task, device=device, beat=watchdog.beat_for_all)
    layout = f"ZeRO-{config.parallel.zero_stage}, {mesh.topology}"
    checkpoints = CheckpointStore(
        run,
        mesh.control_group,
        layout=layout,
        keep_last=config.checkpoint.keep_last,
        report=console.line,
        beat=watchdog.beat_for_all,
        guard=lambda: current(run),
    )
    kept: Parameters = "trained" if config.model.freezes else "all"
    checkpointer = Checkpointer(config, engine, checkpoints, parameters=kept)
    watchdog.beat("loading a checkpoint")
    position = restore(
        config, engine, loader, checkpointer, console, resume=resume, layout=layout, beat=watchdog.beat_for_all
    )
    watchdog.beat("computing what the task needs", position.step)
    task.begin(_start(run, mesh, engine, share, resumed=position.checkpoint is not None))
    watchdog.beat("first step", position.step)
    report = Reporter(config, run, mesh, console, start=position.progress)
    checkpointer.saved = report.saved
    parts = TrainingComponents(
        config=config,
        run=run,
        task=task,
        engine=engine,
        loader=loader,
        guard=FiniteGuard(config, run, mesh.control_group, engine.device),
        validation=task.validation_sets(share),
        checkpointer=checkpointer,
        report=report,
        responders=_responders(config, run, console),
        stop=stop,
        watchdog=watchdog,
        early_stopping=EarlyStopping(config.training.early_stopping, mesh.control_group, position.best),
    )
    return parts, position


def _start(run: RunDir, mesh: Mesh, engine: Engine, share: DataShare, *, resumed: bool) -> Start:
    def sum_over_data(tensor: Tensor) -> Tensor:
        return all_reduce(tensor.to(engine.device), mesh.dp_cp_group)

    return Start(
        resumed=resumed,
        folder=run.path,
        share=share,
        is_main=mesh.is_main,
        compute=engine.compute,
        sum_over_data=sum_over_data,
    )


def _responders(config: ResolvedRun, run: RunDir, console: Console) -> dict[str, Responder]:
    found = {}
    for name, responses in ResponseEvaluation.of(config).items():
        for line in responses.lines():
            console.line(line)
        found[name] = Responder(config, run, responses, name)
    return found


def _join(config: ResolvedRun, stop: StopRequest) -> tuple[torch.device, Mesh]:
    """This rank's device, and the groups of ranks that it is in. Collective."""
    timeout = timedelta(seconds=config.monitor.hang_timeout_seconds + _AFTER_WATCHDOG_SECONDS)
    device, store = rank.join(timeout.total_seconds())
    stop.share(store)
    if config.training.deterministic:
        make_deterministic()
    topology = Topology(
        world_size=torch.distributed.get_world_size(),
        tensor_parallel=config.parallel.tensor_parallel,
        context_parallel=config.parallel.context_parallel,
    )
    return device, Mesh(topology, timeout=timeout)


def _look_at_hardware(
    config: ResolvedRun, run: RunDir, mesh: Mesh, device: torch.device, console: Console, watchdog: Watchdog
) -> None:
    """Record what the run runs on, and warn of what is slower than its peers. Collective."""
    hosts = rank.hosts(mesh.control_group)
    if mesh.is_main:
        write_json(run.environment, environment(hosts))
    if config.monitor.health_check:
        watchdog.beat("health check")
        for warning in check_health(mesh.control_group, device):
            console.warning(warning)


def build_engine(
    config: ResolvedRun,
    mesh: Mesh,
    ds_config: Mapping[str, Any],
    objective: Objective[Any],
    *,
    device: torch.device | str = "cpu",
    beat: Callable[[str], None] = lambda activity: None,
) -> Engine:
    """An engine whose weights have no values yet: a checkpoint, other weights or the seed follow.

    Args:
        beat: called with each weight that is about to take its place.
    """
    partition = partitioner(mesh, ds_config, device)
    perturbation = perturbation_of(config, mesh)

    def placed(name: str, parameter: nn.Parameter) -> None:
        beat(f"building {name}")
        partition(parameter)

    model = build_parallel_model(
        config.model,
        config.parallel,
        mesh,
        device=device,
        dtype=compute_dtype(ds_config),
        placed=placed,
        attach=lambda model: perturbation.attach(model, device),
        float8=config.training.fp8_scaling if config.training.precision == "fp8" else None,
    )
    _begin_backward_pass(model)
    beat("building the engine")
    engine = Engine(
        model,
        _optimizer(config, model, ds_config),
        mesh,
        ds_config,
        objective=objective,
        leaf_modules=model.block_classes,  # type: ignore[arg-type]
        gradient_clipping=config.optimizer.gradient_clipping,
        perturbation=perturbation,
    )
    spec = OPTIMIZERS.get(config.optimizer.name)
    if spec.matrices is None:
        engine.check_optimizer_state(spec.state)
        if spec.factored is not None:
            engine.share_sums(spec.factored)
    else:
        engine.check_optimizer_state(spec.state, spec.matrices.state)
        engine.exchange_matrices()
    return engine


def _optimizer(config: ResolvedRun, model: nn.Module, ds_config: Mapping[str, Any]) -> torch.optim.Optimizer:
    section, spec = config.model, OPTIMIZERS.get(config.optimizer.name)
    return build_optimizer(
        model,
        config.optimizer,
        decays=lambda name: row_of(section, name).weight_decay_scale,
        is_hidden_matrix=lambda name: row_of(section, name).is_hidden_matrix,
        is_factored=lambda name: spec.is_factored(row_of(section, name).shape),
        lr_scale=lambda name: (
            row_of(section, name).lr_scale * layer_lr_scale(section, name, config.optimizer.layer_decay)
        ),
        bucket_elements=bucket_elements(ds_config),
    )


def _begin_backward_pass(model: nn.Module) -> None:
    """Of a model that is partly frozen: what enters the first block with anything to train gets a gradient.

    ZeRO-3 releases a block's weights when the gradients of its inputs are there: they need some, whatever of the model
    before them is frozen. The blocks before that one have no backward pass.
    """
    if all(parameter.requires_grad for parameter in model.parameters()):
        return
    for block in model.get_submodule("blocks").children():
        if any(parameter.requires_grad for parameter in block.parameters()):
            block.register_forward_pre_hook(lambda module, inputs: (inputs[0].requires_grad_(), *inputs[1:]))
            return


def _read_plan(run: RunDir) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(run.plan.read_text(encoding="utf-8")) if run.plan.is_file() else {}
    return plan
