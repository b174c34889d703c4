import json
import shutil
import threading

import numpy as np
import pytest
import torch

from megatrain.base.batch_sizes import BatchSizes
from megatrain.base.errors import ConfigError, DataError
from megatrain.config import PhaseSection, QuarantinedBlock, ShuffleSection, Source
from megatrain.config.data import ReadingSection
from megatrain.data.loading.loader import TrainLoader
from megatrain.data.loading.shards import PreparedData
from megatrain.data.text.tokenizer import train_tokenizer


def global_batch(loaders: list[TrainLoader]) -> torch.Tensor:
    """One step's tokens of all ranks in the order of samples, [global_batch_size, S + 1]."""
    steps = [loader.next() for loader in loaders]
    rows = []
    for micro_batches in zip(*(step.micro_batches for step in steps), strict=True):
        for batch in micro_batches:
            rows.append(torch.cat([batch.input_ids, batch.labels[:, -1:]], dim=1))
    return torch.cat(rows)


def stream(make_loader, steps, *, ranks=1, position=None, **options):
    """The token stream of a run on some number of ranks, and their state at the end."""
    loaders = [make_loader(data_rank=rank, data_size=ranks, **options) for rank in range(ranks)]
    for loader in loaders:
        if position is not None:
            loader.load_state_dict(position)
    tokens = torch.cat([global_batch(loaders) for _ in range(steps)])
    states = [loader.state_dict() for loader in loaders]
    assert all(state == states[0] for state in states)
    return tokens, states[0]


def test_the_stream_is_the_same_for_any_ranks_and_micro_batches(make_loader):
    expected, state = stream(make_loader, 12, micro_batch_size=8)
    assert expected.shape == (96, 33)
    for ranks, micro_batch_size in [(1, 1), (1, 4), (2, 1), (2, 4), (4, 1), (4, 2), (8, 1)]:
        got, same_state = stream(make_loader, 12, ranks=ranks, micro_batch_size=micro_batch_size)
        assert torch.equal(got, expected)
        assert same_state == state


def test_elastic_resume_twice_on_other_ranks_and_batches_is_exact(make_loader):
    """96 steps of 8 samples; both sources begin a second epoch on the way, the second one before the last resume."""
    length = {"sequence_length": 64}
    whole, _ = stream(make_loader, 96, **length)
    first, state = stream(make_loader, 7, ranks=2, **length)
    assert state["position"] == 56
    second, state = stream(make_loader, 30, ranks=4, global_batch_size=16, micro_batch_size=1, position=state, **length)
    last = make_loader(micro_batch_size=8, **length)
    last.load_state_dict(json.loads(json.dumps(state)))
    third = torch.cat([global_batch([last]) for _ in range(29)])
    assert torch.equal(torch.cat([first, second, third]), whole)
    sizes = [PreparedData(source.path).manifest.rows(64) for source in last._data.train]
    assert all(given > size for given, size in zip(last.samples_per_source(), sizes, strict=True))


def test_a_batch_size_that_grows_leaves_the_stream_as_it_is(make_loader):
    """Steps of 4 samples until sample 10, of 8 until 30, then of 16; read ahead by three threads."""
    sizes = BatchSizes(16, ((10, 4), (30, 8)))
    options = {"global_batch_size": sizes, "micro_batch_size": 1, "reading": ReadingSection(threads=3), "prefetch": 4}
    expected, _ = stream(make_loader, 8)
    for ranks in (1, 2, 4):
        first, state = stream(make_loader, 4, ranks=ranks, **options)
        assert state["position"] == 3 * 4 + 8
        second, state = stream(make_loader, 3, ranks=4 // ranks, position=state, **options)
        assert state["position"] == 20 + 8 + 8 + 16
        assert torch.equal(torch.cat([first, second]), expected[:52])
    loader = make_loader(**options)
    assert [len(loader.next().micro_batches) for _ in range(7)] == [4, 4, 4, 8, 8, 8, 16]


def test_each_batch_of_a_warmup_must_be_shared_out(make_loader):
    with pytest.raises(ConfigError, match="6: must be a multiple of micro_batch_size x data-parallel ranks = 2 x 2"):
        make_loader(global_batch_size=BatchSizes(8, ((10, 6),)), micro_batch_size=2, data_size=2)


def test_only_what_was_consumed_counts(make_loader):
    loader = make_loader(prefetch=4)
    loader.next()
    assert loader.state_dict()["position"] == 8
    assert loader.tokens_consumed == 8 * 32


def test_an_epoch_of_one_source_is_each_of_its_rows_once(make_loader, prepared):
    data = PreparedData(prepared)
    rows = data.manifest.rows(32)
    expected = {data.read_tokens(*divmod(index, 8), 32).tobytes() for index in range(rows)}
    assert len(expected) == rows
    loader = make_loader(train=(Source(path=str(prepared)),), global_batch_size=1, micro_batch_size=1)
    for _ in range(2):
        epoch = torch.cat([global_batch([loader]) for _ in range(rows)])
        assert {row.numpy().astype(np.uint16).tobytes() for row in epoch} == expected


def test_labels_and_boundaries_come_from_the_index(make_loader, prepared, tokenizer):
    loader = make_loader(train=(Source(path=str(prepared)),), global_batch_size=64, micro_batch_size=64)
    (batch,) = loader.next().micro_batches
    assert torch.equal(batch.labels[:, :-1], batch.input_ids[:, 1:])
    after_eos = (batch.input_ids == tokenizer.eos_id)[:, :-1]
    assert after_eos.any()
    assert torch.equal(batch.document_ids[:, 1:] != batch.document_ids[:, :-1], after_eos)
    assert torch.equal(batch.position_ids[:, 1:] == 0, after_eos)
    assert (batch.position_ids[:, 0] == 0).all()


def test_attention_across_documents(make_loader):
    (batch, *_) = make_loader(attend_across_documents=True).next().micro_batches
    assert batch.document_ids is None
    assert torch.equal(batch.position_ids, torch.arange(32).expand(2, 32))


def test_target_tokens_are_those_of_all_ranks(make_loader):
    step = make_loader(data_rank=1, data_size=2, micro_batch_size=2).next()
    assert len(step.micro_batches) == 2
    assert step.targets == 8 * 32


def test_sources_are_mixed_by_their_weights(make_loader):
    loader = make_loader(global_batch_size=4096, micro_batch_size=4096)
    loader.next()
    assert loader.samples_per_source() == [3072, 1024]


def test_the_state_is_small(make_loader, prepared):
    sources = tuple(Source(path=str(prepared)) for _ in range(64))
    far = 10**15 - 64  # the largest that a configuration may say
    phases = tuple(PhaseSection(from_sample=far + number, sequence_length=16) for number in range(32))
    bad = tuple(QuarantinedBlock(path=str(prepared), block=0, from_sample=far + number) for number in range(32))
    state = make_loader(train=sources, phases=phases, quarantine=bad).state_dict()
    assert len(json.dumps(state)) <= 4096


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 8}, "seed was 7, is 8"),
        ({"sequence_length": 64}, "sequence_length was 32, is 64"),
        ({"reweighted": True}, r"phase 0 \(from sample 0\) changed: weights, but had begun at sample 8"),
        ({"swapped": True}, r"source 0 was [0-9a-f]{12}, is [0-9a-f]{12}; source 1 was .*weights, but had begun"),
        ({"shuffle": ShuffleSection(streams=5)}, r"shuffle was windowed 4096 x 1, is windowed 5 x 1"),
    ],
)
def test_a_position_of_another_order_is_refused(make_loader, options, message):
    loader = make_loader()
    loader.next()
    sources = loader._data.train
    if options.pop("reweighted", False):
        options["train"] = tuple(Source(path=source.path) for source in sources)
    if options.pop("swapped", False):
        options["train"] = sources[::-1]
    other = make_loader(**options)
    with pytest.raises(DataError, match=message):
        other.load_state_dict(loader.state_dict())


def test_a_state_of_another_order_version_or_without_position_is_refused(make_loader):
    loader = make_loader()
    with pytest.raises(DataError, match="order_version was 0, is 2"):
        loader.load_state_dict(loader.state_dict() | {"order_version": 0})
    state = loader.state_dict()
    del state["position"]
    with pytest.raises(DataError, match="no position saved"):
        loader.load_state_dict(state)


def test_a_batch_that_ranks_cannot_share(make_loader):
    with pytest.raises(ConfigError, match=r"training\.global_batch_size: 8: must be a multiple of .* = 3 x 2"):
        make_loader(micro_batch_size=3, data_size=2)


def test_sources_of_different_tokenizers(make_loader, tmp_path, corpus, prepared, prepare_text):
    train_tokenizer([str(corpus)], tmp_path / "tokenizer", 300)
    prepare_text(corpus, tmp_path / "b", tmp_path / "tokenizer")
    with pytest.raises(DataError, match=r"/b: was made with another tokenizer than .*/a\. Prepare it again"):
        make_loader(train=(Source(path=str(prepared)), Source(path=str(tmp_path / "b"))))


def test_a_source_shorter_than_a_row(make_loader, tmp_path, tokenizer_folder, prepare_text):
    (tmp_path / "a.txt").write_text("few words")
    prepare_text(tmp_path / "a.txt", tmp_path / "a", tokenizer_folder)
    with pytest.raises(DataError, match=r"holds \d+ tokens, too few for one row of data\.sequence_length \+ 1 = 33"):
        make_loader(train=(Source(path=str(tmp_path / "a")),))


def test_a_read_error_comes_out_of_next_and_can_be_mended(make_loader, tmp_path, prepared):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    expected, _ = stream(make_loader, 6, train=(Source(path=str(copy)),))
    loader = make_loader(train=(Source(path=str(copy)),))
    aside = tmp_path / "aside"
    for shard in copy.glob("shard-*.tar"):
        shard.rename(aside.with_name(shard.name))
    with pytest.raises(DataError, match=r"shard-\d+\.tar: \d+\.tokens at byte \d+: cannot be read"):
        loader.next()
    assert loader.state_dict()["position"] == 0
    for shard in tmp_path.glob("shard-*.tar"):
        shard.rename(copy / shard.name)
    assert torch.equal(torch.cat([global_batch([loader]) for _ in range(6)]), expected)


def test_close_ends_the_reading_thread(make_loader):
    loader = make_loader()
    loader.next()
    assert any(thread.name.startswith("data-read-ahead") for thread in threading.enumerate())
    loader.close()
    assert not any(thread.name.startswith("data-read-ahead") for thread in threading.enumerate())


def test_waiting_is_measured(make_loader):
    loader = make_loader()
    loader.next()
    assert 0 < loader.wait_seconds < 5
