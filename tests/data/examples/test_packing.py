import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatrain.data.examples.loader import batch_of
from megatrain.data.examples.packing import Example, pack
from megatrain.data.loading.batch import IGNORE_INDEX

PAD, EOS = 0, 1


class TestPacking:
    @given(
        lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30),
        sequence_length=st.integers(19, 40),
    )
    def test_no_example_is_lost_split_or_moved(self, lengths, sequence_length) -> None:
        examples, at = [], 10
        for prompt, response in lengths:
            examples.append(Example(np.array([*range(at, at + prompt + response), EOS], dtype=np.int32), prompt))
            at += prompt + response

        rows = pack(examples, sequence_length, PAD)

        found = []
        for packed in rows:
            assert len(packed.tokens) == len(packed.is_target) == sequence_length + 1
            starts = [0, *packed.ends]
            found += [packed.tokens[a:b].tolist() for a, b in zip(starts, packed.ends, strict=False)]
            assert (packed.tokens[packed.ends[-1] :] == PAD).all()
        assert found == [example.tokens.tolist() for example in examples]
        # a row is only closed when the next example does not fit
        for row, following in itertools.pairwise(rows):
            assert row.ends[-1] + following.ends[0] > sequence_length

    def test_documents_are_held_apart(self, make_examples) -> None:
        (packed,) = pack(make_examples((2, 1), (1, 2)), 10, PAD)
        batch = batch_of([packed])
        assert batch.document_ids.tolist() == [[0] * 4 + [1] * 4 + [2] * 2]  # padding is a document of its own
        assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3, 0, 1]]

    def test_labels_are_responses_and_ends_of_text(self, make_examples) -> None:
        first, second = make_examples((2, 1), (1, 2))  # 10 11 | 12 EOS, 13 | 14 15 EOS
        (packed,) = pack([first, second], 10, PAD)
        batch = batch_of([packed])
        no = IGNORE_INDEX
        assert batch.input_ids.tolist() == [[10, 11, 12, EOS, 13, 14, 15, EOS, PAD, PAD]]
        assert batch.labels.tolist() == [[no, 12, EOS, no, 14, 15, EOS, no, no, no]]
        assert packed.targets == 5

    def test_a_row_that_is_full_to_the_last_token(self, make_examples) -> None:
        (packed,) = pack(make_examples((3, 4)), 8, PAD)
        batch = batch_of([packed])
        assert batch.labels.tolist() == [[IGNORE_INDEX] * 2 + [13, 14, 15, 16, EOS, IGNORE_INDEX]]
        assert batch.document_ids.unique().tolist() == [0]

    def test_a_batch_counts_the_targets_of_its_rows(self, make_examples) -> None:
        rows = pack(make_examples((2, 5), (6, 3), (0, 8), (1, 1), (3, 0)), 12, PAD)
        batch = batch_of(rows)
        assert (batch.labels != IGNORE_INDEX).sum(1).tolist() == [row.targets for row in rows]
        assert batch.input_ids.dtype == batch.labels.dtype == torch.int64

    def test_making_a_batch_leaves_the_rows_alone(self, make_examples) -> None:
        (packed,) = pack(make_examples((2, 5)), 8, PAD)
        before = packed.tokens.copy()
        batch_of([packed])
        assert np.array_equal(packed.tokens, before)
