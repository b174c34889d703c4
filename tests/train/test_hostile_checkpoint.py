"""Checkpoints that somebody else wrote."""

from pathlib import Path

import pytest
import torch

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.manifest import verify
from megatrain.checkpoint.read import read_tensors
from megatrain.run.directory import RunDir
from tests.checkpoint.hostile import change_metadata, sign, touches
from tests.train.one_start import Start

pytestmark = pytest.mark.usefixtures("one_rank")


@pytest.fixture
def run(tmp_path) -> RunDir:
    return RunDir(tmp_path / "run")


class TestHostile:
    """Nothing of a checkpoint runs, whoever signed it."""

    @pytest.fixture
    def ran(self, tmp_path) -> Path:
        return tmp_path / "ran"

    def spoil(self, run: RunDir, where: str, ran: Path) -> None:
        import pickle

        from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

        folder = run.step(2)

        def change(metadata):
            index = next(index for index in metadata.storage_data if index.fqn == "weight.a")
            info = metadata.storage_data[index]
            if where == "planner data":
                metadata.planner_data = touches(ran)
                return
            payload = pickle.dumps(touches(ran)).ljust(200, b".")
            size = (folder / info.relative_path).stat().st_size
            with open(folder / info.relative_path, "ab") as file:
                file.write(payload)
            info.offset, info.length = size, len(payload)
            if where == "bytes entry":
                metadata.state_dict_metadata["weight.a"] = BytesStorageMetadata()
                metadata.storage_data[MetadataIndex("weight.a")] = metadata.storage_data.pop(index)

        change_metadata(folder, change)
        sign(folder)
        assert verify(folder) == []

    @pytest.mark.parametrize("where", ["bytes entry", "planner data", "tensor file"])
    @pytest.mark.parametrize("how", ["resume", "fine-tune", "read", "check"])
    def test_a_payload_does_not_run(self, run, ran, where, how) -> None:
        from megatrain.checkpoint.metadata import check_contents

        Start(run).save(2)
        self.spoil(run, where, ran)
        start = Start(run)
        if how == "check":
            assert bool(check_contents(run.step(2))) == (where != "tensor file")
        else:
            with pytest.raises(CheckpointError, match=r"\.metadata: |cannot be read as a tensor"):
                {
                    "resume": lambda: start.resume(),
                    "fine-tune": lambda: start.checkpointer.load_weights(run.path),
                    "read": lambda: read_tensors(run.step(2), kind="weight"),
                }[how]()
        assert not ran.exists()

    @pytest.mark.parametrize("content", [b"{}", b"[" * 3000, b'{"step": 2}', b"\xff"])
    def test_a_state_that_is_not_right_is_named(self, run, content) -> None:
        Start(run).save(2)
        (run.step(2) / "state.json").write_bytes(content)
        sign(run.step(2))
        with pytest.raises(CheckpointError, match=r"step-00000002/state\.json: "):
            Start(run).resume()

    def test_a_tensor_that_is_not_stored_is_no_tensor_of_zeros(self, run) -> None:
        Start(run).save(2)
        start = Start(run)
        start.engine.tensors["weight.b"] = torch.zeros(2)
        with pytest.raises(CheckpointError, match=r"weight\.b: is not stored, the model has \(2,\)"):
            start.resume()
