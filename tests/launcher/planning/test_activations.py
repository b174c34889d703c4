"""What the passes hold: the literature's bytes of a Llama block, and what this project's ops add or save."""

import pytest

from launcher.planning.activations import HEAD_CHUNK_TOKENS, activation_bytes
from megatrain.config.regularization import Passes
from tests.launcher.shapes import MODEL, layout

h, f, q, k, heads = 256, 512, 256, 128, 8


def found(device="cuda", precision="bf16", compiled=False, length=1024, model=MODEL, **changes):
    return activation_bytes(
        model,
        layout(**changes),
        sequence_length=length,
        precision=precision,
        device=device,
        compiled=compiled,
    )


def a_token_of_a_layer(model=MODEL, **arguments):
    deeper = model.model_copy(update={"num_hidden_layers": 5})
    return (found(model=deeper, **arguments).kept - found(model=model, **arguments).kept) / (4 * 1024)


def test_a_compiled_block_keeps_the_literatures_bytes():
    """arXiv 2205.05198 for a Llama block: c·(4h + 2q + 2k + 3f), and the statistics of two norms and of attention."""
    assert a_token_of_a_layer(compiled=True) == pytest.approx(2 * (4 * h + 2 * q + 2 * k + 3 * f) + 2 * 4 + 4 * heads)


def test_an_eager_block_keeps_one_product_more():
    assert a_token_of_a_layer() - a_token_of_a_layer(compiled=True) == pytest.approx(2 * f)


def test_a_cpu_keeps_the_norms_in_fp32():
    assert a_token_of_a_layer(device="cpu") - a_token_of_a_layer() == pytest.approx(2 * (8 * h - 2 * h - 4))


def test_norms_of_heads_keep_what_they_normalise():
    normed = MODEL.model_copy(update={"qk_norm": True})
    both = heads * (q + k) // q
    more = [a_token_of_a_layer(model=model) for model in (MODEL, normed)]
    assert more[1] - more[0] == pytest.approx(2 * (q + k) + 4 * both)


def test_full_recomputation_keeps_a_blocks_input():
    assert a_token_of_a_layer(activation_checkpointing="full") == pytest.approx(2 * h)


def test_sequence_parallelism_splits_the_stream_and_the_norms():
    one, two = (a_token_of_a_layer(tensor_parallel=2, sequence_parallel=on) for on in (False, True))
    assert one - two == pytest.approx(2 * (2 * h + 4) / 2)


def test_each_way_to_save_memory_saves_memory():
    modes = [found(activation_checkpointing=mode).kept for mode in ("none", "selective", "full")]
    assert modes == sorted(modes, reverse=True)
    assert found(tensor_parallel=2).kept < found().kept


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_some_blocks_recompute_and_the_others_keep_everything(mode):
    """Four blocks: the first three recompute; the backward pass begins with the last."""
    none, every, some = (
        found(activation_checkpointing=m, recompute_blocks=n) for m, n in (("none", None), (mode, None), (mode, 3))
    )
    assert some.kept == pytest.approx((none.kept + 3 * every.kept) / 4)
    assert some.in_backward(0) - some.kept == pytest.approx(none.in_backward(0) - none.kept)
    assert some.in_backward(3) == pytest.approx(every.in_backward(3))
    assert every.kept < some.kept < none.kept
    as_all = found(activation_checkpointing=mode, recompute_blocks=4)
    assert [as_all.in_backward(done) for done in range(4)] == [every.in_backward(done) for done in range(4)]


def test_logits_exist_a_chunk_at_a_time():
    few, many = (found(micro_batch_size=n).logits for n in (2, 4))
    assert many - few == 2 * 1024 * 2 * 2 * h, "only the tokens' hidden states grow"
    assert few > HEAD_CHUNK_TOKENS * 1024 * 4


def test_more_tokens_take_more():
    assert found(length=2048).kept == found(micro_batch_size=8).kept == 2 * found().kept


def test_eager_dropout_holds_random_bits_for_a_moment_and_keeps_nothing():
    passes = Passes(dropout=True)
    for compiled, held in ((False, 24 * h), (True, 0)):
        drawn, plain = (found(compiled=compiled, **more) for more in ({"passes": passes}, {}))
        assert drawn.kept == plain.kept
        assert (drawn.keeping.working - plain.keeping.working) / (4 * 1024) == pytest.approx(held)
