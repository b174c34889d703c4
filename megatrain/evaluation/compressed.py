"""A compressed export, and the metrics of its run's task before and after, by the weights as they lie in the folder."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from megatrain.base.errors import CheckpointError
from megatrain.base.files import reason, write_json
from megatrain.checkpoint.average import read_mean
from megatrain.config.resolved import ResolvedFinetune
from megatrain.evaluation.checkpoint import evaluate
from megatrain.evaluation.report import shown
from megatrain.huggingface.compression import Compression, is_compressed
from megatrain.huggingface.export import Exported, export
from megatrain.huggingface.merged import MergedWeights
from megatrain.huggingface.names import from_huggingface
from megatrain.huggingface.quantized import read_whole
from megatrain.model.architecture import parameter_table
from megatrain.run.directory import locate
from megatrain.run.inputs import load_run

RECORD, CARD = "megatrain.json", "README.md"
_COMPUTES = {
    None: "The zeros are stored like other values: the folder is as large as without them.",
    "int8": "A product takes int8 values and a scale for each output, and computes in the dtype of the activations.",
    "fp8": "A product takes fp8 values (e4m3) and a scale for each output, and computes in the dtype of activations.",
    "int4": "A product takes 4-bit values, with a scale and a zero for each group of inputs, and computes in bf16. "
    "Its kernels need an NVIDIA GPU and the package mslk; the metrics were computed from the same values made whole.",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """
    Attributes:
        matrices: how many hidden matrices were changed.
        zeros: the share of their values that is zero in the folder.
        data: what was evaluated on, in words; None: nothing was, and `unmeasured` says why.
        before, after: metrics of the run's task.
    """

    exported: Exported
    matrices: int
    zeros: float
    data: str | None
    before: dict[str, float]
    after: dict[str, float]
    unmeasured: str | None = None

    def lines(self) -> list[str]:
        """A table for a terminal."""
        if self.data is None:
            return [f"not measured: {self.unmeasured}"]
        width = max(map(len, self.before))
        rows = [
            f"  {name:{width}}  {shown(name, value):>12}  {shown(name, self.after[name]):>12}"
            for name, value in self.before.items()
        ]
        return [f"on {self.data}", f"  {'':{width}}  {'before':>12}  {'after':>12}", *rows]


def export_compressed(
    path: Path,
    out: Path,
    compression: Compression,
    *,
    files: Sequence[str] = (),
    measure: bool = True,
    warn: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> Compressed:
    """As `huggingface.export.export`; megatrain.json and README.md of the folder hold the metrics.

    Args:
        files: examples, or of pretraining prepared folders, to evaluate on; default: the run's own validation.
        measure: evaluate before and after.
        options: of `export`.

    Raises:
        MegatrainError: as `export` and `evaluation.checkpoint.evaluate`.
    """
    done = export(path, out, compression=compression, warn=warn, **options)
    table = [row for row in parameter_table(done.model) if is_compressed(row)]
    written = _written(done)
    values = sum(row.elements for row in table)
    zeros = sum(int((written[row.name] == 0).sum()) for row in table) / values
    why = None if measure else "--no-measure"
    config = load_run(locate(path)[0])
    held_out = config.finetune.validation if isinstance(config, ResolvedFinetune) else config.data.validation
    if why is None and not files and not held_out:
        section = "finetune" if isinstance(config, ResolvedFinetune) else "data"
        why = f"{section}.validation is empty; name files with --measure-on"
    data, before, after = None, {}, {}
    if why is None:
        given = _given(done)
        found = evaluate(done.checkpoint, files, warn=warn, weights=given)
        data, before = found.data, found.metrics
        given |= {row.name: written[row.name] for row in table}
        after = evaluate(done.checkpoint, files, weights=given).metrics
    made = Compressed(
        exported=done, matrices=len(table), zeros=zeros, data=data, before=before, after=after, unmeasured=why
    )
    _record(made, compression)
    return made


def _given(done: Exported) -> dict[str, Tensor]:
    """The weights that were compressed, as they were, with the rows that pad the vocabulary."""
    weights = MergedWeights().read(done.checkpoint)
    return read_mean(done.averaged, list(weights), MergedWeights().read) if len(done.averaged) > 1 else weights


def _written(done: Exported) -> dict[str, Tensor]:
    """Our weights by the folder's files, quantized ones made whole, fp32."""
    found: dict[str, Tensor] = {}
    for file in sorted(done.folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors, metadata = {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118
        found |= read_whole(tensors, metadata) if "tensor_names" in metadata else tensors
    return {name: tensor.float() for name, tensor in from_huggingface(found, done.model).items()}


def _record(made: Compressed, compression: Compression) -> None:
    done = made.exported
    file = done.folder / RECORD
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    record["compression"] = {
        "quantize": compression.quantize,
        "prune": compression.prune,
        "matrices": made.matrices,
        "zeros": made.zeros,
        "data": made.data,
        "not_measured": made.unmeasured,
        "before": made.before,
        "after": made.after,
    }
    try:
        write_json(file, record)
        (done.folder / CARD).write_text(_card(made, compression), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{done.folder}: the metrics cannot be written: {reason(error)}") from None


def _card(made: Compressed, compression: Compression) -> str:
    done = made.exported
    lines = [
        f"# {done.folder.name}",
        "",
        f"{done.checkpoint}, {compression}: {made.matrices} matrices of attention and MLPs, of whose values "
        f"{made.zeros:.1%} are zero. Embeddings, head, norms and biases are as they were. "
        f"{_COMPUTES[compression.quantize]}",
        "",
    ]
    if made.data is None:
        return "\n".join([*lines, f"Metrics were not measured: {made.unmeasured}", ""])
    rows = [
        f"| {name} | {shown(name, value)} | {shown(name, made.after[name])} |" for name, value in made.before.items()
    ]
    table = ["| metric | before | after |", "|---|--:|--:|", *rows]
    return "\n".join([*lines, f"On {made.data}:", "", *table, "", _load(done), ""])


def _load(done: Exported) -> str:
    return f"Load it: `transformers.{done.auto_class}.from_pretrained({os.fspath(done.folder)!r})`"
