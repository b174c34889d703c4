import numpy as np
import pytest
import torch

from megatrain.data.loading.batch import IGNORE_INDEX, Row, Rows, assemble, assemble_rows, without_targets


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


def test_cu_seqlens_are_where_documents_begin_in_the_flattened_batch():
    batch = assemble([row(range(7), [1, 3]), row(range(7), [6]), row(range(7), [])], attend_across_documents=False)
    assert batch.cu_seqlens.tolist() == [0, 1, 3, 6, 12, 18]
    assert batch.cu_seqlens.dtype == torch.int32
    begins = (batch.position_ids == 0).flatten().nonzero().flatten()
    assert begins.tolist() == batch.cu_seqlens[:-1].tolist()
    assert assemble([row(range(7), [1])], attend_across_documents=True).cu_seqlens is None


@pytest.mark.parametrize("across", [False, True])
def test_rows_cut_into_shorter_sequences_lose_no_token(across):
    rows = Rows(np.arange(26, dtype=np.uint16).reshape(2, 13), [np.array([2, 4, 7]), np.array([12])], [None, None])
    batch = assemble_rows(rows, attend_across_documents=across, sequence_length=4)
    assert batch.input_ids.tolist() == [[*range(n, n + 4)] for n in (0, 4, 8, 13, 17, 21)]
    assert torch.equal(batch.labels, batch.input_ids + 1)
    if across:
        assert batch.position_ids.tolist() == [[0, 1, 2, 3]] * 6
    else:
        assert batch.position_ids.tolist() == [[0, 1, 0, 1], [0, 1, 2, 0], *[[0, 1, 2, 3]] * 4]
        assert batch.document_ids.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], *[[0] * 4] * 4]
        assert batch.cu_seqlens.tolist() == [0, 2, 4, 7, 8, 12, 16, 20, 24]


def test_moving_a_batch_moves_all_of_it():
    batch = assemble([row(range(7), [3])], attend_across_documents=False).to(torch.device("meta"))
    fields = (batch.input_ids, batch.labels, batch.position_ids, batch.document_ids, batch.cu_seqlens)
    assert {tensor.device.type for tensor in fields} == {"meta"}
    assert assemble([row(range(7), [])], attend_across_documents=True).to(torch.device("meta")).document_ids is None
