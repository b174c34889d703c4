import json
import random
from collections import Counter

import pytest

from megatrain.base.errors import DataError, PreflightError
from quickstart.bbc import Article, articles, package_folder, split, without_copies, write


def article(seed, label="tech"):
    return Article(" ".join(random.Random(seed).choices("abcdefghijklmnop", k=60)), label)


def test_what_shares_most_of_its_five_word_sequences_with_one_before_is_a_copy():
    first, second = article(1), article(2)
    words = first.text.split()
    edited = Article(" ".join([*words[:30], "and", *words[30:]]), "sports")
    shouted = Article(first.text.upper() + "!", "tech")
    half = Article(" ".join(words[:20] + second.text.split()[:40]), "tech")
    assert without_copies([first, second, edited, shouted, half]) == [first, second, half]


def test_labels_have_the_same_shares_in_each_part_and_no_article_is_in_two():
    found = [article(seed, label) for seed, label in enumerate(["tech"] * 50 + ["sports"] * 20)]
    parts = split(found)
    assert {name: Counter(one.label for one in part) for name, part in parts.items()} == {
        "train": {"tech": 35, "sports": 14},
        "validation": {"tech": 5, "sports": 2},
        "test": {"tech": 10, "sports": 4},
    }
    assert sorted(one for part in parts.values() for one in part) == sorted(found)
    assert parts == split(found), "the same every time"
    assert parts != split(found, seed=1)


def test_files_are_articles_and_folders_labels(tmp_path):
    (tmp_path / "tech").mkdir()
    (tmp_path / "tech" / "1.txt").write_bytes("Ad sales\n\n\u00a3600m".encode())
    (tmp_path / "tech" / "2.txt").write_bytes(b"Fee of \xa315.8m")
    found = articles(tmp_path)
    assert found == [Article("Ad sales\n\n£600m", "tech"), Article("Fee of £15.8m", "tech")]
    files = write({"train": found}, tmp_path / "out")
    assert [json.loads(line) for line in files["train"].read_text("utf-8").splitlines()] == [
        {"text": text, "label": "tech"} for text, _ in found
    ]


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no article"):
        articles(tmp_path)
    with pytest.raises(PreflightError, match="pip install --no-deps no-such-package"):
        package_folder("no_such_package")
