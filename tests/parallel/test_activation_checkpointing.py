from collections import Counter

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing

MODES = ["none", "selective", "full"]
MATMUL = torch.ops.aten.mm.default
ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
DOCUMENTS = torch.ops.megatrain.document_attention.default
SILU = torch.ops.aten.silu.default


class CountOps(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


def step(model, documents=None) -> tuple[torch.Tensor, dict[str, torch.Tensor], Counter]:
    """Loss, gradients, and how often each op ran."""
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    with CountOps() as counted:
        loss = model(
            ids, ids.roll(-1, 1), cu_seqlens=None if documents is None else torch.tensor(documents, dtype=torch.int32)
        )
        loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters()}, counted.counts


@pytest.fixture
def stepped(make_model):
    def make(mode, documents=None, blocks=None):
        model = make_model()
        apply_activation_checkpointing(model, mode, blocks)
        return step(model, documents)

    return make


@pytest.mark.parametrize("documents", [None, [0, 5, 16, 21, 32]], ids=["plain", "packed"])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputing_changes_no_bit(stepped, mode, documents) -> None:
    loss, gradients, _ = stepped(mode, documents)
    expected_loss, expected, _ = stepped("none", documents)
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())


def test_what_each_mode_computes_again(stepped) -> None:
    none, selective, full = (stepped(mode)[2] for mode in MODES)
    layers = 2
    # the cheap ops again in both; the dear ones only under "full" (torch stops early: the last product is not needed)
    assert none[SILU] == layers
    assert selective[SILU] == full[SILU] == 2 * layers
    assert (none[ATTENTION], selective[ATTENTION], full[ATTENTION]) == (layers, layers, 2 * layers)
    assert selective[MATMUL] == none[MATMUL]
    assert none[MATMUL] + 6 * layers <= full[MATMUL] <= none[MATMUL] + 7 * layers


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_some_blocks_alone_can_recompute(stepped, mode) -> None:
    loss, gradients, counts = stepped(mode, blocks=1)
    expected_loss, expected, none = stepped("none")
    assert torch.equal(loss, expected_loss)
    assert all(torch.equal(gradient, expected[name]) for name, gradient in gradients.items())
    assert counts[SILU] == none[SILU] + 1
    assert counts[ATTENTION] == none[ATTENTION] + (1 if mode == "full" else 0)


def test_selective_does_not_compute_the_attention_of_documents_again(stepped) -> None:
    none, selective, full = (stepped(mode, [0, 5, 16, 21, 32])[2][DOCUMENTS] for mode in MODES)
    assert (none, selective, full) == (2, 2, 4)


def test_they_are_the_first(make_model) -> None:
    """The last blocks have released what they keep by the time that these recompute."""
    model = make_model()
    apply_activation_checkpointing(model, "full", 1)
    assert ["forward" in vars(block) for block in model.blocks] == [True, False]


@pytest.mark.parametrize("mode", MODES)
def test_names_of_parameters_stay(make_model, mode) -> None:
    model = make_model()
    before = list(model.state_dict())
    apply_activation_checkpointing(model, mode)
    assert list(model.state_dict()) == before


class Biased(nn.Module):
    """Two layers with biases, in the one attribute that checkpointing looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 8), nn.SiLU()) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize(("mode", "again"), [("none", 0), ("selective", 0), ("full", 4)])
def test_a_product_with_a_bias_is_kept_as_one_without(mode, again) -> None:
    model = Biased()
    apply_activation_checkpointing(model, mode)
    with CountOps() as counted:
        model(torch.randn(4, 8, requires_grad=True)).sum().backward()
    assert counted.counts[torch.ops.aten.addmm.default] == 4 + again
