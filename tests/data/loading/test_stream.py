"""Samples by position: damage, quarantine, phases of other lengths and batch sizes."""

import re
import shutil
from itertools import pairwise

import numpy as np
import pytest
import torch

from megatrain.base.errors import DataError
from megatrain.config import PhaseSection, QuarantinedBlock, ReadingSection, Source
from megatrain.data.loading.shards import PreparedData


def damage(folder, block, *, at=5):
    """Change one token of a block to another of the vocabulary: only its hash can tell."""
    data = PreparedData(folder)
    with open(folder / data.where(block), "r+b") as file:
        file.seek(int(data.index.offset[block]) + 2 * at)
        old = np.frombuffer(file.read(2), "<u2")
        file.seek(-2, 1)
        file.write(((old + 1) % 300).astype("<u2").tobytes())


def tokens_of(loader, steps):
    return torch.cat([b.input_ids.flatten() for _ in range(steps) for b in loader.next().micro_batches])


@pytest.fixture
def copy(tmp_path, prepared):
    return shutil.copytree(prepared, tmp_path / "copy")


def rows_of(loader, steps):
    return torch.cat([b.input_ids for _ in range(steps) for b in loader.next().micro_batches])


def test_a_changed_token_is_found_where_blocks_are_verified(make_loader, copy):
    damage(copy, 3)
    train = (Source(path=str(copy)),)
    rows_of(make_loader(train=train), 20)  # hashes are not checked unless asked for
    with pytest.raises(DataError, match=r"shard-00000\.tar: 00000003\.tokens at byte \d+: checksum mismatch"):
        rows_of(make_loader(train=train, reading=ReadingSection(verify_blocks=True)), 40)


def test_whole_data_passes_verification(make_loader, prepared):
    train = (Source(path=str(prepared)),)
    verified = rows_of(make_loader(train=train, reading=ReadingSection(verify_blocks=True)), 20)
    assert torch.equal(verified, rows_of(make_loader(train=train), 20))


def test_the_error_says_how_to_quarantine_and_resume_on_all_ranks(make_loader, copy):
    damage(copy, 3)
    options = {"train": (Source(path=str(copy)),), "reading": ReadingSection(verify_blocks=True)}
    loader = make_loader(**options)
    with pytest.raises(DataError) as error:
        rows_of(loader, 60)
    state = loader.state_dict()
    found = re.search(r"add to data\.quarantine: \{path: (\S+), block: (\d+), from_sample: (\d+)\}", str(error.value))
    assert (found[1], found[2]) == (str(copy), "3")
    assert int(found[3]) == state["position"], "the step that failed, which no checkpoint is behind of"
    options["quarantine"] = (QuarantinedBlock(path=found[1], block=3, from_sample=int(found[3])),)

    alone = make_loader(**options)
    assert alone.load_state_dict(state) == [f"data: quarantined block 3 of source 0 from sample {found[3]} is new"]
    expected = rows_of(alone, 40)
    ranks = [make_loader(**options, data_rank=rank, data_size=2) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
    got = [[rank.next().micro_batches for rank in ranks] for _ in range(40)]
    together = torch.cat([micro.input_ids for step in got for pair in zip(*step, strict=True) for micro in pair])
    assert torch.equal(together, expected)
    assert alone.state_dict() == ranks[1].state_dict()
    without = make_loader(**{**options, "quarantine": ()})
    with pytest.raises(DataError, match="quarantined block 3 of source 0"):
        without.load_state_dict(alone.state_dict())


def test_quarantine_of_what_is_not_there_or_of_everything(make_loader, tmp_path, tokenizer_folder, prepare_text):
    (tmp_path / "a.txt").write_text("some words " * 400)
    copy = tmp_path / "a"
    prepare_text(tmp_path / "a.txt", copy, tokenizer_folder)
    train = (Source(path=str(copy)),)
    blocks = len(PreparedData(copy).index)
    assert 1 < blocks < 32
    beyond = QuarantinedBlock(path=str(copy), block=blocks, from_sample=0)
    with pytest.raises(DataError, match=rf"data\.quarantine\.0\.block: {blocks}: .* has blocks 0 to {blocks - 1}"):
        make_loader(train=train, quarantine=(beyond,))
    every = tuple(QuarantinedBlock(path=str(copy), block=block, from_sample=0) for block in range(blocks))
    with pytest.raises(DataError, match="leaves no block of"):
        make_loader(train=train, quarantine=every)


def test_a_stage_cuts_samples_and_keeps_every_token(make_loader, prepared):
    train = (Source(path=str(prepared)),)
    plain = make_loader(train=train)
    staged = make_loader(train=train, phases=(PhaseSection(from_sample=24, sequence_length=8),))
    for step in range(6):
        whole, cut = plain.next(), staged.next()
        assert cut.targets == whole.targets == 8 * 32
        for before, after in zip(whole.micro_batches, cut.micro_batches, strict=True):
            assert after.input_ids.shape == ((2, 32) if step < 3 else (8, 8))
            assert torch.equal(after.input_ids.reshape(2, 32), before.input_ids)
            assert torch.equal(after.labels.reshape(2, 32), before.labels)
    assert staged.tokens_consumed == plain.tokens_consumed


def test_another_batch_size_from_a_stage_on(make_loader):
    """The position counts samples: batches of 8 up to the phase, of 24 from there, and of 8 again."""
    phases = (PhaseSection(from_sample=48, weights=(1.0, 3.0), sequence_length=16),)
    whole = tokens_of(make_loader(phases=phases), 18)
    first = make_loader(phases=phases)
    got = [tokens_of(first, 6)]
    second = make_loader(phases=phases, global_batch_size=24, micro_batch_size=4)
    second.load_state_dict(first.state_dict())
    got.append(tokens_of(second, 3))
    third = make_loader(phases=phases)
    third.load_state_dict(second.state_dict())
    got.append(tokens_of(third, 3))
    assert torch.equal(torch.cat(got), whole)


def test_weights_of_a_stage_hold_from_its_sample_on(make_loader):
    phases = (PhaseSection(from_sample=4096, weights=(1.0, 0.0)), PhaseSection(from_sample=8192, weights=(1.0, 1.0)))
    loader = make_loader(global_batch_size=4096, micro_batch_size=4096, phases=phases)
    counts = [np.array(loader.samples_per_source())]
    for _ in range(3):
        loader.next()
        counts.append(np.array(loader.samples_per_source()))
    assert [(after - before).tolist() for before, after in pairwise(counts)] == [
        [3072, 1024],
        [4096, 0],
        [2048, 2048],
    ]


@pytest.mark.parametrize("where", ["before", "at", "after"])
def test_a_resume_at_the_boundary_of_an_epoch_and_a_phase(make_loader, prepared, where):
    rows = PreparedData(prepared).manifest.rows(32)
    options = {
        "train": (Source(path=str(prepared)),),
        "phases": (PhaseSection(from_sample=rows, sequence_length=16),),
        "global_batch_size": 1,
        "micro_batch_size": 1,
    }
    at = rows + {"before": -1, "at": 0, "after": 1}[where]
    whole = [
        b.input_ids.flatten() for b in (make_loader(**options).read_step(p).micro_batches[0] for p in range(at + 5))
    ]
    first = make_loader(**options)
    for _ in range(at):
        first.next()
    second = make_loader(**options)
    second.load_state_dict(first.state_dict())
    for position in range(at, at + 5):
        assert torch.equal(second.next().micro_batches[0].input_ids.flatten(), whole[position])
