"""What a notebook sees of a run, its checkpoints and prepared data."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import megatrain
from megatrain.base.errors import CheckpointError, ConfigError, DataError
from megatrain.data.loading.evaluation import EvaluationLoader
from megatrain.data.text.tokenizer import train_tokenizer
from megatrain.huggingface.export import export
from tests.data.conftest import prepare_small, write_corpus
from tests.trained import make_trained_run

LENGTH = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("api")
    make_trained_run(folder)
    return folder


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    corpus = write_corpus(folder / "corpus.jsonl", documents=60, seed=3)
    train_tokenizer([str(corpus)], folder / "words", 300)
    prepare_small(corpus, folder / "data", folder / "words")
    return folder / "data"


def test_importing_megatrain_needs_no_torch():
    code = "import megatrain, sys; assert 'torch' not in sys.modules; print(megatrain.__version__)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "0.1.0"


def test_a_run_has_its_configuration_metrics_and_checkpoints(folder):
    run = megatrain.open_run(folder / "runs/tiny")
    assert run.config.training.steps == 1
    with pytest.raises(DataError, match=r"metrics\.jsonl: no metrics here"):
        run.metrics()
    (run.path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 1, "validation_loss": 2.25}\n')
    assert run.metrics() == [{"step": 1, "loss": 2.5}, {"step": 1, "validation_loss": 2.25}]
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [10]
    assert run.checkpoint(10).path == run.latest().path
    assert run.latest().verify() == []
    with pytest.raises(CheckpointError, match="no checkpoint of step 7; steps saved: 10"):
        run.checkpoint(7)
    with pytest.raises(ConfigError, match="there is no run here"):
        megatrain.open_run(folder)


def test_a_state_dict_is_whole_and_fp32(folder):
    weights = megatrain.open_run(folder / "runs/tiny").latest().state_dict()
    assert weights["embedding.weight"].shape == (384, 16)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}
    assert len(weights) == 2 * 9 + 3


def test_a_transformers_model_is_the_one_that_export_writes(folder, tmp_path):
    from transformers import AutoModelForCausalLM

    run = megatrain.open_run(folder / "runs/tiny")
    ours = run.latest().to_transformers(dtype="bfloat16")
    export(run.path, tmp_path / "out", dtype="bfloat16")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert not ours.training
    assert ours.config.to_dict().items() >= {"hidden_size": 16, "num_hidden_layers": 2}.items()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_a_damaged_checkpoint_is_refused(folder, tmp_path):
    run = make_trained_run(tmp_path)
    file = next(run.step(10).glob("*.distcp"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    checkpoint = megatrain.open_run(run.path).checkpoint(10)
    assert len(checkpoint.verify()) == 1
    with pytest.raises(CheckpointError, match=file.name):
        checkpoint.state_dict()


@pytest.mark.parametrize("across", [False, True])
def test_prepared_data_gives_what_an_evaluation_reads(data, across):
    from megatrain.config import Source

    dataset = megatrain.open_data(data, sequence_length=LENGTH, attend_across_documents=across)
    loader = EvaluationLoader([Source(path=str(data))], LENGTH, across, len(dataset), 1, 0, 1)
    batches = list(loader)
    assert len(dataset) == len(batches) > 8
    for item, batch in zip(dataset, batches, strict=True):
        for name, tensor in item.items():
            assert torch.equal(tensor, getattr(batch, name)[0])
    assert torch.equal(dataset[-1]["labels"], dataset[len(dataset) - 1]["labels"])
    with pytest.raises(IndexError):
        dataset[len(dataset)]
    assert next(iter(torch.utils.data.DataLoader(dataset, batch_size=4)))["input_ids"].shape == (4, LENGTH)


def test_what_is_no_prepared_data(tmp_path):
    with pytest.raises(DataError):
        megatrain.open_data(tmp_path, sequence_length=8)
