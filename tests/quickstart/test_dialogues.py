import json

import pytest

from megatrain.base.errors import DataError
from quickstart.dialogues import dialogues, write


def test_lines_are_the_users_and_the_assistants_in_turn(tmp_path):
    (tmp_path / "a.yml").write_text(
        "conversations:\n- - Hi\n  - Hello.\n- - What is it?\n  - A robot.\n  - Really?\n"
        "- - Hi\n  - Hello.\n- - 2 + 2?\n  - 4\n"
    )
    found = dialogues(tmp_path)
    assert found == [
        [{"role": "user", "content": one}, {"role": "assistant", "content": other}]
        for one, other in (("Hi", "Hello."), ("What is it?", "A robot."), ("2 + 2?", "4"))
    ]
    lines = write(found, tmp_path / "out" / "chat.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line)["messages"] for line in lines] == found


def test_a_folder_without_any_is_named(tmp_path):
    with pytest.raises(DataError, match="holds no dialogue"):
        dialogues(tmp_path)
