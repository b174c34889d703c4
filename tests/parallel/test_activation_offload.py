"""What blocks keep is on the host between the passes; and on a GPU, as streams that stand in for its own see it."""

import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from megatrain.model.architecture import row_of
from megatrain.model.build import build_model
from megatrain.model.initialization import initial_weight, materialize
from megatrain.parallel.activation_checkpointing import apply_activation_checkpointing
from megatrain.parallel.activation_offload import PinnedCopies, PlainCopies, offload_block_inputs
from megatrain.parallel.compile import compile_blocks
from tests.launcher.planning.test_blocks import MODELS

BATCH, LENGTH = 2, 16


def built(name, offload, *, copies=None, blocks=None, backend=None):
    """A model of a family, and a list that gets a reference to each block's input."""
    model = filled(name)
    if offload:
        apply_activation_checkpointing(model, "offload", blocks)
    if backend:
        compile_blocks(model, backend)
    if offload:
        offload_block_inputs(model, blocks, copies)
    inputs = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, given: inputs.append(weakref.ref(given[0])))
    return model, inputs


def filled(name):
    section = MODELS[name]
    with torch.device("meta"):
        model = build_model(section)
    materialize(model, lambda name, p: initial_weight(row_of(section, name), 3))
    return model


def forward(model):
    ids = torch.randint(0, 512, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([0, 5, 16, 21, 32], dtype=torch.int32)
    return model(ids, ids.roll(-1, 1), cu_seqlens=documents)


def gradients(model, times=1):
    for _ in range(times):
        loss = forward(model)
        loss.backward()
    return loss, [p.grad for p in model.parameters()]


def assert_equal(got, expected) -> None:
    assert torch.equal(got[0], expected[0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got[1], expected[1], strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_without_bit_for_bit_and_inputs_do_not_stay(name) -> None:
    model, inputs = built(name, offload=True)
    loss = forward(model)
    assert len(inputs) == len(model.blocks)
    assert all(given() is None for given in inputs), "of none is the tensor itself still there"
    loss.backward()
    got = loss, [p.grad for p in model.parameters()]
    assert_equal(got, gradients(built(name, offload=False)[0]))


@pytest.mark.parametrize("name", ["gpt", pytest.param("modernbert", marks=pytest.mark.full)])
def test_compiled_blocks_do_as_well(name) -> None:
    """`aot_eager` traces forward and backward as a compiled block does, without kernels of its own."""
    model, inputs = built(name, offload=True, backend="aot_eager")
    loss = forward(model)
    assert all(given() is None for given in inputs)
    loss.backward()
    got = loss, [p.grad for p in model.parameters()]
    assert_equal(got, gradients(built(name, offload=False, backend="aot_eager")[0]))


@pytest.mark.full
@pytest.mark.parametrize("name", MODELS)
def test_so_do_blocks_that_inductor_compiles(name) -> None:
    model, inputs = built(name, offload=True, backend="inductor")
    loss = forward(model)
    assert all(given() is None for given in inputs)
    loss.backward()
    got = loss, [p.grad for p in model.parameters()]
    full = filled(name)
    apply_activation_checkpointing(full, "full")
    compile_blocks(full)
    assert_equal(got, gradients(full))


def test_some_blocks_alone_can() -> None:
    model, inputs = built("llama", offload=True, blocks=2)
    loss = forward(model)
    assert [given() is None for given in inputs] == [True, True, False, False]
    loss.backward()


def test_without_gradients_nothing_is_copied() -> None:
    sent = []
    model, _ = built("llama", offload=True, copies=SimpleNamespace(send=sent.append))
    with torch.no_grad():
        forward(model)
    model.requires_grad_(False)
    model.blocks[-1].requires_grad_(True)
    model.blocks[-1].forward = model.blocks[-2].forward  # the others have no backward pass
    forward(model)
    assert sent == []


class Streams:
    """In place of `torch.cuda`: writes down what is asked of which stream."""

    def __init__(self) -> None:
        self.said = []
        self._current = _Stream("compute", self)

    def Stream(self):  # noqa: N802 - torch.cuda's name
        return _Stream("copies", self)

    def current_stream(self):
        return self._current

    @contextmanager
    def stream(self, stream):
        before, self._current = self._current, stream
        yield
        self._current = before


class _Stream:
    def __init__(self, name, streams) -> None:
        self.name, self._streams, self._events = name, streams, 0

    def wait_stream(self, other) -> None:
        self._streams.said.append((self.name, "waits for all of", other.name))

    def record_event(self):
        self._events += 1
        self._streams.said.append((self.name, "copies", self._events))
        return self._events

    def wait_event(self, event) -> None:
        self._streams.said.append((self.name, "waits for", event))


def test_a_copy_and_a_block_are_under_way_at_once() -> None:
    """Waits of the computing stream for copies: of one block's input when the next block begins."""
    streams = Streams()
    model, _ = built("llama", offload=True, copies=PinnedCopies(streams, pin=False))
    loss = forward(model)
    assert streams.said == [
        ("copies", "waits for all of", "compute"), ("copies", "copies", 1), ("compute", "waits for", 1),
        ("copies", "waits for all of", "compute"), ("copies", "copies", 2), ("compute", "waits for", 2),
        ("copies", "waits for all of", "compute"), ("copies", "copies", 3), ("compute", "waits for", 3),
        ("copies", "waits for all of", "compute"), ("copies", "copies", 4),
    ]  # fmt: skip
    streams.said.clear()
    loss.backward()
    assert streams.said == [
        ("compute", "waits for", 4),  # the last block's input is still on the device
        ("copies", "waits for all of", "compute"), ("copies", "copies", 5), ("compute", "waits for", 5),
        ("copies", "waits for all of", "compute"), ("copies", "copies", 6), ("compute", "waits for", 6),
        ("copies", "waits for all of", "compute"), ("copies", "copies", 7), ("compute", "waits for", 7),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_buffers_of_the_host_are_used_again(name) -> None:
    copies = PinnedCopies(Streams(), pin=False)
    model, _ = built(name, offload=True, copies=copies)
    got = gradients(model, times=3)
    assert_equal(got, gradients(built(name, offload=False)[0], times=3))
    assert len(copies._free) == len(model.blocks), "one for each"


def test_a_pass_that_was_given_up_leaves_nothing_behind() -> None:
    copies = PinnedCopies(Streams(), pin=False)
    model, _ = built("llama", offload=True, copies=copies)
    del_me = forward(model)
    del del_me
    assert_equal(gradients(model), gradients(built("llama", offload=False)[0]))
    assert len(copies._free) == len(model.blocks)


@pytest.mark.parametrize("make", [PlainCopies, lambda: PinnedCopies(Streams(), pin=False)])
def test_what_was_sent_can_be_taken_twice(make) -> None:
    copies = make()
    kept, _ = copies.send(torch.arange(6.0)), copies.send(torch.zeros(6))
    for _ in range(2):
        taken = kept.take()
        assert torch.equal(taken, torch.arange(6.0))
        taken.zero_()


def test_a_longer_sequence_gets_a_larger_buffer() -> None:
    copies = PinnedCopies(Streams(), pin=False)
    first = torch.arange(8.0)
    copies.send(first).take()
    (small,) = copies._free
    kept = copies.send(torch.arange(16.0).view(2, 8).bfloat16())
    assert kept._buffer is small
    longer = copies.send(torch.arange(64.0))
    assert torch.equal(kept.take(), torch.arange(16.0).view(2, 8).bfloat16())
    assert torch.equal(longer.take(), torch.arange(64.0))
