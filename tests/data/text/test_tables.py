import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatrain.base.errors import DataError
from megatrain.data.text.documents import read_documents
from megatrain.data.text.inputs import find_inputs
from megatrain.data.text.rows import read_rows

TEXTS = ["first", "zweiter", "third"]
ROWS = {"id": [1, 2, 3], "text": TEXTS, "messages": [[{"role": "user", "content": text}] for text in TEXTS]}


@pytest.fixture(params=["parquet", "arrow stream", "arrow file", "no ending"])
def write_table(request, tmp_path):
    def write(table):
        file = tmp_path / {"parquet": "A.PARQUET", "no ending": "part-00000"}.get(request.param, "a.arrow")
        if request.param in ("parquet", "no ending"):
            pq.write_table(table, file)
            return file
        new = pa.ipc.new_stream if request.param == "arrow stream" else pa.ipc.new_file
        with new(file, table.schema) as writer:
            writer.write_table(table)
        return file

    return write


def texts(*files):
    return [document.content for document in read_documents(files, "text")]


def test_rows_of_tables(write_table):
    file = write_table(pa.table(ROWS))
    assert texts(file) == TEXTS
    rows = list(read_rows(file))
    assert rows[1].fields == {"id": 2, "text": "zweiter", "messages": [{"role": "user", "content": "zweiter"}]}
    assert rows[1].where == f"{file} row 2"
    assert next(read_rows(file, ["id"])).fields == {"id": 1}
    with pytest.raises(DataError, match=r"has no field 'body'\. It has id, text, messages"):
        list(read_documents([file], "body"))


def test_a_table_without_rows(write_table):
    assert texts(write_table(pa.table(ROWS).slice(0, 0))) == []


def test_a_null_and_a_number(write_table):
    with pytest.raises(DataError, match="row 2: text: null: must be text"):
        texts(write_table(pa.table({"text": ["x", None]})))
    with pytest.raises(DataError, match="row 1: text: 3: must be text"):
        texts(write_table(pa.table({"text": [3]})))


@pytest.mark.parametrize("how", ["large_string", "dictionary"])
def test_other_forms_of_text(write_table, how):
    column = pa.array(TEXTS, pa.large_string()) if how == "large_string" else pa.array(TEXTS).dictionary_encode()
    assert texts(write_table(pa.table({"text": column}))) == TEXTS


def test_damaged_anywhere_it_ends_in_one_error_or_in_texts(write_table):
    file = write_table(pa.table({"text": TEXTS * 20}))
    content = file.read_bytes()
    for at in range(0, len(content), max(1, len(content) // 40)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            assert len(texts(file)) <= 60
        except DataError as error:
            assert str(file) in str(error)  # noqa: PT017


def test_folders_of_save_to_disk(tmp_path):
    saved = tmp_path / "saved"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(saved, num_shards=2)
    (saved / "cache-0.arrow").write_bytes(b"of another step")
    assert texts(*find_inputs([saved]).inputs) == TEXTS
    assert {file.name for file in find_inputs([tmp_path]).passed_over} == {
        "cache-0.arrow",
        "dataset_info.json",
        "state.json",
    }
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: is missing, and .*state\.json names it"):
        find_inputs([saved])
    (saved / "state.json").write_text('{"_data_files": 3}')
    with pytest.raises(DataError, match=r"state\.json: _data_files: 3: "):
        find_inputs([saved])


def test_a_saved_dataset_of_several_splits_is_not_mixed(tmp_path):
    rows = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(tmp_path / "dict")
    with pytest.raises(DataError, match=r"dict: holds the splits test, train: name one"):
        find_inputs([tmp_path / "dict"])
    assert texts(*find_inputs([tmp_path / "dict" / "train"]).inputs) == TEXTS
