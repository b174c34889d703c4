import pytest
import torch

from megatrain.model.architecture import row_of
from megatrain.model.build import build_model
from megatrain.model.families.gpt.section import GPTSection
from megatrain.model.initialization import initial_weight, materialize

SECTION = GPTSection(
    num_hidden_layers=2,
    hidden_size=24,
    num_attention_heads=3,
    vocab_size=64,
    max_position_embeddings=16,
    initializer_range=0.3,
)


@pytest.fixture
def model():
    with torch.device("meta"):
        model = build_model(SECTION)
    materialize(model, lambda name, p: initial_weight(row_of(SECTION, name), 3))
    return model


@pytest.fixture
def ids():
    return torch.randint(0, 64, (2, 12), generator=torch.Generator().manual_seed(1))


def test_no_position_sees_a_later_one(model, ids) -> None:
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 64
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


def test_packed_documents_are_as_if_alone(model, ids) -> None:
    cu_seqlens = torch.tensor([0, 5, 12, 17, 24], dtype=torch.int32)
    positions = torch.cat([torch.arange(5), torch.arange(7)]).expand(2, -1)
    packed = model(ids, position_ids_BS=positions, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(packed, torch.cat([model(ids[:, :5]), model(ids[:, 5:])], 1))


def test_positions_tell_the_same_tokens_apart(model) -> None:
    logits = model(torch.full((1, 8), 5))
    assert not torch.isclose(logits[:, 1:], logits[:, :1]).all(-1).any()


def test_learned_positions_are_not_multiplied_with(model) -> None:
    """Tied word embeddings are, once as the head; positions never are."""
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "position" not in name)
    assert SECTION.matmul_parameters == matrices
