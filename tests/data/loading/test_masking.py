"""Which tokens are hidden, and that it depends on nothing but seed, sample and position."""

from dataclasses import replace

import numpy as np
import pytest

from megatrain.data.loading.batch import IGNORE_INDEX, Rows, assemble_rows
from megatrain.data.loading.masking import Masking

VOCABULARY, MASK, EOS = 500, 1, 0
SPECIAL = np.zeros(VOCABULARY, np.bool_)
SPECIAL[[EOS, MASK, 499]] = True
CONTINUES = np.arange(VOCABULARY) >= 300
MASKING = Masking(seed=7, rate=0.15, mask_share=0.8, random_share=0.1, mask_id=MASK, is_special=SPECIAL)
LENGTH = 200


def rows(count: int, *, packed: bool = False) -> Rows:
    chance = np.random.default_rng(0)
    tokens = chance.integers(2, 499, (count, LENGTH + 1)).astype(np.uint16)
    tokens[:, 50] = EOS
    ends = [np.array([51]) for _ in range(count)]
    if packed:  # one document to 51, another to 120, then padding of ordinary tokens
        ends = [np.array([51, 120]) for _ in range(count)]
    return Rows(tokens, ends, [118 if packed else None] * count)


def batch(masking: Masking, given: Rows, samples: np.ndarray):
    made = masking.batch(given, samples, attend_across_documents=False)
    return made.input_ids.numpy(), made.labels.numpy(), made


@pytest.mark.parametrize("continues", [None, CONTINUES], ids=["tokens", "whole words"])
def test_shares_of_what_is_predicted(continues) -> None:
    given = rows(400)
    inputs, labels, _ = batch(replace(MASKING, continues=continues), given, np.arange(400))
    original, hidden = given.tokens[:, :-1].astype(np.int64), labels != IGNORE_INDEX
    assert (hidden.sum(1) == 30).all(), "a number that all ranks know"
    assert (labels[hidden] == original[hidden]).all(), "at its own position, not shifted"
    assert (inputs[~hidden] == original[~hidden]).all()
    assert not SPECIAL[original[hidden]].any()
    masked, kept = (inputs == MASK) & hidden, (inputs == original) & hidden
    assert masked.sum() / hidden.sum() == pytest.approx(0.8, abs=0.015)
    assert kept.sum() / hidden.sum() == pytest.approx(0.1, abs=0.015)
    drawn = inputs[hidden & ~masked & ~kept]
    assert not SPECIAL[drawn].any()
    assert len(np.unique(drawn)) > 300, "from the whole vocabulary"
    # every position alike, but the special one
    per_position = np.delete(hidden.mean(0), 50)
    assert per_position.min() > 0.05
    assert per_position.max() < 0.28


def test_masks_depend_on_the_sample_and_not_on_its_company() -> None:
    given, samples = rows(6), np.array([3, 1 << 40, 5, 9, 11, 4])
    together, _, _ = batch(MASKING, given, samples)
    for number in (0, 1, 5):
        alone, _, _ = batch(MASKING, given.part(number, number + 1), samples[number : number + 1])
        assert (alone[0] == together[number]).all()
    for other in (replace(MASKING, seed=8), MASKING):
        same = Rows(np.repeat(given.tokens[:1], 2, 0), given.ends[:2], given.targets[:2])
        inputs, _, _ = batch(other, same, np.array([3, 4]))
        assert (inputs[0] != inputs[1]).any(), "another sample has other masks, of the same text"
        assert (inputs[0] == together[0]).all() == (other is MASKING)


def test_words_are_predicted_whole_and_end_with_their_document() -> None:
    given = rows(50)
    given.tokens[:, 51] = 400  # continues, but no word goes on into another document
    _, labels, _ = batch(replace(MASKING, continues=CONTINUES), given, np.arange(50))
    original, hidden = given.tokens[:, :-1].astype(np.int64), labels != IGNORE_INDEX
    follows = CONTINUES[original[:, 1:]] & ~SPECIAL[original[:, :-1]] & ~SPECIAL[original[:, 1:]]
    assert follows.any()
    assert (hidden[:, 1:][follows] == hidden[:, :-1][follows]).all()
    first = hidden[:, 51] & (labels[:, 51] == 400)
    assert first.any()


def test_padding_is_not_predicted() -> None:
    given = rows(20, packed=True)
    _, labels, _ = batch(replace(MASKING, rate=0.5), given, np.arange(20))
    assert (labels[:, 120:] == IGNORE_INDEX).all()
    assert ((labels != IGNORE_INDEX).sum(1) == 100).all()


def test_a_row_with_too_few_tokens_has_all_of_them_predicted() -> None:
    given = rows(1)
    given.tokens[:, 10:] = EOS
    _, labels, _ = batch(MASKING, given, np.arange(1))
    assert (labels != IGNORE_INDEX).sum() == 10


def test_documents_and_positions_are_those_of_any_batch() -> None:
    given = rows(4)
    for length in (None, 100):
        made = MASKING.batch(given, np.arange(4), attend_across_documents=False, sequence_length=length)
        plain = assemble_rows(given, attend_across_documents=False, sequence_length=length)
        assert made.cu_seqlens.equal(plain.cu_seqlens)
        assert made.position_ids.equal(plain.position_ids)
        assert made.input_ids.shape == plain.input_ids.shape
    whole = MASKING.batch(given, np.arange(4), attend_across_documents=False)
    assert made.input_ids.flatten().equal(whole.input_ids.flatten()), "the same masks, however a row is cut"


def test_numbers_of_one_purpose_say_nothing_of_another() -> None:
    """Which tokens are chosen, and how each is shown, are independent: else a share would lean to some positions."""
    inputs, labels, _ = batch(replace(MASKING, rate=0.5), rows(400), np.arange(400))
    hidden = labels != IGNORE_INDEX
    share = ((inputs == MASK) & hidden).sum(0) / np.maximum(hidden.sum(0), 1)
    share = np.delete(share, 50)
    assert share.mean() == pytest.approx(0.8, abs=0.01)
    assert share.std() < 0.05
