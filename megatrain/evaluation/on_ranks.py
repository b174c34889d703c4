"""One rank of `megatrain evaluate`: `python -m megatrain.evaluation.on_ranks FOLDER`, with the request in FOLDER."""

import argparse
import json
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field

from megatrain.base.errors import ConfigError
from megatrain.base.files import read_model
from megatrain.base.terminal import accept_any_text, complain, say
from megatrain.checkpoint.manifest import find_checkpoint
from megatrain.checkpoint.state import read_state
from megatrain.config import ParallelSection
from megatrain.config.rules import validate_model
from megatrain.evaluation.checkpoint import evaluate
from megatrain.evaluation.ranks import OnMesh
from megatrain.evaluation.report import as_dict, as_text, write_report
from megatrain.parallel.mesh import Mesh
from megatrain.run.directory import locate
from megatrain.run.inputs import load_run
from megatrain.topology import Topology
from megatrain.train import rank

REQUEST = "request.json"
_LIMIT = 1 << 20  # bytes of it
_SECONDS = 1800.0  # that a collective waits, for a rank may read examples or weights that long

Count = Annotated[int, Field(ge=1)]


class Request(BaseModel):
    """What `evaluate` was asked for."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    path: str
    files: list[str] = []
    split: Literal["validation", "train"] = "validation"
    others: list[str] = []
    tensor_parallel: Count = 1
    context_parallel: Count = 1
    report: str | None = None
    as_json: bool = False


def check_request(request: Request, ranks: int) -> None:
    """
    Raises:
        ConfigError: so many ranks cannot share the model and its sequences out so.
        CheckpointError: there is no whole checkpoint.
    """
    tensor, context = request.tensor_parallel, request.context_parallel
    if ranks % (tensor * context):
        raise ConfigError(
            f"--nproc {ranks}: must be a multiple of --tensor-parallel x --context-parallel = {tensor} x {context}"
        )
    config = load_run(locate(Path(request.path))[0])
    parallel = ParallelSection(tensor_parallel=tensor, context_parallel=context)
    for path in (request.path, *request.others):
        model = read_state(find_checkpoint(Path(path))).model.merged
        for problem in validate_model(model, parallel):
            field = problem.field.removeprefix("parallel.").replace("_", "-")
            raise ConfigError(f"--{field} {problem.value}: {path}: {problem.rule}. {problem.fix}".rstrip())
    if config.sequence_length % context:
        raise ConfigError(
            f"--context-parallel {context}: does not divide the sequence length ({config.sequence_length})"
        )


def work(request: Request) -> None:
    """On each rank. Rank 0 says what was found."""
    device, _ = rank.join(_SECONDS)
    topology = Topology(
        world_size=dist.get_world_size(),
        tensor_parallel=request.tensor_parallel,
        context_parallel=request.context_parallel,
    )
    mesh = Mesh(topology, timeout=timedelta(seconds=_SECONDS))
    found = evaluate(
        Path(request.path),
        request.files,
        split=request.split,
        others=[Path(other) for other in request.others],
        warn=lambda text: complain(text, "warning") if mesh.is_main else None,
        ranks=OnMesh(mesh, device),
    )
    if mesh.is_main:
        if request.report is not None:
            write_report(found, Path(request.report))
        say(json.dumps(as_dict(found), indent=2) if request.as_json else as_text(found))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m megatrain.evaluation.on_ranks", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--resume", help="not used")
    folder = parser.parse_args().folder
    accept_any_text()
    rank.run(lambda: work(read_model(folder / REQUEST, Request, error=ConfigError, limit=_LIMIT)))


if __name__ == "__main__":
    main()
