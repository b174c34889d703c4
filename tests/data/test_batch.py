import numpy as np
import pytest
import torch

from megatrain.data.batch import IGNORE_INDEX, Row, assemble, without_targets


def row(tokens, ends):
    return Row(np.array(tokens, dtype=np.uint16), np.array(ends, dtype=np.int64))


def test_labels_are_the_inputs_shifted_and_kept_where_documents_meet():
    batch = assemble([row([5, 6, 0, 7, 8], [3])], attend_across_documents=False)
    assert batch.input_ids.tolist() == [[5, 6, 0, 7]]
    assert batch.labels.tolist() == [[6, 0, 7, 8]]
    assert (batch.input_ids.dtype, batch.labels.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize(
    ("ends", "documents", "positions"),
    [
        ([], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]),
        ([3], [0, 0, 0, 1, 1, 1], [0, 1, 2, 0, 1, 2]),
        ([1, 3, 4], [0, 1, 1, 2, 3, 3], [0, 0, 1, 0, 0, 1]),
        ([6], [0, 0, 0, 0, 0, 0], [0, 1, 2, 3, 4, 5]),  # the row's last token ends a document
        ([1, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5], [0, 0, 0, 0, 0, 0]),
    ],
)
def test_documents_and_positions_at_boundaries(ends, documents, positions):
    batch = assemble([row(range(7), ends), row(range(7), [])], attend_across_documents=False)
    assert batch.document_ids.tolist() == [documents, [0] * 6]
    assert batch.position_ids.tolist() == [positions, [0, 1, 2, 3, 4, 5]]
    assert (batch.document_ids.dtype, batch.position_ids.dtype) == (torch.int32, torch.int64)


def test_attention_across_documents_ignores_boundaries():
    batch = assemble([row(range(7), [3])] * 2, attend_across_documents=True)
    assert batch.document_ids is None
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_token_ids_beyond_16_and_31_bits_keep_their_value():
    wide = Row(np.array([70_000, 2**31 + 5, 1], dtype=np.uint32), np.empty(0, dtype=np.int64))
    assert assemble([wide], attend_across_documents=True).input_ids.tolist() == [[70_000, 2**31 + 5]]


@pytest.mark.parametrize("across", [False, True])
def test_a_batch_without_targets(across):
    batch = without_targets(2, 4, attend_across_documents=across)
    assert batch.labels.tolist() == [[IGNORE_INDEX] * 4] * 2
    assert batch.input_ids.shape == (2, 4)
    assert (batch.document_ids is None) is across
