"""Soft caps of attention's scores and of logits: every layout trains as a plain process; memory is what is planned."""

import pytest
import torch

from launcher.planning.activations import SOFTCAP_QUERIES, activation_bytes
from launcher.planning.layout import Layout as Planned
from megatrain.kernels import softcap_attention
from megatrain.kernels.attention import attention_reference
from megatrain.kernels.softcap_attention import attend_backward
from megatrain.model.attention import AttentionCore
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.llama.section import LlamaSection
from tests.distributed.layouts import Layout, Run, plain_run
from tests.distributed.memory import LiveTensors
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

STEPS = 6
SIZES = {"num_hidden_layers": 3, "hidden_size": 72, "num_attention_heads": 4, "intermediate_size": 88}
LOCAL = {"sliding_window": 5, "layer_types": ("sliding_attention", "full_attention")}
CAPS = {"attn_logit_softcapping": 0.2, "final_logit_softcapping": 1.0}
SECTIONS = {
    "llama": LlamaSection(**SIZES, **CAPS, **LOCAL, vocab_size=256, initializer_range=0.1),
    "gemma2": Gemma3Section(
        **SIZES, **CAPS, **LOCAL, vocab_size=256, head_dim=12, qk_norm=False, initializer_range=0.1
    ),
}
CASES = [
    pytest.param("gemma2", Layout(3, 2, 1, context=2)),
    pytest.param("llama", Layout(1, 2, 1, sequence_parallel=True), marks=pytest.mark.full),
    pytest.param("llama", Layout(3, 2, 1, compile=True, checkpointing="selective"), marks=pytest.mark.full),
    pytest.param("gemma2", Layout(2, 1, 2, checkpointing="full"), marks=pytest.mark.full),
]


def trained(family: str, layout: Layout) -> list[tuple[float, float]]:
    return Run(layout, model=SECTIONS[family]).train(0, STEPS)


@pytest.mark.parametrize(("family", "layout"), CASES, ids=str)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, family: str, layout: Layout, monkeypatch) -> None:
    """Whose attention is the reference with all scores at once."""
    monkeypatch.setattr(
        AttentionCore,
        "forward",
        lambda self, q, k, v, cu_seqlens=None: attention_reference(
            q, k, v, cu_seqlens, window=self.window, scale=self.scale, softcap=self.softcap
        ),
    )
    plain = plain_run("fp32", section=SECTIONS[family], steps=STEPS)
    uncapped = SECTIONS[family].model_copy(update=dict.fromkeys(CAPS))
    assert plain_run("fp32", section=uncapped, steps=1)[0][0] != pytest.approx(plain[0][0], rel=1e-4)
    for found in ranks.run(layout.world_size, trained, family, layout):
        for (loss, norm), (expected_loss, expected_norm) in zip(found, plain, strict=True):
            assert loss == pytest.approx(expected_loss, rel=2e-6)
            assert norm == pytest.approx(expected_norm, rel=2e-5)


def test_the_planner_knows_the_run_of_queries() -> None:
    assert SOFTCAP_QUERIES == softcap_attention.QUERIES


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_what_the_backward_pass_holds_is_planned(precision: str, dtype: torch.dtype) -> None:
    """A dispatch mode does not see into an operator, so that of a rank's run it is not measured."""
    length, batch, heads, keys, size = 1024, 2, 8, 2, 32
    of_heads = {"num_attention_heads": heads, "num_key_value_heads": keys, "head_dim": size}
    model = LlamaSection(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=64,
        vocab_size=64,
        attn_logit_softcapping=50.0,
        **of_heads,
    )
    without = model.model_copy(update={"attn_logit_softcapping": None})
    layout = Planned(
        tensor_parallel=1, data_parallel=1, zero_stage=1, sequence_parallel=False, micro_batch_size=batch,
        gradient_accumulation_steps=1, activation_checkpointing="none",
    )  # fmt: skip
    options = {"sequence_length": length, "precision": precision, "device": "cpu", "compiled": False}
    planned = [activation_bytes(one, layout, **options).keeping.working for one in (model, without)]

    q, out, grad = (torch.randn(batch, length, heads, size, dtype=dtype) for _ in range(3))
    k, v = (torch.randn(batch, length, keys, size, dtype=dtype) for _ in range(2))
    bounds = torch.arange(0, batch * length + 1, length, dtype=torch.int32)
    with LiveTensors() as live:
        before = live.bytes
        attend_backward(grad, q, k, v, out, torch.zeros(batch, heads, length), bounds, -1, 0, 0.1, 50.0)
        held = live.peak() - before - q.nbytes  # the gradient of queries is counted with those of the block
    assert planned[0] - planned[1] == pytest.approx(held, rel=0.15)


def test_a_cap_is_no_norm_of_its_own() -> None:
    """Far from the cap a model is what it was."""
    far = SECTIONS["llama"].model_copy(update={"attn_logit_softcapping": 1e5, "final_logit_softcapping": None})
    near = far.model_copy(update={"attn_logit_softcapping": None})
    (one, _), (other, _) = (plain_run("fp32", section=section, steps=1)[0] for section in (far, near))
    assert torch.isclose(torch.tensor(one), torch.tensor(other), rtol=1e-6)
