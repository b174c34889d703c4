"""The mean of the last checkpoints, against NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from launcher.cli import app
from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.average import last_checkpoints, read_mean
from megatrain.checkpoint.read import read_tensors
from megatrain.model.families.llama.section import LlamaSection
from megatrain.run.directory import RunDir
from tests import trained
from tests.trained import make_trained_run, write_checkpoint


@pytest.fixture
def run(tmp_path, monkeypatch) -> RunDir:
    """Checkpoints of steps 10, 20, 30 and 40, each of other weights."""
    run = make_trained_run(tmp_path)
    model, random_model = trained.section(trained.VOCABULARY), trained.random_model

    def of_a_seed(seed: int):
        def build(config):
            built = random_model(config)
            chance = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                for parameter in built.parameters():
                    parameter += torch.randn(parameter.shape, generator=chance)
            return built

        return build

    for step in (20, 30, 40):
        monkeypatch.setattr(trained, "random_model", of_a_seed(step))
        write_checkpoint(run, step, model)
    return run


def by_numpy(run: RunDir, *steps: int) -> dict[str, np.ndarray]:
    whole = [read_tensors(run.step(step), kind="weight") for step in steps]
    return {name: np.mean([one[name].numpy().astype(np.float64) for one in whole], axis=0) for name in whole[0]}


def damage(run: RunDir, step: int) -> None:
    path = run.step(step) / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])


def test_every_tensor_is_the_mean(run) -> None:
    expected = by_numpy(run, 40, 30, 20)
    got = read_mean(last_checkpoints(run.path, 3), list(expected))
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    for name, mean in expected.items():
        np.testing.assert_allclose(got[name].numpy(), mean, rtol=1e-5, atol=1e-6)
        assert not np.allclose(mean, read_tensors(run.step(40), kind="weight")[name].numpy(), atol=0.1)


def test_up_to_the_checkpoint_that_is_named(run) -> None:
    assert last_checkpoints(run.step(30), 2) == [run.step(30), run.step(20)]


def test_a_damaged_one_is_left_out_and_said(run) -> None:
    damage(run, 30)
    said: list[str] = []
    assert last_checkpoints(run.path, 2, warn=said.append) == [run.step(40), run.step(20)]
    assert len(said) == 1
    assert "step-00000030" in said[0]
    with pytest.raises(CheckpointError, match="step-00000030"):
        last_checkpoints(run.step(30), 2)


def test_fewer_than_were_asked_for(run) -> None:
    damage(run, 20)
    with pytest.raises(CheckpointError, match=r"4 checkpoints are to be averaged, and 3 verify\. Average fewer"):
        last_checkpoints(run.path, 4)


def test_of_different_models_there_is_none(run) -> None:
    other = LlamaSection.model_validate(trained.section(trained.VOCABULARY).model_dump() | {"num_hidden_layers": 3})
    write_checkpoint(run, 50, other)
    with pytest.raises(CheckpointError, match=r"has model\.num_hidden_layers=2, .*step-00000050 has 3"):
        last_checkpoints(run.path, 2)


def exported(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["export", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize("shard_gb", ["1", "0.001"])
def test_the_exported_folder_holds_the_mean(run, tmp_path, shard_gb) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "averaged"
    options = ("--average-last", "3", "--dtype", "float32", "--shard-gb", shard_gb)
    assert f"of the mean of 3 checkpoints up to {run.step(40)}" in exported(str(run), str(out), *options)
    model = AutoModelForCausalLM.from_pretrained(out)
    expected = by_numpy(run, 40, 30, 20)
    rows = model.config.vocab_size  # without those that pad the vocabulary
    for mine, theirs in (("embedding.weight", model.get_input_embeddings()), ("head.weight", model.lm_head)):
        np.testing.assert_allclose(theirs.weight.detach().numpy(), expected[mine][:rows], rtol=1e-5, atol=1e-6)
    assert sum(one.numel() for one in model.parameters()) == sum(
        (one[:rows] if name in ("embedding.weight", "head.weight") else one).size for name, one in expected.items()
    )
    kept = json.loads((out / "megatrain.json").read_text())
    assert [Path(folder).name for folder in kept["averaged"]] == ["step-00000040", "step-00000030", "step-00000020"]


def test_one_is_as_without_the_option(run, tmp_path) -> None:
    exported(str(run), str(tmp_path / "plain"))
    exported(str(run), str(tmp_path / "one"), "--average-last", "1")
    for file in (tmp_path / "plain").iterdir():
        assert file.read_bytes() == (tmp_path / "one" / file.name).read_bytes(), file.name
