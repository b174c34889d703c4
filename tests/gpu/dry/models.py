"""Two blocks of each family at a published size, and a forward and backward pass of them on fake CUDA tensors."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from unittest import mock

import torch
import torch._subclasses.fake_tensor as fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from megatrain.kernels import cross_entropy
from megatrain.model.architecture import ModelSection
from megatrain.model.build import build_model
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.gemma3.section import Gemma3Section
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.model.families.modernbert.section import ModernBertSection
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.compile import compile_blocks
from megatrain.parallel.float8 import Scaling, apply_float8
from tests.gpu.dry.compiled import Kernels

fake_tensor.init_gpu_context = lambda *_: None  # it would allocate on the device
SEQUENCES, LENGTH, DOCUMENTS = 2, 512, 6

SECTIONS: dict[str, ModelSection] = {
    "bert": BertSection(  # BERT base
        num_hidden_layers=2, hidden_size=768, num_attention_heads=12, intermediate_size=3072, vocab_size=30_592
    ),
    "gemma3": Gemma3Section(  # Gemma 3 1B
        num_hidden_layers=2, hidden_size=1152, num_attention_heads=4, num_key_value_heads=1, head_dim=256,
        intermediate_size=6912, vocab_size=262_144, sliding_window=256,
        layer_types=("sliding_attention", "full_attention"),
    ),
    "gpt": GPTSection(num_hidden_layers=2, hidden_size=768, num_attention_heads=12, vocab_size=50_304),  # GPT-2
    "llama": LlamaSection(  # Llama 3 8B
        num_hidden_layers=2, hidden_size=4096, num_attention_heads=32, num_key_value_heads=8, intermediate_size=14_336,
        vocab_size=128_256,
    ),
    "modernbert": ModernBertSection(  # ModernBERT base
        num_hidden_layers=2, hidden_size=768, num_attention_heads=12, intermediate_size=1152, vocab_size=50_432
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    compiled: bool
    checkpointing: str
    documents: bool
    float8: Scaling | None = None

    def __str__(self) -> str:
        parts = ("compiled" if self.compiled else "eager", f"{self.checkpointing} recompute")
        parts = (*parts, "documents" if self.documents else "whole sequences")
        return ", ".join(parts if self.float8 is None else (*parts, f"fp8 {self.float8}"))


def cases() -> Iterator[Case]:
    for compiled, checkpointing, documents in itertools.product(
        (False, True), ("none", "selective", "full"), (False, True)
    ):
        if not compiled or documents or checkpointing == "none":
            yield Case(compiled, checkpointing, documents)
    yield Case(False, "none", False, "tensorwise")
    yield Case(True, "selective", True, "tensorwise")
    yield Case(True, "none", True, "rowwise")


def trace(section: ModelSection, case: Case) -> str:
    """What was compiled.

    Raises:
        AssertionError: a gradient is missing, or not in the dtype or on the device of its weight.
        DataDependentOutputException: something waits for a value of the device.
    """
    torch._dynamo.reset()
    cross_entropy._compiled_loss_and_grad.cache_clear()
    kernels = Kernels()
    with FakeTensorMode(), mock.patch.object(torch, "compile", partial(torch.compile, backend=kernels.backend)):
        model = _on_device(section)
        if case.float8 is not None:
            assert apply_float8(model, section, case.float8)
        apply_activation_checkpointing(model, case.checkpointing)
        if case.compiled:
            compile_blocks(model, backend=kernels.backend)
        ids = torch.zeros(SEQUENCES, LENGTH, dtype=torch.int64, device="cuda")
        bounds = torch.zeros(DOCUMENTS + 1, dtype=torch.int32, device="cuda") if case.documents else None
        model(ids, ids, position_ids_BS=ids, cu_seqlens=bounds).backward()
        for name, parameter in model.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, f"{name} has no gradient"
            assert (gradient.dtype, gradient.device) == (parameter.dtype, parameter.device), name
    return f"{kernels.graphs} graphs, {kernels.kernels} kernels for sm_90" if case.compiled else "traced"


def _on_device(section: ModelSection) -> torch.nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return build_model(section)
    finally:
        torch.set_default_dtype(before)
