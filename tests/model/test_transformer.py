import pytest
import torch

from megatrain.kernels.cross_entropy import IGNORE_INDEX

SEQUENCE = 12


@pytest.fixture
def ids():
    return torch.randint(0, 64, (2, SEQUENCE), generator=torch.Generator().manual_seed(1))


def test_the_loss_is_that_of_the_logits(model_section, make_model, ids) -> None:
    model = make_model(model_section())
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORE_INDEX
    expected = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), labels.flatten(), reduction="sum")
    torch.testing.assert_close(model(ids, labels), expected)


def test_no_position_sees_a_later_one(model_section, make_model, ids) -> None:
    model = make_model(model_section())
    changed = ids.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % 64
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.isclose(before[:, 7:], after[:, 7:]).all(-1).any()


def test_packed_documents_are_as_if_alone(model_section, make_model, ids) -> None:
    model = make_model(model_section())
    first, second = ids[:, :5], ids[:, 5:]
    cu_seqlens = torch.tensor([0, 5, SEQUENCE, SEQUENCE + 5, 2 * SEQUENCE], dtype=torch.int32)
    positions = torch.cat([torch.arange(5), torch.arange(SEQUENCE - 5)]).expand(2, -1)
    packed = model(ids, position_ids_BS=positions, cu_seqlens=cu_seqlens)
    torch.testing.assert_close(packed, torch.cat([model(first), model(second)], 1))


def test_a_sliding_window_hides_what_is_before_it(model_section, make_model, ids) -> None:
    """Layer by layer: with one layer of 3 positions, a change reaches the two behind it and no further."""
    local = {"num_hidden_layers": 1, "sliding_window": 3}
    changed = ids.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 64
    for fields, reached in ((local, [4, 5, 6]), (local | {"layer_types": ["full_attention"]}, range(4, SEQUENCE))):
        model = make_model(model_section(**fields))
        differs = ~torch.isclose(model(ids), model(changed)).all(-1).all(0)
        assert differs.nonzero().flatten().tolist() == list(reached)


def test_a_pattern_of_layers_begins_again_after_its_last(model_section) -> None:
    section = model_section(
        num_hidden_layers=5, sliding_window=4, layer_types=["sliding_attention", "sliding_attention", "full_attention"]
    )
    assert section.windows == ((3, 0), (3, 0), (-1, 0), (3, 0), (3, 0))
    assert section.window_counts == {(3, 0): 4, (-1, 0): 1}
    # 64 positions: of the local layers 3 less those that the first ones do not have, of the other a half
    assert section.seen(64) == pytest.approx(4 * (3 - 9 / 128) + 32)


def test_normalised_heads_do_not_know_how_large_they_were(model_section, make_model, ids) -> None:
    with torch.no_grad():
        for qk_norm in (False, True):
            model = make_model(model_section(qk_norm=qk_norm, rms_norm_eps=1e-12))
            before = model(ids)
            for block in model.blocks:
                block.attention.query.weight *= 3
            assert torch.allclose(model(ids), before, atol=1e-4) == qk_norm


def test_tied_embeddings_are_one_parameter_with_both_gradients(model_section, make_model, ids) -> None:
    tied = make_model(model_section(tie_word_embeddings=True))
    assert tied.head.weight is tied.embedding.weight
    untied = make_model(model_section())
    untied.load_state_dict(tied.state_dict())
    for model in (tied, untied):
        model(ids, ids.roll(-1, 1)).backward()
    torch.testing.assert_close(tied.embedding.weight.grad, untied.embedding.weight.grad + untied.head.weight.grad)


def test_parameters_are_as_many_as_the_configuration_says(model_section, make_model) -> None:
    for tied in (False, True):
        section = model_section(tie_word_embeddings=tied)
        assert sum(p.numel() for p in make_model(section).parameters()) == section.parameters
