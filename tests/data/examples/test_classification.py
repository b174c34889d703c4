"""Texts with labels as rows of tokens: what transformers' tokenizer makes of them, the label where it is looked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.examples.classification import ClassifiedSet, read_classified
from megatrain.data.examples.labelled_text import check_rows, with_labels
from megatrain.data.examples.loader import batch_of
from megatrain.data.examples.packing import digest
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.model.families.bert.section import BertSection
from megatrain.model.families.llama.section import LlamaSection
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection

SIZES: dict[str, Any] = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 1, "vocab_size": 512}
LLAMA = LlamaSection(**SIZES, intermediate_size=8)
BERT = BertSection(**SIZES)
TEXTS = ("who what", "the answer to the question", "abc: def")


def write(file: Path, *rows: dict[str, Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def section_of(**fields: Any) -> SequenceClassificationSection:
    return SequenceClassificationSection(**{"labels": ("no", "yes")} | fields)


def read(
    path: str, tokenizer: Tokenizer, *, model: Any = LLAMA, sequence_length: int = 64, **fields: Any
) -> ClassifiedSet:
    return read_classified([path], tokenizer, section_of(**fields), sequence_length=sequence_length, model=model)


def examples(found: ClassifiedSet) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each."""
    parts = []
    for row in found.rows:
        assert row.labels is not None
        for begin, end in zip([0, *row.ends], row.ends, strict=False):
            parts.append((row.tokens[begin:end].tolist(), row.labels[begin:end].tolist()))
    return parts


@pytest.fixture
def rows(tmp_path) -> str:
    labels = ("yes", "no", "yes")
    return write(
        tmp_path / "rows.jsonl", *({"text": t, "label": label} for t, label in zip(TEXTS, labels, strict=True))
    )


def test_labels_are_found_in_order(tmp_path) -> None:
    section = SequenceClassificationSection()
    words = write(tmp_path / "words.jsonl", *({"text": "a", "label": label} for label in ("b", "a", "b")))
    assert with_labels(section, [words]).labels == ("a", "b")
    numbers = write(tmp_path / "numbers.jsonl", *({"text": "a", "label": label} for label in (10, "9", 10)))
    assert with_labels(section, [numbers]).labels == ("9", "10")
    assert with_labels(section, [numbers], section_of()).labels == ("no", "yes"), "a run that has begun keeps its own"
    assert with_labels(section_of(labels=("x", "y")), ["nowhere"]).labels == ("x", "y")
    assert SequenceClassificationSection(labels=[0, 1]).classes == ("0", "1")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["byte_level", "wordpiece"])
def test_tokens_are_those_of_transformers(make_tokenizer, rows, kind) -> None:
    from transformers import AutoTokenizer

    folder = make_tokenizer(kind, front="<s> ", behind=" </s>")
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    for model, place in ((LLAMA, -1), (BERT, 0)):
        found = examples(read(rows, tokenizer, model=model))
        assert [tokens for tokens, _ in found] == [theirs(text)["input_ids"] for text in TEXTS]
        assert [labels[place] for _, labels in found] == [1, 0, 1]
        assert all(sum(label != -100 for label in labels) == 1 for _, labels in found)
    (tokens, labels), *_ = examples(read(rows, tokenizer, end_token=True))
    assert tokens == [*theirs(TEXTS[0])["input_ids"], tokenizer.eos_id]
    assert labels[-1] == 1


def test_pairs_are_those_of_transformers_with_their_token_types(tmp_path, make_tokenizer) -> None:
    from tokenizers import Tokenizer as Library
    from tokenizers import processors
    from transformers import AutoTokenizer

    folder = make_tokenizer("wordpiece")
    library = Library.from_file(str(folder / "tokenizer.json"))
    ids = [(token, library.token_to_id(token)) for token in ("<s>", "</s>")]
    library.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B:1 </s>:1", special_tokens=ids
    )
    library.save(str(folder / "tokenizer.json"))
    theirs, tokenizer = AutoTokenizer.from_pretrained(folder), Tokenizer.load(folder)
    path = write(tmp_path / "pairs.jsonl", *({"text": t, "more": "what", "label": "no"} for t in TEXTS))
    found = read(path, tokenizer, model=BERT, text_pair_field="more")
    expected = [theirs(text, "what", return_token_type_ids=True) for text in TEXTS]
    assert [tokens for tokens, _ in examples(found)] == [one["input_ids"] for one in expected]
    types = batch_of(found.rows).token_types
    assert types is not None
    joined = [kind for one in expected for kind in one["token_type_ids"]]
    assert 1 in joined
    assert types[0, : len(joined)].tolist() == joined
    assert not types[0, len(joined) :].any()
    assert batch_of(read(path, tokenizer, model=LLAMA, text_pair_field="more").rows).token_types is None


def test_what_is_too_long_is_cut_counted_and_told(tmp_path, tokenizer) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        {"text": "what", "label": "no"},
        {"text": "the answer to the question " * 9, "label": "yes"},
    )
    found = read(path, tokenizer, sequence_length=16)
    long = len(tokenizer.encode("the answer to the question " * 9))
    assert [len(tokens) for tokens, _ in examples(found)] == [len(tokenizer.encode("what")), 16]
    assert examples(found)[1][1][-1] == 1, "the label is at the last token that is left"
    assert found.warnings() == [
        f"{path}: 1 of 2 examples, cut to 16 tokens, lose {long - 16} tokens at their end. Raise "
        "finetune.sequence_length, or set task.truncation: drop"
    ]
    dropped = read(path, tokenizer, sequence_length=16, truncation="drop")
    assert len(examples(dropped)) == 1
    assert "1 of 2 examples are longer than 16 tokens and are dropped" in dropped.warnings()[0]
    assert dropped.warnings()[1] == "no example has the label 'yes' (task.labels)"
    with pytest.raises(DataError, match=rf"rows.jsonl:2: has {long} tokens, more than finetune.sequence_length \(16\)"):
        read(path, tokenizer, sequence_length=16, truncation="error")


def test_of_two_texts_the_longer_one_loses(tmp_path, tokenizer) -> None:
    long, short = "the answer to the question " * 9, "what"
    path = write(
        tmp_path / "pairs.jsonl",
        {"text": long, "more": short, "label": "no"},
        {"text": short, "more": long, "label": "no"},
        {"text": long, "more": long, "label": "no"},
    )
    brief, ids = tokenizer.encode(short), tokenizer.encode(long)
    found = [tokens for tokens, _ in examples(read(path, tokenizer, sequence_length=16, text_pair_field="more"))]
    assert found == [[*ids[: 16 - len(brief)], *brief], [*brief, *ids[: 16 - len(brief)]], [*ids[:8], *ids[:8]]]


def test_labels_decide_what_a_checkpoint_knows_the_examples_by(tmp_path, tokenizer) -> None:
    paths = [write(tmp_path / f"{label}.jsonl", {"text": "what", "label": label}) for label in ("no", "yes")]
    first, second = (digest(read(path, tokenizer).rows) for path in paths)
    assert first != second


def test_examples_of_a_batch_are_apart(rows, tokenizer) -> None:
    found = read(rows, tokenizer)
    batch = batch_of(found.rows)
    (row,) = found.rows
    assert row.targets == 3
    assert batch.cu_seqlens is not None
    assert batch.cu_seqlens.tolist()[1:-1] == row.ends.tolist()
    assert np.array_equal(batch.labels[0].numpy(), row.labels)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"text": "a"}, "2: label: is not there: must be text or a whole number; the row has text. task.label_field"),
        ({"text": "a", "label": 0.5}, "2: label: is 0.5: must be text or a whole number"),
        ({"text": "a", "label": True}, "2: label: is True: must be text or a whole number"),
        ({"label": "no"}, "2: text: is not there as text; the row has label. task.text_field names the field"),
        ({"text": " ", "label": "no"}, "2: text: is empty: nothing to learn from; leave the row out"),
        (
            {"text": "a", "label": "perhaps"},
            "2: label: 'perhaps': is not one of the 2 labels that are trained ('no', 'yes'). Correct it, leave the row "
            "out, or name all labels in task.labels",
        ),
    ],
)
def test_rows_that_cannot_be_learnt_from_are_told_by_file_and_line(tmp_path, tokenizer, row, said) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "what", "label": "no"}, row)
    for attempt in (lambda: read(path, tokenizer), lambda: check_rows([path], section_of())):
        with pytest.raises(DataError) as caught:
            attempt()
        assert str(caught.value).startswith(f"{path}:{said}")


def test_one_label_is_too_few(tmp_path) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "a", "label": "no"}, {"text": "b", "label": "no"})
    with pytest.raises(
        DataError, match=r"finetune.train: .*rows.jsonl: label: its labels are 'no': a classifier tells at"
    ):
        with_labels(SequenceClassificationSection(), [path])


def test_a_sequence_needs_room(rows, make_tokenizer) -> None:
    tokenizer = Tokenizer.load(make_tokenizer("wordpiece", front="<s> ", behind=" </s>"))
    with pytest.raises(
        ConfigError, match=r"finetune.sequence_length: 2: must be at least 3: the tokenizer and the task"
    ):
        read(rows, tokenizer, sequence_length=2)


def test_several_labels_are_read_from_lists(tmp_path, tokenizer) -> None:
    rows = [{"text": "what", "label": some} for some in (["a", 3], [], ["b"])]
    path = write(tmp_path / "rows.jsonl", *rows)
    section = with_labels(SequenceClassificationSection(problem="multi_label"), [path])
    assert (section.classes, section.problem_type) == (("3", "a", "b"), "multi_label_classification")
    found = read(path, tokenizer, problem="multi_label", labels=section.labels)
    batch = batch_of([*found.rows, *found.rows])
    assert batch.example_targets is not None
    assert batch.example_targets.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]] * 2
    assert batch.labels[batch.labels != -100].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.warnings() == []
    other = write(tmp_path / "other.jsonl", *({"text": "what", "label": some} for some in (["a", 3], ["a"], ["b"])))
    assert digest(found.rows) != digest(read(other, tokenizer, problem="multi_label", labels=section.labels).rows)


def test_numbers_are_read_also_from_tables_without_types(tmp_path, tokenizer) -> None:
    (tmp_path / "rows.csv").write_text("text,label\nwhat,1.5\nwho,-2\n")
    section = SequenceClassificationSection(problem="regression")
    assert with_labels(section, ["nowhere"]) == section
    assert (section.num_labels, section.problem_type) == (1, "regression")
    found = read(str(tmp_path / "rows.csv"), tokenizer, problem="regression", labels=None)
    batch = batch_of(found.rows)
    assert batch.example_targets is not None
    assert batch.example_targets.tolist() == [[1.5], [-2.0]]
    assert found.rows[0].targets == 2


@pytest.mark.parametrize(
    ("problem", "label", "said"),
    [
        ("multi_label", "no", "label: is 'no': must be a list of texts or whole numbers (task.problem: multi_label)"),
        ("multi_label", ["no", 0.5], "label: is ['no', 0.5]: must be a list of texts or whole numbers"),
        ("multi_label", ["no", "no"], "label: has 'no' twice"),
        ("multi_label", ["maybe"], "label: 'maybe': is not one of the 2 labels that are trained"),
        ("regression", "high", "label: is 'high': must be a number"),
        ("regression", True, "label: is True: must be a number"),
        ("regression", "nan", "label: is 'nan': must be a number"),
        ("regression", 1e300, "label: is 1e+300: must be a number"),
    ],
)
def test_what_is_no_label_of_its_problem(tmp_path, tokenizer, problem, label, said) -> None:
    path = write(tmp_path / "rows.jsonl", {"text": "what", "label": label})
    labels = None if problem == "regression" else ("no", "yes")
    with pytest.raises(DataError) as caught:
        read(path, tokenizer, problem=problem, labels=labels)
    assert str(caught.value).startswith(f"{path}:1: {said}")
