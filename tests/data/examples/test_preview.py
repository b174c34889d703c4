"""Rows as the examples that they become: learnt, added, cut, refused."""

import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.data.examples.chat_template import ChatTemplate
from megatrain.data.examples.classification import read_classified
from megatrain.data.examples.example_set import read_example_set
from megatrain.data.examples.preview import Previewer, choose_rows
from megatrain.data.examples.tagged_words import read_tagged
from megatrain.data.text.pieces import pieces_of
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.tasks.sequence_classification.section import SequenceClassificationSection
from megatrain.tasks.sft.section import SFTSection
from megatrain.tasks.token_classification.section import TokenClassificationSection
from tests import chat_templates as templates
from tests.data.examples.test_assistant_turns import CHAT, folder_of  # noqa: F401 - a fixture
from tests.data.examples.test_example_set import model


def shown(folder, path, section=None, read=read_example_set, *, count=9, sequence_length=300):
    tokenizer, template = Tokenizer.load(folder), ChatTemplate.load(folder)
    section = section or SFTSection()

    def read_files(paths):
        arguments = {"template": template, "sequence_length": sequence_length, "model": model(10**6)}
        return read(paths, tokenizer, section, **arguments)

    return list(Previewer(read_files, tokenizer, section, template).examples(choose_rows([path], count, None)))


def text(pieces, **wanted) -> list[str]:
    return [piece.text for piece in pieces if all(getattr(piece, name) == value for name, value in wanted.items())]


@pytest.mark.parametrize("name", ["CHATML", "LLAMA_2", "LLAMA_3", "MARKED_CHATML"])
def test_what_the_template_added(folder_of, write_pairs, name) -> None:  # noqa: F811
    (found,) = shown(folder_of(getattr(templates, name)), write_pairs({"messages": CHAT[:4]}))
    own, said = ("".join(text(found.pieces, added=False, **more)) for more in ({}, {"learnt": True}))
    assert own.replace(" ", "") == "whois<that>?me☃andwherethequestion\ntheanswer"  # blanks may be a template's
    assert said.replace(" ", "") == "me☃thequestion\ntheanswer"
    assert len(text(found.pieces, learnt=True, added=True)) >= 2
    assert found.targets == sum(piece.tokens for piece in found.pieces if piece.learnt)
    assert len(found.token_ids) == sum(piece.tokens for piece in found.pieces)


def test_rows_of_other_shapes(folder_of, write_pairs) -> None:  # noqa: F811
    path = write_pairs({"prompt": "who", "response": " me"}, {"instruction": "a", "output": "me"})
    pair, alpaca = shown(folder_of(templates.CHATML), path)
    assert [(piece.text, piece.learnt, piece.added) for piece in pair.pieces] == [
        ("<s>", False, True),
        ("who", False, False),
        (" me", True, False),
        ("</s>", True, True),
    ]
    assert text(alpaca.pieces, added=False) == ["a", "me"]
    assert alpaca.where.endswith("pairs.jsonl:2")


def test_what_was_cut_or_refused_is_said(folder_of, write_pairs) -> None:  # noqa: F811
    path = write_pairs({"prompt": "who " * 40, "response": "me"}, {"prompt": "who"}, {"prompt": "a", "response": "b"})
    cut, bad, fits = shown(folder_of(templates.CHATML), path, sequence_length=20)
    assert "1 lose" in (cut.note or "")
    assert text(cut.pieces, added=True) == ["<s>", "</s>"]
    assert bad.note is not None
    assert bad.note.startswith("response: is not there as text")
    assert (bad.pieces, bad.targets, fits.note) == ((), 0, None)


def test_labels_of_classifiers(make_tokenizer, write_pairs) -> None:
    folder = make_tokenizer("byte_level")
    section = SequenceClassificationSection(labels=("bad", "good"))
    (found,) = shown(folder, write_pairs({"text": "the answer", "label": "good"}), section, read_classified)
    assert [piece.label for piece in found.pieces if piece.learnt] == ["good"]
    assert found.targets == 1
    tags = TokenClassificationSection(labels=("B-X", "O"))
    row = {"tokens": ["the", "answer"], "tags": ["O", "B-X"]}
    (found,) = shown(folder, write_pairs(row), tags, read_tagged)
    assert [piece.label for piece in found.pieces if piece.learnt] == ["O", "B-X"]


def test_which_rows(write_pairs) -> None:
    path = write_pairs(*({"prompt": str(number)} for number in range(50)))
    assert [row.fields["prompt"] for row in choose_rows([path], 3, None)] == ["0", "1", "2"]
    drawn = choose_rows([path], 3, 7)
    assert drawn == choose_rows([path], 3, 7)
    assert drawn != choose_rows([path], 3, 8)
    often = {row.fields["prompt"] for seed in range(40) for row in choose_rows([path], 9, seed)}
    assert often == set(map(str, range(50)))
    with pytest.raises(DataError, match="holds no examples"):
        choose_rows([write_pairs(name="empty.jsonl")], 3, None)


def test_pieces_keep_the_blanks_between_them(make_tokenizer) -> None:
    tokenizer = Tokenizer.load(make_tokenizer("sentencepiece", front=""))
    ids = np.array(tokenizer.encode("who what where"))
    learnt = np.arange(len(ids)) >= 3
    pieces = list(pieces_of(tokenizer, ids, learnt, np.zeros(len(ids), bool), [None] * len(ids)))
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(ids)
    assert [piece.learnt for piece in pieces] == [False, True]
