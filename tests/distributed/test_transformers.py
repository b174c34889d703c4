"""Models of transformers train under ZeRO as in one plain process, resume bit for bit, and go both ways."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from launcher.commands.render import plan_text
from launcher.planning.plan import decided, make_plan
from launcher.preflight import checks
from megatrain.base.errors import MegatrainError
from megatrain.checkpoint.read import read_tensors
from megatrain.config.file import load_own_config, parse_config
from megatrain.huggingface.export import export
from megatrain.model.families.transformers import resolve
from megatrain.model.families.transformers.section import TransformersSection
from megatrain.run.directory import RunDir
from tests.distributed.layouts import Layout, Run, plain_run
from tests.distributed.ranks import RankPool
from tests.distributed.runs import make_project, start
from tests.transformers_models import answer, said, section_of

pytestmark = pytest.mark.distributed

STEPS = 3
CASES = [
    ("opt", Layout(3, 1, 2, checkpointing="full")),
    ("gpt_neox", Layout(1, 1, 2, micro_batch=4)),
    ("olmo2", Layout(3, 1, 2, checkpointing="selective")),
    ("opt", Layout(2, 1, 2)),
    ("opt", Layout(0, 1, 1)),
    ("cohere", Layout(3, 1, 2)),
    ("opt", Layout(1, 1, 1, compile=True)),
    ("olmo2", Layout(3, 1, 2, compile=True, checkpointing="selective")),
]
PRETRAIN = """
run: {name: NAME}
model: {family: transformers, configuration: MODEL}
tokenizer: {path: tokenizer}
data: {train: [{path: a}], validation: [{path: b}], sequence_length: 40}
training: {steps: 4, global_batch_size: 4, micro_batch_size: 2, precision: fp32}
evaluation: {interval_steps: 2, sequences: 4}
parallel: {compile: false, zero_stage: 3, activation_checkpointing: full}
checkpoint: {interval_steps: 2}
cluster: {nodes: 1, gpus_per_node: 2, hardware: cpu}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
"""
SFT = """
run: {name: answers}
task: {name: sft}
finetune: {base: BASE, train: [pairs.jsonl], validation: [pairs.jsonl], sequence_length: 30}
training: {steps: 2, global_batch_size: 2, micro_batch_size: 1, precision: fp32}
evaluation: {interval_steps: 2}
parallel: {compile: false, zero_stage: 1, activation_checkpointing: none}
checkpoint: {interval_steps: 2}
cluster: {nodes: 1, gpus_per_node: 2, hardware: cpu}
monitor: {log_interval_steps: 1, sinks: [], health_check: false}
"""


def trained(section: str, layout: Layout) -> list[tuple[float, float]]:
    return Run(layout, model=TransformersSection.model_validate_json(section)).train(0, STEPS)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(*case, marks=() if case in CASES[:2] else pytest.mark.full, id="-".join(map(str, case)))
        for case in CASES
    ],
)
def test_losses_and_norms_of_a_plain_process(ranks: RankPool, name: str, layout: Layout) -> None:
    section = section_of(name)
    plain = plain_run("fp32", section=section, steps=STEPS)
    for found in ranks.run(layout.world_size, trained, section.model_dump_json(), layout):
        for (loss, norm), (expected_loss, expected_norm) in zip(found, plain, strict=True):
            assert loss == pytest.approx(expected_loss, rel=1e-5)
            assert norm == pytest.approx(expected_norm, rel=1e-5)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def here(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In the project's folder; models are described in this process, which is quicker."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(resolve, "_answer", answer)
    return project


def pretraining(name: str, model: str) -> str:
    configuration = {key: value for key, value in said(model).items() if key != "vocab_size"}
    return PRETRAIN.replace("NAME", name).replace("MODEL", json.dumps(configuration))


def weights(run: RunDir, step: int) -> dict[str, torch.Tensor]:
    return {
        f"{kind}.{name}": tensor
        for kind in ("weight", "exp_avg")
        for name, tensor in read_tensors(run.step(step), kind=kind).items()
    }


def test_a_run_resumes_bit_for_bit_and_goes_both_ways(ranks: RankPool, here: Path) -> None:
    from transformers import AutoModelForCausalLM

    text = pretraining("neox", "gpt_neox")
    run = start(ranks, text)
    model = load_own_config(run.config).model
    assert model is not None
    assert model.padded_vocab_size == 384  # of the tokenizer, rounded up
    before = weights(run, 4)
    shutil.rmtree(run.step(4))
    start(ranks, text)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(run, 4).items())

    exported = export(run.path, here / "exported", dtype="float32")
    assert exported.auto_class == "AutoModelForCausalLM"
    theirs = AutoModelForCausalLM.from_pretrained(here / "exported", dtype=torch.float32)
    assert type(theirs).__name__ == "GPTNeoXForCausalLM"
    rows = theirs.config.vocab_size
    assert rows <= 384
    ours = read_tensors(run.step(4), kind="weight")
    for name, tensor in theirs.state_dict().items():
        expected = ours[f"model.{name}"]
        assert torch.equal(tensor, expected[:rows] if len(expected) == 384 else expected), name

    tuned = start(ranks, SFT.replace("BASE", "exported"))
    losses = [json.loads(line)["loss"] for line in tuned.metrics.read_text().splitlines() if "loss" in json.loads(line)]
    assert len(losses) == 2
    again = export(tuned.path, here / "again", dtype="float32")
    assert again.parameters == exported.parameters
    files = load_file(here / "again" / "model.safetensors")
    assert files.keys() == load_file(here / "exported" / "model.safetensors").keys()
    for name, tensor in read_tensors(tuned.step(2), kind="weight").items():
        assert torch.equal(files[name.removeprefix("model.")], tensor)


def test_the_plan_says_that_it_is_rough(here: Path) -> None:
    config = parse_config(pretraining("planned", "cohere"))
    report = make_plan(config)
    text = plan_text(decided(config, report.chosen), report)
    assert "planned roughly: the model is transformers' own code" in text
    assert report.chosen.layout.tensor_parallel == 1
    assert any("tensor_parallel=2: nothing says how layers" in rejected.reason for rejected in report.rejected)


@pytest.mark.parametrize(
    ("model", "overrides", "message"),
    [
        ("opt", ["parallel.tensor_parallel=2"], "parallel.tensor_parallel: 2: nothing says how layers"),
        ("opt", ["parallel.context_parallel=2"], "parallel.context_parallel: 2: nothing says how layers"),
        ("opt", ["training.precision=fp8"], "training.precision: 'fp8': is of linear layers"),
        ("opt", ["data.sequence_length=80"], "longer than the model's"),
        ("bloom", [], "data.attend_across_documents: False: documents of a sequence would see each other"),
        ("mamba", ["data.attend_across_documents=true"], "transformers begins backbone"),
    ],
)
def test_what_cannot_be_is_refused_before_the_start(here: Path, model: str, overrides: list[str], message: str) -> None:
    with pytest.raises(MegatrainError) as refused:
        checks.examine(parse_config(pretraining("refused", model), overrides=overrides)).demand()
    assert message in str(refused.value)
