"""Published training runs, as the planner would describe them: what time prediction is checked against.

Models without a gated MLP are given the intermediate size that makes the same number of weights.
"""

from dataclasses import dataclass
from typing import Any

from launcher.planning.cost import block_time, estimate_step, model_flops_utilization
from launcher.planning.hardware import load_hardware
from launcher.planning.layout import Layout
from megatrain.config import ModelSection
from megatrain.model.families.llama.section import LlamaSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    name: str
    source: str
    hardware: str
    ranks_per_node: int
    model: ModelSection
    layout: Layout
    sequence_length: int
    compiled: bool
    tokens_per_second_per_gpu: float  # as published, or from a published MFU by that publication's own convention
    # what no layout of megatrain has
    pipeline_bubble: float = 0.0  # idle share of a pipeline: (p - 1) / (v·m)
    recomputed_matmuls: float = 0.0  # share of the blocks' matmuls that are made again
    fitted: bool = True  # whether it was used to choose the constants

    @property
    def predicted(self) -> float:
        hardware = load_hardware(self.hardware, self.ranks_per_node)
        time = estimate_step(
            self.model,
            self.layout,
            sequence_length=self.sequence_length,
            precision="bf16",
            ranks_per_node=self.ranks_per_node,
            hardware=hardware,
            compiled=self.compiled,
        )
        layout = self.layout
        block = block_time(self.model, layout, self.sequence_length, "bf16", hardware, self.compiled)
        passes = layout.gradient_accumulation_steps * self.model.num_hidden_layers
        seconds = (time.total + self.recomputed_matmuls * passes * block.matmuls) * (1 + self.pipeline_bubble)
        tokens = layout.micro_batch_size * layout.gradient_accumulation_steps * self.sequence_length
        return tokens / seconds / layout.tensor_parallel

    @property
    def predicted_mfu(self) -> float:
        """By megatrain's convention."""
        return model_flops_utilization(
            self.model,
            sequence_length=self.sequence_length,
            tokens_per_second_per_gpu=self.predicted,
            hardware=load_hardware(self.hardware, self.ranks_per_node),
        )

    @property
    def error(self) -> float:
        """Of the predicted step time."""
        return self.tokens_per_second_per_gpu / self.predicted - 1


def _model(
    layers: int, hidden: int, heads: int, kv: int, intermediate: int, vocabulary: int, tied: bool = False
) -> ModelSection:
    return LlamaSection(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=intermediate,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
    )


def _layout(
    data: int, micro: int, *, zero: int = 3, tensor: int = 1, steps: int = 1, recompute: str = "none"
) -> Layout:
    return Layout(
        tensor_parallel=tensor,
        data_parallel=data,
        zero_stage=zero,
        sequence_parallel=tensor > 1,
        micro_batch_size=micro,
        gradient_accumulation_steps=steps,
        activation_checkpointing=recompute,  # type: ignore[arg-type]
    )


LLAMA_8B = _model(32, 4096, 32, 8, 14336, 128256)
LLAMA_13B = _model(40, 5120, 40, 8, 17920, 128256)
MPT = {  # an ungated MLP of 4h has as many weights as a gated one of 8h/3
    "7b": _model(32, 4096, 32, 32, 10922, 50432, tied=True),
    "3b": _model(32, 2560, 20, 20, 6826, 50432, tied=True),
    "1b": _model(24, 2048, 16, 16, 5461, 50432, tied=True),
    "13b": _model(40, 5120, 40, 40, 13653, 50432, tied=True),
    "30b": _model(48, 7168, 56, 56, 19114, 50432, tied=True),
}
NANOCHAT_D24 = _model(24, 1536, 12, 12, 4096, 32768)
GPT2 = _model(12, 768, 12, 12, 2048, 50304, tied=True)
GPT3 = _model(96, 12288, 96, 96, 32768, 131072)


def _rate(model: ModelSection, length: int, mfu: float, *, full_attention: bool) -> float:
    """Tokens a second and GPU of a published MFU, over 989.4 TFLOP/s."""
    flops = model.flops_per_token(length)
    if full_attention:
        flops += 6.0 * model.num_hidden_layers * model.num_attention_heads * model.head_size * length
    return mfu * 989.4e12 / flops


# Every second matmul is made again in torchtitan's selective checkpointing of that time.
TITAN: dict[str, Any] = {
    "hardware": "h100-96gb-500w",
    "ranks_per_node": 8,
    "model": LLAMA_8B,
    "sequence_length": 8192,
    "recomputed_matmuls": 0.5,
}
TITAN_SOURCE = "torchtitan, benchmarks/llama3_h100_202412_torchtitan.md, table"
FOUNDRY: dict[str, Any] = {
    "hardware": "h100-sxm",
    "ranks_per_node": 8,
    "compiled": False,
    "source": "llm-foundry, scripts/train/benchmarking/README.md, H100 BF16",
}
KEMPNER: dict[str, Any] = {
    "hardware": "h200",
    "ranks_per_node": 4,
    "sequence_length": 4096,
    "source": "KempnerForge, benchmarks/mfu_scaling/mfu_scaling_2026-04-05.md",
}
GPT3_96: dict[str, Any] = {
    "hardware": "h100-sxm",
    "ranks_per_node": 8,
    "model": GPT3,
    "sequence_length": 4096,
    "compiled": True,
}


def _titan(name: str, data: int, compiled: bool, rate: float, table: int, fitted: bool = True) -> Published:
    return Published(
        name=name,
        source=f"{TITAN_SOURCE} {table}",
        layout=_layout(data, 2, recompute="selective"),
        compiled=compiled,
        tokens_per_second_per_gpu=rate,
        fitted=fitted,
        **TITAN,
    )


def _foundry(
    size: str,
    length: int,
    gpus: int,
    micro: int,
    steps: int,
    rate: float,
    *,
    recompute: bool = False,
    fitted: bool = False,
) -> Published:
    return Published(
        name=f"MPT-{size.upper()}, {length} tokens, {gpus} × H100{', full recompute' if recompute else ''}",
        model=MPT[size],
        layout=_layout(gpus, micro, steps=steps, recompute="full" if recompute else "none"),
        sequence_length=length,
        tokens_per_second_per_gpu=rate,
        fitted=fitted,
        **FOUNDRY,
    )


def _kempner(
    name: str, model: ModelSection, layout: Layout, compiled: bool, rate: float, fitted: bool = False
) -> Published:
    return Published(
        name=name,
        model=model,
        layout=layout,
        compiled=compiled,
        tokens_per_second_per_gpu=rate,
        fitted=fitted,
        **KEMPNER,
    )


ROWS = [
    _titan("Llama-3-8B, 8 × H100 500 W, eager", 8, False, 5762, 1),
    _titan("Llama-3-8B, 8 × H100 500 W, compiled", 8, True, 6667, 1),
    _foundry("7b", 2048, 8, 6, 1, 10643, fitted=True),
    _kempner(
        "Llama-3-8B, 1 × H200, full recompute",
        LLAMA_8B,
        _layout(1, 2, zero=0, steps=4, recompute="full"),
        True,
        10471,
        fitted=True,
    ),
    Published(
        name="nanochat d24, 8 × H100",
        source="nanochat: 50% MFU by 6·N + 12·L·h·S a token",
        hardware="h100-sxm",
        ranks_per_node=8,
        model=NANOCHAT_D24,
        layout=_layout(8, 16, zero=1, steps=2),
        sequence_length=2048,
        compiled=True,
        tokens_per_second_per_gpu=_rate(NANOCHAT_D24, 2048, 0.50, full_attention=True),
    ),
    Published(
        name="GPT-2 124M, llm.c, 8 × H100",
        source="llm.c: 41% MFU by 6·N + 6·L·h·S a token",
        hardware="h100-sxm",
        ranks_per_node=8,
        model=GPT2,
        layout=_layout(8, 64, zero=1),
        sequence_length=1024,
        compiled=True,
        tokens_per_second_per_gpu=_rate(GPT2, 1024, 0.41, full_attention=False),
    ),
    Published(
        name="GPT-3 175B, Megatron-LM, 96 × H100",
        source="Megatron-LM README, strong scaling: 47% MFU; 8 tensor × 12 pipeline",
        layout=_layout(1, 1, zero=1, tensor=8, steps=1152),
        pipeline_bubble=11 / 1152,
        tokens_per_second_per_gpu=_rate(GPT3, 4096, 0.47, full_attention=True),
        **GPT3_96,
    ),
    Published(
        name="GPT-3 175B, Megatron-LM, 4,608 × H100",
        source="Megatron-LM README, strong scaling: 42% MFU; 8 tensor × 12 pipeline × 48 data, its reduction hidden",
        layout=_layout(1, 1, zero=1, tensor=8, steps=24),
        pipeline_bubble=11 / (8 * 24),
        tokens_per_second_per_gpu=_rate(GPT3, 4096, 0.42, full_attention=True),
        **GPT3_96,
    ),
    # not used to choose the constants
    _titan("Llama-3-8B, 128 × H100 500 W, eager", 128, False, 5605, 3, fitted=False),
    _titan("Llama-3-8B, 128 × H100 500 W, compiled", 128, True, 6514, 3, fitted=False),
    _kempner(
        "Llama-3-8B, 4 × H200, full recompute", LLAMA_8B, _layout(4, 4, steps=2, recompute="full"), True, 38983 / 4
    ),
    _kempner(
        "Llama 13B, 8 × H200 on 2 nodes, full recompute, eager",
        LLAMA_13B,
        _layout(8, 4, steps=4, recompute="full"),
        False,
        35405 / 8,
    ),
    _foundry("13b", 2048, 8, 2, 1, 4792),
    _foundry("30b", 2048, 8, 3, 21, 2002, recompute=True),
    _foundry("7b", 8192, 8, 8, 2, 6935, recompute=True),
    _foundry("3b", 8192, 8, 3, 6, 16578),
    _foundry("3b", 1024, 8, 20, 6, 27046),
    _foundry("3b", 2048, 64, 6, 3, 22525),
    _foundry("1b", 2048, 8, 14, 1, 45455),
    _foundry("1b", 2048, 64, 20, 1, 44402),
]
