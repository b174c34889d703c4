"""What is made smaller is what was asked for, and transformers computes with the values that the folder holds."""

import json

import pytest
import torch

from megatrain.base.errors import ConfigError
from megatrain.checkpoint.read import read_model, read_tensors
from megatrain.evaluation.compressed import _written
from megatrain.huggingface.compression import Compression, is_compressed
from megatrain.huggingface.export import export
from megatrain.huggingface.pruned import pruned
from megatrain.huggingface.quantized import int4_tensor, whole
from megatrain.model.architecture import parameter_table
from megatrain.model.build import build_model
from megatrain.model.families.gpt.section import GPTSection
from tests import trained

WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture
def run(tmp_path, monkeypatch):
    plain = trained.section
    monkeypatch.setattr(trained, "section", lambda *given, **named: plain(*given, **named).model_copy(update=WIDE))
    return trained.make_trained_run(tmp_path)


@pytest.mark.parametrize(
    ("quantize", "prune", "said"),
    [("int8", None, "int8"), (None, "magnitude:0.5", "pruned magnitude:0.5"), ("fp8", "2:4", "pruned 2:4 and fp8")],
)
def test_options(quantize, prune, said) -> None:
    assert str(Compression.from_options(quantize, prune)) == said
    assert not Compression.from_options(None, None)


@pytest.mark.parametrize("prune", ["magnitude", "magnitude:0", "magnitude:1", "magnitude:1.5", "magnitude:.", "4:2"])
def test_what_is_no_option(prune) -> None:
    with pytest.raises(ConfigError, match=r"--prune .*: must be magnitude:SHARE"):
        Compression.from_options(None, prune)
    with pytest.raises(ConfigError, match="--quantize int2: must be one of int8, int4, fp8"):
        Compression.from_options("int2", None)


def test_the_smallest_values_become_zero() -> None:
    matrix = torch.randn(8, 12, generator=torch.Generator().manual_seed(0))
    half = pruned("w", matrix, 0.5)
    assert int((half == 0).sum()) == 48
    assert matrix.abs()[half == 0].max() < matrix.abs()[half != 0].min()
    torch.testing.assert_close(half[half != 0], matrix[half != 0], rtol=0, atol=0)
    fours, before = pruned("w", matrix, "2:4").view(-1, 4), matrix.view(-1, 4)
    assert ((fours == 0).sum(1) == 2).all()
    for four, old in zip(fours, before, strict=True):
        assert set(four.nonzero().flatten().tolist()) == set(old.abs().topk(2).indices.tolist())
    assert (pruned("w", torch.ones(2, 8), "2:4").view(-1, 4) == 0).sum(1).tolist() == [2] * 4, "of equal ones, two"
    with pytest.raises(ConfigError, match="w: has 6 inputs"):
        pruned("w", torch.ones(2, 6), "2:4")


def test_int4_is_within_half_a_step() -> None:
    matrix = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    stored = int4_tensor(matrix, 32)
    assert stored.qdata.shape == (3, 32)
    assert stored.scale.shape == stored.zero_point.shape == (2, 3)
    groups = matrix.view(3, 2, 32)
    step = (groups.amax(-1) - groups.amin(-1)) / 15
    assert ((whole(stored) - matrix).view(3, 2, 32).abs() <= step[..., None] / 2 + 1e-6).all()


def logits_of(folder, ids):
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    "shard_bytes", [10**9, pytest.param(30_000, marks=pytest.mark.full)], ids=["one file", "many files"]
)
@pytest.mark.parametrize(
    ("kind", "most"), [("int8", 0.05), pytest.param("fp8", 0.2, marks=pytest.mark.full)], ids=["int8", "fp8"]
)
def test_transformers_computes_with_the_values_in_the_folder(tmp_path, run, kind, most, shard_bytes) -> None:
    compression = Compression(kind, 0.3)
    done = export(run.path, tmp_path / "out", dtype="float32", compression=compression, shard_bytes=shard_bytes)
    plain = export(run.path, tmp_path / "plain", dtype="float32")
    assert done.bytes < 0.8 * plain.bytes
    written, before = _written(done), read_tensors(run.step(10), kind="weight")
    for row in parameter_table(done.model):
        after, old = written[row.name], before[row.name][: len(written[row.name])]
        if is_compressed(row):
            assert (after == 0).float().mean() >= 0.29
            kept = after != 0
            assert (after - old)[kept].abs().max() < most * old.abs().max()
            assert not torch.equal(after[kept], old[kept])
        else:
            torch.testing.assert_close(after, old, rtol=0, atol=0)
    with torch.device("meta"):
        model = build_model(done.model)
    model.load_state_dict(written, assign=True)
    ids = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(ids)
    torch.testing.assert_close(logits_of(done.folder, ids), expected, rtol=1e-4, atol=1e-4)


def test_int4_is_read_by_transformers(tmp_path, run) -> None:
    """Not multiplied: that needs a GPU."""
    from torchao.quantization import Int4Tensor
    from transformers import AutoModelForCausalLM

    done = export(run.path, tmp_path / "out", compression=Compression("int4"))
    layer = AutoModelForCausalLM.from_pretrained(done.folder, dtype="auto").model.layers[1].mlp
    assert isinstance(layer.down_proj.weight, Int4Tensor)
    written = _written(done)["blocks.1.mlp.down.weight"]
    torch.testing.assert_close(whole(layer.down_proj.weight), written, rtol=0, atol=0)
    said = json.loads((done.folder / "config.json").read_text())["quantization_config"]
    assert said["modules_to_not_convert"] == ["lm_head"]
    assert said["quant_type"]["default"]["_data"]["group_size"] == 64


class TestRefusals:
    def test_int4_of_a_narrow_model(self, tmp_path) -> None:
        run = trained.make_trained_run(tmp_path)
        with pytest.raises(ConfigError, match=r"has 16 inputs, and they must be a multiple of 32\. Take int8"):
            export(run.path, tmp_path / "out", compression=Compression("int4"))
        assert not (tmp_path / "out").exists()

    def test_int4_in_another_dtype(self, tmp_path, run) -> None:
        with pytest.raises(ConfigError, match="--dtype float32: with --quantize int4 it must be bfloat16"):
            export(run.path, tmp_path / "out", dtype="float32", compression=Compression("int4"))

    def test_a_family_whose_layers_torchao_does_not_know(self, tmp_path, run) -> None:
        sizes = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "vocab_size": 384}
        gpt = GPTSection.model_validate({"max_position_embeddings": 16, **sizes})
        trained.write_checkpoint(run, 20, gpt)
        with pytest.raises(ConfigError, match=r"c_attn.*is in no linear layer of transformers' model"):
            export(run.step(20), tmp_path / "out", compression=Compression("int8"))


def test_the_model_that_it_was_is_not_touched(tmp_path, run) -> None:
    before = read_model(run.step(10)).state_dict()
    export(run.path, tmp_path / "out", compression=Compression(None, "2:4"))
    for name, tensor in read_model(run.step(10)).state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
