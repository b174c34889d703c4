"""A model from a checkpoint of any origin: the weights of the model that state.json describes, or an error."""

import json

import pytest
import torch

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.read import read_model
from megatrain.generate import generate
from megatrain.huggingface.export import export
from tests.checkpoint.hostile import change_metadata, sign, touches
from tests.trained import make_trained_run


@pytest.fixture
def run(tmp_path):
    return make_trained_run(tmp_path)


def describe(folder, **changes):
    state = json.loads((folder / "state.json").read_text())
    state["model"] |= changes
    (folder / "state.json").write_text(json.dumps(state))
    sign(folder)


def uses(run, tmp_path):
    return {
        "generate": lambda: generate(run.path, "once", max_new_tokens=1),
        "export": lambda: export(run.path, tmp_path / "out"),
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 90_000},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 1},
        {"hidden_size": 10**15},
        {"hidden_size": 32},
        {"intermediate_size": 10**15},
        {"num_attention_heads": 10**15, "head_dim": 10**15},
        {"vocab_size": 385},
    ],
    ids=str,
)
def test_another_model_than_the_weights_are_of(run, changes) -> None:
    describe(run.step(10), **changes)
    with pytest.raises(CheckpointError, match=r"state\.json"):
        read_model(run.step(10))


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 3}, {"hidden_size": 32}, {"intermediate_size": 8}], ids=str)
def test_such_a_model_is_not_exported(run, tmp_path, changes) -> None:
    describe(run.step(10), **changes)
    with pytest.raises(CheckpointError, match=r"has no tensor|has shape"):
        export(run.path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["generate", "export"])
def test_a_payload_does_not_run(run, tmp_path, how) -> None:
    ran = tmp_path / "ran"
    change_metadata(run.step(10), lambda metadata: setattr(metadata, "planner_data", touches(ran)))
    sign(run.step(10))
    with pytest.raises(CheckpointError, match=r"\.metadata: asks for builtins\.eval.*refused"):
        uses(run, tmp_path)[how]()
    assert not ran.exists()


@pytest.mark.parametrize("how", ["generate", "export"])
def test_tensors_are_not_read_from_outside(run, tmp_path, how) -> None:
    data = run.step(10) / "__0_0.distcp"
    data.rename(tmp_path / "__0_0.distcp")

    def change(metadata):
        for info in metadata.storage_data.values():
            info.relative_path = "../../../../__0_0.distcp"

    change_metadata(run.step(10), change)
    with open(run.step(10) / "other.distcp", "wb") as file:
        file.truncate(1 << 20)
    sign(run.step(10))
    with pytest.raises(CheckpointError, match="no data file here"):
        uses(run, tmp_path)[how]()


@pytest.mark.parametrize("how", ["generate", "export"])
def test_a_weight_without_chunks_is_not_whatever_lay_in_memory(run, tmp_path, how) -> None:
    def change(metadata):
        metadata.state_dict_metadata["weight.norm.weight"].chunks = []
        for index in [index for index in metadata.storage_data if index.fqn == "weight.norm.weight"]:
            del metadata.storage_data[index]

    change_metadata(run.step(10), change)
    sign(run.step(10))
    with pytest.raises(CheckpointError, match=r"weight\.norm\.weight: its chunks do not cover it exactly"):
        uses(run, tmp_path)[how]()


def test_links_lead_to_a_checkpoint(run, tmp_path, monkeypatch) -> None:
    (tmp_path / "latest").symlink_to(run.step(10))
    expected = read_model(run.step(10))(torch.zeros((1, 3), dtype=torch.long))
    assert expected.isfinite().all()
    monkeypatch.chdir(run.step(10))
    for path in (tmp_path / "latest", type(tmp_path)()):
        assert generate(path, "once", max_new_tokens=1, temperature=0).startswith("once")
