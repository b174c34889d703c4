"""One block of an 8B Llama on 8,192 tokens: eager and compiled, each way to checkpoint, with documents: TFLOP/s, bytes
kept, and what the planner says of both."""

from typing import Any, get_args

import torch
from torch import nn

from benchmarks.gpu.measure import Recorder
from launcher.planning.activations import activation_bytes
from launcher.planning.layout import Layout
from megatrain.model.families.llama.module import Llama
from megatrain.model.families.llama.section import LlamaSection
from megatrain.parallel.activation_checkpointing import Mode, apply_activation_checkpointing
from megatrain.parallel.compile import compile_blocks

LLAMA_8B = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 14336}
TOY = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
LAYERS = 2  # the difference to one layer would be too small to measure in memory


def main() -> None:
    record = Recorder("block")
    for compiled in (False,) if record.toy else (False, True):
        for mode in get_args(Mode):
            for documents in (None, 8):
                name = f"{'compiled' if compiled else 'eager'} {mode} {'documents' if documents else 'plain'}"
                record.attempt(name, lambda c=compiled, m=mode, d=documents: blocks(record, c, m, d))  # type: ignore[misc]


def blocks(record: Recorder, compiled: bool, mode: Mode, documents: int | None) -> dict[str, Any]:
    length = 64 if record.toy else 8192
    section = LlamaSection(num_hidden_layers=LAYERS, vocab_size=256, **(TOY if record.toy else LLAMA_8B))
    with torch.device("meta"):
        model: nn.Module = Llama(section).to(torch.bfloat16)
    model = model.to_empty(device=record.device)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
    apply_activation_checkpointing(model, mode)
    if compiled:
        compile_blocks(model)
    ids = torch.randint(0, 256, (1, length), device=record.device)
    bounds = torch.linspace(0, length, documents + 1).int().to(record.device) if documents else None

    def work() -> None:
        model(ids, ids, cu_seqlens=bounds).backward()
        model.zero_grad(set_to_none=False)

    milliseconds = record.milliseconds(work, repeats=3)
    flops = section.flops_per_token(length) * length
    layout = Layout(
        tensor_parallel=1,
        context_parallel=1,
        data_parallel=1,
        zero_stage=1,
        sequence_parallel=False,
        micro_batch_size=1,
        gradient_accumulation_steps=1,
        activation_checkpointing=mode,
    )
    planned = activation_bytes(
        section, layout, sequence_length=length, precision="bf16", device=record.device.type, compiled=compiled
    )
    return {
        "ms": milliseconds,
        "tflops": flops / milliseconds / 1e9,
        "peak_bytes": record.peak_bytes(work),
        "planned_kept_bytes": planned.kept,
    }


if __name__ == "__main__":
    main()
