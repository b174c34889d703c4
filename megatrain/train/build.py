"""A resolved run -> the parts of a run, in the order in which they depend on each other."""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn

from megatrain.base.files import write_json
from megatrain.checkpoint.manifest import read_manifest
from megatrain.checkpoint.store import CheckpointStore
from megatrain.config.resolved import ResolvedRun
from megatrain.data.loading.batch import Batch
from megatrain.hardware.health import check_health
from megatrain.model.architecture import row_of
from megatrain.monitor.console import Console
from megatrain.monitor.environment import environment
from megatrain.monitor.watchdog import Watchdog
from megatrain.optim.build import build_optimizer
from megatrain.parallel.apply import build_parallel_model
from megatrain.parallel.mesh import Mesh
from megatrain.run.claim import current
from megatrain.run.directory import RunDir
from megatrain.topology import Topology
from megatrain.train import rank
from megatrain.train.checkpointing import Checkpointer, Position
from megatrain.train.determinism import make_deterministic
from megatrain.train.engine import Engine, bucket_elements, compute_dtype, partitioner, read_ds_config
from megatrain.train.finite import FiniteGuard
from megatrain.train.loop import Loader, TrainingComponents
from megatrain.train.report import Reporter
from megatrain.train.signals import StopRequest
from megatrain.train.weights import initialize_weights

_AFTER_WATCHDOG_SECONDS = 60  # a collective gives up later than the watchdog, which says more


def build(
    config: ResolvedRun,
    run: RunDir,
    *,
    resume: str,
    make_loader: Callable[[Mesh], Loader],
    make_validation: Callable[[Mesh], Iterable[Batch]] | None,
    initial_weights: Path | None = None,
) -> tuple[TrainingComponents, Position]:
    """Build everything that a run needs, restored to where it starts.

    Args:
        make_loader, make_validation: what feeds training, and what each evaluation reads, for one rank of a mesh.
        initial_weights: a run of the same model, one of its checkpoints, or a model in Hugging Face's format, that a
            run without checkpoints of its own starts from.
    """
    stop = StopRequest()  # first: a signal during a long start must not be lost
    watchdog = Watchdog(run, rank=rank.rank(), hang_timeout_seconds=config.monitor.hang_timeout_seconds)
    timeout = timedelta(seconds=config.monitor.hang_timeout_seconds + _AFTER_WATCHDOG_SECONDS)
    device, store = rank.join(timeout.total_seconds())
    stop.share(store)
    if config.training.deterministic:
        make_deterministic()
    tensor_parallel = config.parallel.tensor_parallel
    context_parallel = config.parallel.context_parallel
    world_size = torch.distributed.get_world_size()
    topology = Topology(world_size=world_size, tensor_parallel=tensor_parallel, context_parallel=context_parallel)
    mesh = Mesh(topology, timeout=timeout)
    console = Console(config, run, rank=mesh.rank, world_size=mesh.world_size)
    console.header(_read_plan(run), goes_on=bool(run.steps()))
    hosts = rank.hosts(mesh.control_group)
    if mesh.is_main:
        write_json(run.environment, environment(hosts))
    if config.monitor.health_check:
        watchdog.beat("health check")
        for warning in check_health(mesh.control_group, device):
            console.warning(warning)

    watchdog.beat("building")
    loader = make_loader(mesh)
    engine = build_engine(config, mesh, read_ds_config(run.ds_config), device=device, beat=watchdog.beat_for_all)
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
    checkpointer = Checkpointer(config, engine, checkpoints)
    watchdog.beat("loading a checkpoint")
    position = checkpointer.resume(resume)
    if position.checkpoint is None:
        if initial_weights is not None:
            console.line(f"weights: from {checkpointer.load_weights(initial_weights)}")
        else:
            initialize_weights(engine, config.model, config.run.seed, beat=watchdog.beat_for_all)
    if position.checkpoint is not None and position.loader is not None:
        changes = loader.load_state_dict(position.loader)
        saved = read_manifest(position.checkpoint)
        console.resumed(
            position.progress,
            position.checkpoint,
            saved_ranks=saved.world_size,
            saved_layout=saved.layout,
            layout=layout,
        )
        for change in changes:
            console.line(change)
    watchdog.beat("first step", position.step)
    report = Reporter(config, run, mesh, console, start=position.progress)
    checkpointer.saved = report.saved
    parts = TrainingComponents(
        config=config,
        engine=engine,
        loader=loader,
        guard=FiniteGuard(config, run, mesh.control_group, engine.device),
        validation=make_validation(mesh) if make_validation else None,
        checkpointer=checkpointer,
        report=report,
        stop=stop,
        watchdog=watchdog,
    )
    return parts, position


def build_engine(
    config: ResolvedRun,
    mesh: Mesh,
    ds_config: Mapping[str, Any],
    *,
    device: torch.device | str = "cpu",
    beat: Callable[[str], None] = lambda activity: None,
) -> Engine:
    """An engine whose weights have no values yet: a checkpoint, other weights or the seed follow.

    Args:
        beat: called with each weight that is about to take its place.
    """
    section, partition = config.model, partitioner(mesh, ds_config, device)

    def placed(name: str, parameter: nn.Parameter) -> None:
        beat(f"building {name}")
        partition(parameter)

    model = build_parallel_model(
        config.model, config.parallel, mesh, device=device, dtype=compute_dtype(ds_config), placed=placed
    )
    beat("building the engine")
    optimizer = build_optimizer(
        model,
        config.optimizer,
        decays=lambda name: row_of(section, name).decay,
        bucket_elements=bucket_elements(ds_config),
    )
    return Engine(model, optimizer, mesh, ds_config, gradient_clipping=config.optimizer.gradient_clipping)


def _read_plan(run: RunDir) -> dict[str, Any]:
    plan: dict[str, Any] = json.loads(run.plan.read_text(encoding="utf-8")) if run.plan.is_file() else {}
    return plan
