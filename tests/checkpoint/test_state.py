"""state.json of any origin: right in every field, or an error that names the file and the field."""

import json

import pytest

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.state import read_state
from tests.trained import section

LOADER = {
    "position": 80,
    "order_version": 2,
    "seed": 1337,
    "sequence_length": 64,
    "shuffle": "windowed 4096 x 1",
    "sources": ["c06f850c7430"],
    "stages": [[0, 64, "8b926d75"]],
    "quarantine": [[0, 3, 100]],
    "transform": None,
}
SEQUENTIAL = {"position": 3, "sequential_ranks": 2, "seed": 1, "sequence_length": 64, "sources": [["a", 1.0], ["b", 2]]}
FINETUNE = {"position": 8, "seed": 1, "rows": 34, "examples": "abc"}
STATE = {"step": 20, "loader": LOADER, "model": section(384).model_dump(mode="json"), "seed": 1337}


def write(folder, state):
    content = state if isinstance(state, bytes) else json.dumps(state).encode()
    (folder / "state.json").write_bytes(content)


def but(path, value):
    """The state with one field changed."""
    state = json.loads(json.dumps(STATE))
    *above, last = path.split(".")
    inner = state
    for name in above:
        inner = inner[name]
    inner[last] = value
    return state


@pytest.mark.parametrize("loader", [LOADER, SEQUENTIAL, FINETUNE], ids=["prepared", "sequential", "finetune"])
def test_what_a_loader_saves_is_read_back(tmp_path, loader) -> None:
    write(tmp_path, STATE | {"loader": loader})
    state = read_state(tmp_path)
    assert (state.step, state.seed, state.model) == (20, 1337, section(384))
    assert state.loader_state() == loader


@pytest.mark.parametrize(
    ("state", "names"),
    [
        (b"", "empty"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 5000, "nested too deeply"),
        (b'{"step": NaN}', "NaN"),
        (b" " * (2 << 20), "at most"),
        ([], ""),
        (7, ""),
        (but("step", "x"), "step"),
        (but("step", -5), "step"),
        (but("step", 10**30), "step"),
        (but("step", 1.0), "step"),
        (but("seed", "x"), "seed"),
        (but("more", 1), "more"),
        (but("format", 3), "format"),
        (but("loader", "x"), "loader"),
        (but("loader.position", 10**30), "loader.position"),
        (but("loader.position", "1"), "loader.position"),
        (but("loader.sources", 5), "loader.sources"),
        (but("loader.stages", [[0]]), "loader.stages"),
        (but("loader.stages", [[0, [], "x"]]), "loader.stages"),
        (but("loader.quarantine", [[0, 1]]), "loader.quarantine"),
        (but("loader.quarantine", None), "loader"),
        (but("loader.transform", 3), "loader.transform"),
        (but("loader.seed", [1]), "loader.seed"),
        (but("batches", 5), "batches"),
        (but("batches", [[0, 0]]), "batches"),
        (but("batches", [[0, 0, "8"]]), "batches"),
        (but("model", None), "model"),
        (but("model.num_hidden_layers", 10**9), "model.num_hidden_layers"),
        (but("model.num_hidden_layers", 200_000), "at most 100,000 layers"),
        (but("model.num_hidden_layers", 0), "model.num_hidden_layers"),
        (but("model.hidden_size", 10**18), "model.hidden_size"),
        (but("model.vocab_size", "auto"), "vocabulary"),
        (but("model.rope_theta", "x"), "model.rope_theta"),
    ],
)
def test_what_is_not_right_is_named(tmp_path, state, names) -> None:
    write(tmp_path, state)
    with pytest.raises(CheckpointError) as caught:
        read_state(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/state.json: ")
    assert names in str(caught.value)


def test_what_is_missing_is_named(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"state\.json: cannot be read: No such file"):
        read_state(tmp_path)
    write(tmp_path, {name: value for name, value in STATE.items() if name != "model"})
    with pytest.raises(CheckpointError, match=r"state\.json: model: Field required"):
        read_state(tmp_path)
