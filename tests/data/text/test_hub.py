import datasets
import pytest

from megatrain.base.errors import ConfigError, DataError
from megatrain.data.text.documents import read_documents
from megatrain.data.text.hub import HubDataset
from megatrain.data.text.inputs import find_inputs, records


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path):
    """What a repository of the Hub holds, in a folder: `datasets` loads both by the same code."""
    for subset in ("en", "de"):
        for split in ("train", "test"):
            rows = {"body": [f"{subset} {split} {number}" for number in range(3)], "n": [1, 2, 3]}
            (tmp_path / subset).mkdir(exist_ok=True)
            datasets.Dataset.from_dict(rows).to_parquet(tmp_path / subset / f"{split}-00000.parquet")
    configs = "".join(
        f"- config_name: {subset}\n  data_files:\n"
        + "".join(f"  - split: {split}\n    path: {subset}/{split}-*.parquet\n" for split in ("train", "test"))
        for subset in ("en", "de")
    )
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return tmp_path


def test_subsets_and_splits_by_name(folder):
    for query, expected in (("subset=en", "en train"), ("subset=de&split=test", "de test")):
        inputs = find_inputs([f"hub:{folder}?{query}"]).inputs
        documents = [*read_documents(inputs, "body")]
        assert [document.content for document in documents] == [f"{expected} {number}" for number in range(3)]
        assert documents[1].where == f"{inputs[0]} row 2"


def test_a_name_is_recorded_with_what_it_stands_for(folder):
    def record():
        (found,) = records(find_inputs([f"hub:{folder}?subset=en"]).inputs)
        return found

    before = record()
    assert before == record()
    assert before.name == f"hub:{folder}?subset=en&split=train"
    datasets.Dataset.from_dict({"body": ["other"]}).to_parquet(folder / "en" / "train-00001.parquet")
    assert record().sha256 != before.sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hub:nobody/nothing", r"hub:nobody/nothing\?split=train: cannot be found"),
        ("hub:{folder}?subset=fr", "cannot be found: BuilderConfig 'fr' not found"),
        ("hub:{folder}?subset=en&split=dev", "cannot be read: Bad split: dev"),
    ],
)
def test_names_that_stand_for_nothing(folder, text, message):
    with pytest.raises(DataError, match=message):
        list(read_documents(find_inputs([text.format(folder=folder)]).inputs, "body"))


def test_a_missing_field_names_the_others(folder):
    with pytest.raises(DataError, match=r"has no field 'text'\. It has body, n: choose with --text-field"):
        list(read_documents(find_inputs([f"hub:{folder}?subset=en"]).inputs, "text"))


def test_the_form_of_a_name():
    assert HubDataset.parse("hub:a/b@v1?subset=x&split=y") == HubDataset("a/b", "v1", "x", "y")
    assert HubDataset.parse("hub:a/b") == HubDataset("a/b")
    for text in ("hub:", "hub:a/b?config=en"):
        with pytest.raises(ConfigError, match="must be hub:NAME"):
            HubDataset.parse(text)
