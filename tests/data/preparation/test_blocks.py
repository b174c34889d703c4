"""Rows that best fit packed, from the text to what a model is fed."""

import itertools

import numpy as np
import pytest

from megatrain.base.errors import DataError
from megatrain.config import Source
from megatrain.data.checks.inspection import inspect_data
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.loading.batch import IGNORE_INDEX, assemble
from megatrain.data.loading.shards import PreparedData
from megatrain.data.loading.sources import OpenSources
from megatrain.data.text.documents import read_documents

LENGTH = 32


@pytest.fixture(scope="module")
def packed(tmp_path_factory, corpus, tokenizer_folder, prepare_text):
    out = tmp_path_factory.mktemp("packed") / "a"
    prepare_text(corpus, out, tokenizer_folder, pack="best_fit", sequence_length=LENGTH)
    return out


@pytest.fixture
def documents(corpus, tokenizer):
    return [[*tokenizer.encode(d.content), tokenizer.eos_id] for d in read_documents([corpus], "text")]


@pytest.fixture
def batches(packed):
    """Every row as a batch of one, and what the index says of its targets."""
    sources = OpenSources([Source(path=str(packed))], LENGTH, with_ends=True)
    size = sources.sizes[0]
    rows = [sources.read(0, *divmod(number, size.rows_per_block)) for number in range(size.rows)]
    sources.close()
    return [(assemble([row], attend_across_documents=False), row.targets) for row in rows]


def test_every_token_of_every_document_is_a_target_once(batches, documents):
    """Each pair of neighbours in a document is an input and its label, and nothing else is."""
    found = []
    for batch, targets in batches:
        wanted = (batch.labels != IGNORE_INDEX)[0]
        assert int(wanted.sum()) == targets
        found += zip(batch.input_ids[0][wanted].tolist(), batch.labels[0][wanted].tolist(), strict=True)
    expected = [pair for tokens in documents for pair in itertools.pairwise(tokens)]
    assert sorted(found) == sorted(expected)


def test_attention_stays_within_a_piece(batches, tokenizer):
    cut = 0
    for batch, _ in batches:
        inputs, ids, positions = batch.input_ids[0], batch.document_ids[0], batch.position_ids[0]
        for document in ids.unique():
            here = ids == document
            assert positions[here].tolist() == list(range(int(here.sum())))
            labelled = (batch.labels[0][here] != IGNORE_INDEX).tolist()
            piece_ended = labelled.index(False) if False in labelled else len(labelled)
            assert not any(labelled[piece_ended:])
            cut += piece_ended == LENGTH
            assert tokenizer.eos_id not in inputs[here][: max(0, piece_ended)].tolist()
    assert cut > 0, "no document was longer than a row"


def test_the_manifest_counts_what_was_saved(packed, documents):
    manifest = read_manifest(packed)
    report, lengths = manifest.packed, np.array([len(tokens) for tokens in documents])
    assert manifest.tokens == lengths.sum()
    assert report.targets == (lengths - 1).sum()
    assert report.documents_cut == (lengths > LENGTH + 1).sum()
    starts = np.cumsum(lengths) - lengths
    assert report.documents_cut_by_concat == (starts // LENGTH != (starts + lengths - 1) // LENGTH).sum()
    assert report.documents_cut < report.documents_cut_by_concat
    assert report.rows * (LENGTH + 1) - report.padding == report.targets + report.pieces
    assert report.padding / (report.rows * (LENGTH + 1)) < 0.03
    data = PreparedData(packed)
    assert len(data.index.targets) == manifest.rows(LENGTH) == report.rows
    data.close()
    assert "packed by best fit" in inspect_data(packed).as_text()
    assert inspect_data(packed).lengths.documents.sum() == report.pieces


def test_another_sequence_length_is_refused(packed):
    with pytest.raises(DataError, match=r"sequence_length: 16: this data was packed by best fit into rows of 32"):
        read_manifest(packed).rows(16)


def test_a_step_counts_the_targets_of_all_ranks(make_loader, packed):
    """Padding and ends take labels away; every rank knows how many are left in the whole step."""
    sources = (Source(path=str(packed)),)
    whole = make_loader(train=sources, global_batch_size=8, micro_batch_size=8)
    halves = [make_loader(train=sources, global_batch_size=8, data_rank=rank, data_size=2) for rank in (0, 1)]
    counts = []
    for _ in range(5):
        step, parts = whole.next(), [half.next() for half in halves]
        labels = sum(int((b.labels != IGNORE_INDEX).sum()) for part in parts for b in part.micro_batches)
        assert step.targets == parts[0].targets == parts[1].targets == labels
        counts.append(labels)
    assert min(counts) < 8 * LENGTH
