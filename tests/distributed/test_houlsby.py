"""Bottleneck adapters learn what plain torch makes of the same model, generate, and are neither merged nor lost."""

from pathlib import Path

import pytest
import torch

from launcher.preflight import checks
from megatrain.base.errors import ConfigError, PreflightError
from megatrain.config.file import parse_config
from megatrain.config.resolved import ResolvedFinetune
from megatrain.evaluation.checkpoint import evaluate
from megatrain.huggingface.export import export
from megatrain.huggingface.export_adapter import export_adapter
from megatrain.huggingface.merged import read_merged_model
from megatrain.model.architecture import parameter_table
from megatrain.model.initialization import initial_weight
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from tests.distributed.lora import HOULSBY, LORA, base_of, config_of
from tests.distributed.ranks import RankPool
from tests.distributed.test_lora import plainly, theirs_trained

pytestmark = pytest.mark.distributed


def hooked(base: str, config: ResolvedFinetune) -> torch.nn.Module:
    """The model of transformers with the same adapters as hooks on its attention's and MLP's last layers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).requires_grad_(False)
    initial = {row.name: initial_weight(row, config.run.seed) for row in parameter_table(config.model) if row.trained}
    for number, layer in enumerate(model.model.layers):
        for name, last in (("attention", layer.self_attn.o_proj), ("mlp", layer.mlp.down_proj)):
            down, up = torch.nn.Linear(48, 8), torch.nn.Linear(8, 48)
            for which, linear in (("down", down), ("up", up)):
                linear.load_state_dict(
                    {leaf: initial[f"blocks.{number}.{name}.adapter.{which}.{leaf}"] for leaf in ("weight", "bias")}
                )
            last.adapter = torch.nn.Sequential(down, torch.nn.GELU(), up)
            last.register_forward_hook(lambda module, inputs, output: output + module.adapter(output))
    return model


def test_it_learns_what_plain_torch_does_and_generates(ranks: RankPool, here: Path, tmp_path: Path) -> None:
    plain = plainly(ranks, here, "houlsby")
    run = RunDir(here / "runs" / "plain-houlsby")
    config = load_run(run)
    assert isinstance(config, ResolvedFinetune)
    model = hooked(base_of(here), config)
    for step, (loss, norm) in enumerate(theirs_trained(model, config), start=1):
        assert plain[step]["loss"] == pytest.approx(loss, rel=1e-5)
        assert plain[step]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    ids = torch.arange(40)[None] % 7 + 100
    with torch.no_grad():
        expected, ours = model(input_ids=ids).logits, read_merged_model(run.step(6))(ids)
    assert torch.allclose(ours[..., : expected.shape[-1]], expected, atol=1e-4)
    assert evaluate(run.path).metrics["validation_loss"] == pytest.approx(plain[6]["validation_loss"], rel=1e-5)
    for exporting in (lambda: export(run.path, tmp_path / "out"), lambda: export_adapter(run.path, tmp_path / "out")):
        with pytest.raises(ConfigError, match=r"has houlsby adapters, which cannot be merged.* or train a LoRA"):
            exporting()
    assert not (tmp_path / "out").exists()
    text = config_of("after-houlsby", str(run))
    with pytest.raises(PreflightError, match=r"has houlsby adapters, which cannot be merged.*Name the base of that"):
        checks.examine(parse_config(text, overrides=[LORA])).demand()


def test_what_goes_with_no_base_is_refused(here: Path) -> None:
    text = config_of("wide", base_of(here))
    with pytest.raises(
        (ConfigError, PreflightError), match=r"bottleneck: 49: is wider than the residual stream \(48\)"
    ):
        checks.examine(parse_config(text, overrides=[HOULSBY.replace("8", "49")])).demand()
