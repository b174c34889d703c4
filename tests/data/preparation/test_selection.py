import json
import random

import numpy as np
import pytest

from megatrain.base.errors import ConfigError
from megatrain.data.folder.manifest import read_manifest
from megatrain.data.loading.shards import PreparedData
from megatrain.data.preparation.selection import SelectionPolicy, forget, repetition, select

WORDS = [f"word{number}" for number in range(500)]


def prose(seed, words=120):
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def altered(text, changes, seed=0):
    """The same with some words replaced."""
    words, chance = text.split(), random.Random(seed)
    for place in chance.sample(range(len(words)), changes):
        words[place] = "changed"
    return " ".join(words)


def run(texts, folder, workers=1, batch=4, **policy):
    batches = [(first, texts[first : first + batch]) for first in range(0, len(texts), batch)]
    selection = select(iter(batches), SelectionPolicy(**policy), folder, "these", workers)
    return [selection.keeps(number) for number in range(len(texts))], selection.left_out


def test_duplicates_are_dropped_but_for_the_first(tmp_path):
    texts = [prose(1), prose(2), prose(1), prose(3), prose(2), prose(1) + " "]
    kept, counts = run(texts, tmp_path, duplicates="exact")
    assert kept == [True, True, False, True, False, True]
    assert counts == {"duplicate": 2}


def test_near_copies_too(tmp_path):
    original = prose(1)
    texts = [original, altered(original, 1), prose(2), original, altered(original, 60)]
    kept, counts = run(texts, tmp_path, duplicates="near")
    assert kept == [True, False, True, False, True]
    assert counts == {"duplicate": 1, "near_duplicate": 1}


def test_most_near_copies_are_found_and_nothing_else(tmp_path):
    """Two words of 120 changed: a Jaccard similarity of 5-grams of about 0.85."""
    originals = [prose(seed) for seed in range(60)]
    texts = originals + [altered(text, 2, seed) for seed, text in enumerate(originals)]
    kept, counts = run(texts, tmp_path, duplicates="near", near_similarity=0.7)
    assert all(kept[:60])
    assert counts["near_duplicate"] >= 57


@pytest.mark.parametrize("text", ["", "one", "two words", "a b c d e"])
def test_short_texts_are_like_their_copies_only(tmp_path, text):
    kept, _ = run([text + " x", text + " y", prose(1)], tmp_path, duplicates="near")
    assert kept == [True, True, True]


def test_quality_filters_in_their_order(tmp_path):
    english = "This is a sentence of English words, which any reader of the language would know at once."
    german = "Das ist ein Satz aus deutschen Wörtern, den jeder erkennt, der diese Sprache gelernt hat."
    texts = ["tiny", english * 40, "\n".join(["the same line again and again"] * 9), german, english]
    kept, counts = run(
        texts, tmp_path, minimum_characters=20, maximum_characters=1000, maximum_repetition=0.5, languages=("en",)
    )
    assert kept == [False, False, False, False, True]
    assert counts == {"too_short": 1, "too_long": 1, "repetitive": 1, "other_language": 1}


def test_a_copy_of_what_was_dropped_is_no_duplicate(tmp_path):
    """Filters come first: the reason of both is the same."""
    _, counts = run(["tiny", "tiny", prose(1)], tmp_path, minimum_characters=10, duplicates="exact")
    assert counts == {"too_short": 2}


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        (prose(4), 0.0),
        ("aaaa\nbbbb\naaaa\ncccc", 0.25),
        (" ".join(WORDS[:20] * 2), 11 / 31),  # of 31 10-grams the last 11 repeat the first
    ],
)
def test_repetition(text, share):
    assert repetition(text) == pytest.approx(share)


def test_workers_and_interruptions_change_nothing(tmp_path):
    texts = [prose(seed % 17) for seed in range(40)]
    expected = run(texts, tmp_path / ".", duplicates="near")
    forget(tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert run(texts, tmp_path, workers=2, duplicates="near") == expected
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    for file in files[5:]:
        file.unlink()
    times = [file.stat().st_mtime_ns for file in files[:5]]
    assert run(texts, tmp_path, duplicates="near") == expected
    assert [file.stat().st_mtime_ns for file in files[:5]] == times, "what was learnt is learnt again"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"minimum_characters": -1}, "--min-characters"),
        ({"minimum_characters": 10, "maximum_characters": 5}, "the second not below the first"),
        ({"maximum_repetition": 1.5}, "--max-repetition: 1.5"),
        ({"near_similarity": 1.0}, "--near-similarity: 1.0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ConfigError, match=message):
        SelectionPolicy(**options)


def test_near_copies_cannot_leak_into_the_held_out_set(tmp_path, tokenizer, tokenizer_folder, prepare_text):
    """Copies with a word more hash otherwise, so they could fall to the other set: they are dropped before that."""
    originals = [prose(seed) for seed in range(80)]
    texts = originals + [f"{text} more" for text in originals] + originals
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))

    def openings(name, **options):
        """How the documents of both sets begin, after preparing with a hold-out."""
        out, held = tmp_path / name, tmp_path / f"{name}-held"
        prepare_text(tmp_path / "a.jsonl", out, tokenizer_folder, holdout=0.3, holdout_out=held, **options)
        found = [{text[:60] for text in documents(folder, tokenizer)} for folder in (out, held)]
        return found, read_manifest(out)

    (train, held), manifest = openings("near", selection=SelectionPolicy(duplicates="near"))
    assert manifest.left_out == {"duplicate": 80, "near_duplicate": 80}
    assert (len(train) + len(held), len(train & held)) == (80, 0)
    assert len(held) > 10
    (train, held), _ = openings("exact")
    assert train & held, "without near-deduplication the test's copies do leak"


def documents(folder, tokenizer):
    data = PreparedData(folder)
    blocks = [data.block_tokens(block) for block in range(len(data.index))]
    stream = np.concatenate([blocks[0], *(block[1:] for block in blocks[1:])])
    data.close()
    ends = np.flatnonzero(stream == tokenizer.eos_id)
    return [tokenizer.decode(ids) for ids in np.split(stream, ends + 1)[:-1]]
