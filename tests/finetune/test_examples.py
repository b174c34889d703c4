import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatrain.data.loading.batch import IGNORE_INDEX
from megatrain.errors import DataError
from megatrain.finetune.examples import Example, batch_of, pack, read_examples

PAD, EOS = 0, 1


def read(paths, tokenizer, sequence_length=64, **fields):
    fields = {"prompt_field": "prompt", "response_field": "response"} | fields
    return read_examples(paths, tokenizer, sequence_length=sequence_length, **fields)


class TestReading:
    def test_pairs_of_all_files_in_order(self, tokenizer, write_pairs) -> None:
        first = write_pairs({"prompt": "who", "response": " me"}, "", {"prompt": "", "response": "x"}, name="a.jsonl")
        second = write_pairs({"q": 1, "prompt": "where", "response": " at"}, name="b.jsonl")

        examples = read([first, second], tokenizer)

        texts = [
            (tokenizer.decode(e.tokens[: e.prompt_tokens]), tokenizer.decode(e.tokens[e.prompt_tokens : -1]))
            for e in examples
        ]
        assert texts == [("who", " me"), ("", "x"), ("where", " at")]
        assert all(e.tokens[-1] == tokenizer.eos_id for e in examples)

    def test_the_fields_can_be_named(self, tokenizer, write_pairs) -> None:
        path = write_pairs({"question": "who", "answer": "me"})
        (example,) = read([path], tokenizer, prompt_field="question", response_field="answer")
        assert tokenizer.decode(example.tokens[:-1]) == "whome"

    def test_only_a_line_feed_ends_a_line(self, tokenizer, write_pairs) -> None:
        """JSON text may hold other separators of lines as they are."""
        response = "a\u2028b\u0085c"
        path = write_pairs({"prompt": "p", "response": response}, '{"prompt": "p", "response": "r"}\r')
        first, _ = read([path], tokenizer)
        assert tokenizer.decode(first.tokens[first.prompt_tokens : -1]) == response

    def test_a_prompt_that_is_too_long_loses_its_start(self, tokenizer, write_pairs) -> None:
        prompt, response = "where " * 30, "the answer"
        path = write_pairs({"prompt": prompt, "response": response})
        (example,) = read([path], tokenizer, sequence_length=16)
        answer = [*tokenizer.encode(response), tokenizer.eos_id]
        assert len(example.tokens) == 16
        assert example.tokens[example.prompt_tokens :] == answer
        assert example.tokens[: example.prompt_tokens] == tokenizer.encode(prompt)[-(16 - len(answer)) :]

    @pytest.mark.parametrize("length", [1, 2, 5])
    def test_a_response_that_is_too_long_loses_its_end_and_the_prompt(self, tokenizer, write_pairs, length) -> None:
        response = "the answer to the question"
        path = write_pairs({"prompt": "who", "response": response})
        (example,) = read([path], tokenizer, sequence_length=length)
        assert example.prompt_tokens == 0
        assert example.tokens == [*tokenizer.encode(response)[: length - 1], tokenizer.eos_id]

    def test_a_spelt_out_end_of_text_does_not_end_it(self, tokenizer, write_pairs) -> None:
        path = write_pairs({"prompt": "<|endoftext|>", "response": "<|endoftext|>"})
        (example,) = read([path], tokenizer)
        assert example.tokens.count(tokenizer.eos_id) == 1


class TestMistakes:
    @pytest.mark.parametrize(
        ("line", "says"),
        [
            ("{", "is not JSON"),
            ({"prompt": "p"}, "response: is not there as text"),
            ({"response": "r"}, "prompt: is not there as text"),
            ({"prompt": 3, "response": "r"}, "prompt: is not there as text"),
            ({"prompt": "p", "response": None}, "response: is not there as text"),
            ({"prompt": "p", "response": ""}, "response: is empty"),
            ('["p", "r"]', "prompt: is not there as text"),
            ("null", "prompt: is not there as text"),
        ],
    )
    def test_file_line_and_field_are_named(self, tokenizer, write_pairs, line, says) -> None:
        path = write_pairs({"prompt": "p", "response": "r"}, "", line)
        with pytest.raises(DataError) as caught:
            read([path], tokenizer)
        assert str(caught.value).startswith(f"{path}:3: {says}")

    @pytest.mark.parametrize("content", [b"", b"\n \n"])
    def test_an_empty_file(self, tokenizer, tmp_path, content) -> None:
        (tmp_path / "empty").write_bytes(content)
        with pytest.raises(DataError, match="empty: holds no examples"):
            read([str(tmp_path / "empty")], tokenizer)

    def test_a_file_that_is_not_text(self, tokenizer, tmp_path) -> None:
        (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match=r"binary:1: is not UTF-8"):
            read([str(tmp_path / "binary")], tokenizer)

    def test_a_file_that_is_not_there(self, tokenizer, tmp_path) -> None:
        for path in (tmp_path / "none", tmp_path):
            with pytest.raises(DataError, match="cannot be read"):
                read([str(path)], tokenizer)


class TestPacking:
    @given(
        lengths=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30),
        sequence_length=st.integers(19, 40),
    )
    def test_no_example_is_lost_split_or_moved(self, lengths, sequence_length) -> None:
        examples, at = [], 10
        for prompt, response in lengths:
            examples.append(Example([*range(at, at + prompt + response), EOS], prompt))
            at += prompt + response

        rows = pack(examples, sequence_length, PAD)

        found = []
        for packed in rows:
            assert len(packed.row.tokens) == len(packed.is_target) == sequence_length + 1
            starts = [0, *packed.row.ends]
            found += [packed.row.tokens[a:b].tolist() for a, b in zip(starts, packed.row.ends, strict=False)]
            assert (packed.row.tokens[packed.row.ends[-1] :] == PAD).all()
        assert found == [example.tokens for example in examples]
        # a row is only closed when the next example does not fit
        for row, following in itertools.pairwise(rows):
            assert row.row.ends[-1] + following.row.ends[0] > sequence_length

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
        before = packed.row.tokens.copy()
        batch_of([packed])
        assert np.array_equal(packed.row.tokens, before)
