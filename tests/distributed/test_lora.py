"""A LoRA, or the top layers, of a Llama are the same under every layout, resumed or not, and learn what peft's do."""

from pathlib import Path

import pytest
import torch

from megatrain.adapters.dora import MAGNITUDE
from megatrain.adapters.lora import LowRankSection
from megatrain.base.errors import CheckpointError, ConfigError, PreflightError
from megatrain.checkpoint.read import read_tensors
from megatrain.config.resolved import ResolvedFinetune
from megatrain.data.text.tokenizer import Tokenizer, write_tokenizer
from megatrain.evaluation.checkpoint import evaluate
from megatrain.huggingface.export import export
from megatrain.huggingface.export_adapter import export_adapter
from megatrain.huggingface.merged import MergedWeights, read_merged_model
from megatrain.model.architecture import parameter_table, row_of
from megatrain.model.initialization import initial_weight
from megatrain.run.directory import RunDir
from megatrain.run.inputs import load_run
from megatrain.tasks.base import DataShare
from megatrain.tasks.sft.task import SFT
from tests.distributed import classifiers
from tests.distributed.classifiers import make_base, write_reviews
from tests.distributed.lora import DORA, HEAD, HOULSBY, LORA, TOP, base_of, config_of
from tests.distributed.ranks import RankPool
from tests.distributed.runs import start
from tests.distributed.test_classification import examples_of, reported

pytestmark = pytest.mark.distributed

LAYOUTS = {
    "zero0-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=0"),
    "zero1-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=1"),
    "zero2-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=2", "training.micro_batch_size=1"),
    "zero3-dp2": ("cluster.gpus_per_node=2", "parallel.zero_stage=3"),
    "tp2": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=false"),
    "tp2-sp": ("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
    "tp2-full": (
        *("cluster.gpus_per_node=2", "parallel.tensor_parallel=2", "parallel.sequence_parallel=true"),
        *("parallel.activation_checkpointing=full", "parallel.zero_stage=1"),
    ),
    "zero3-selective": (
        *("cluster.gpus_per_node=2", "parallel.zero_stage=3", "parallel.activation_checkpointing=selective"),
        "parallel.compile=true",
    ),
    "cp2": ("cluster.gpus_per_node=2", "parallel.context_parallel=2", "parallel.zero_stage=1"),
}
WHAT = {"lora": LORA, "top": TOP, "dora": DORA, "houlsby": HOULSBY, "head": HEAD}
DEFAULT = {
    ("lora", "tp2"),
    ("lora", "tp2-sp"),
    ("lora", "zero3-dp2"),
    ("top", "zero3-dp2"),
    ("dora", "tp2-sp"),
    ("houlsby", "tp2-sp"),
}


def plainly(ranks: RankPool, here: Path, what: str) -> dict[int, dict[str, float]]:
    """Of a run by one process, which several tests look at."""
    run = RunDir(here / "runs" / f"plain-{what}")
    if not run.steps():
        run = start(ranks, config_of(f"plain-{what}", base_of(here)), WHAT[what])
    return reported(run)


@pytest.mark.parametrize(
    ("what", "layout"),
    [
        pytest.param(what, layout, marks=() if (what, layout) in DEFAULT else pytest.mark.full)
        for what in WHAT
        for layout in LAYOUTS
    ],
)
def test_losses_of_one_process(ranks: RankPool, here: Path, what: str, layout: str) -> None:
    plain = plainly(ranks, here, what)
    run = start(ranks, config_of(f"{layout}-{what}", base_of(here)), WHAT[what], *LAYOUTS[layout])
    found = reported(run)
    assert plain.keys() == found.keys() == set(range(7))
    for step, values in plain.items():
        for name in [*(["loss", "grad_norm"] if step else []), *(["validation_loss"] if step % 3 == 0 else [])]:
            assert found[step][name] == pytest.approx(values[name], rel=1e-5, abs=1e-6), (step, name)
    assert found[6]["loss"] < found[1]["loss"]


@pytest.mark.parametrize(
    "what", ["lora", *(pytest.param(what, marks=pytest.mark.full) for what in ("dora", "houlsby"))]
)
def test_a_resumed_run_is_the_same_to_the_bit_and_on_another_layout(ranks: RankPool, here: Path, what: str) -> None:
    """The checkpoint holds the adapter alone; the base is read again."""
    plain, adapter = plainly(ranks, here, what), WHAT[what]
    text = config_of(f"resumed-{what}", base_of(here))
    start(ranks, text, adapter, "training.steps=3")
    found = reported(start(ranks, text, adapter))
    assert [found[step]["loss"] for step in range(1, 7)] == [plain[step]["loss"] for step in range(1, 7)]
    tensors = read_tensors(RunDir(here / "runs" / f"resumed-{what}").step(6))
    if what == "lora":
        assert tensors.keys() == {f"{kind}.{name}" for kind in ("weight", "exp_avg", "exp_avg_sq") for name in NAMES}
    text = config_of(f"elsewhere-{what}", base_of(here))
    start(ranks, text, adapter, "training.steps=3", *LAYOUTS["tp2-sp"])
    found = reported(start(ranks, text, adapter, *LAYOUTS["zero3-dp2"]))
    for step in range(1, 7):
        assert found[step]["loss"] == pytest.approx(plain[step]["loss"], rel=1e-5)


NAMES = {
    f"blocks.{layer}.{module}.lora_{one}"
    for layer in range(2)
    for module in (
        *(f"attention.{name}" for name in ("query", "key", "value", "output")),
        "mlp.gate",
        "mlp.up",
        "mlp.down",
    )
    for one in "ab"
}


def peft_of(base: str, config: ResolvedFinetune, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """The same LoRA, or DoRA, of peft, on the same model of transformers, with the same start."""
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    adapter = config.finetune.adapter
    assert isinstance(adapter, LowRankSection)
    options = peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,
        use_rslora=adapter.rank_stabilized,
        target_modules="all-linear",
        use_dora=adapter.name == "dora",
    )
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), options)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows = [row for row in parameter_table(config.model) if row.trained]
    assert len(rows) == len(parameters)
    with torch.no_grad():
        for row in rows:
            module, _, leaf = row.name.rpartition(".")
            if leaf == MAGNITUDE:
                continue  # theirs begins as the norm of the weight, ours as what is added to it
            theirs = row_of(config.model, f"{module}.weight").theirs.name.removesuffix(".weight")
            name = f"base_model.model.{theirs}.lora_{leaf[-1].upper()}.default.weight"
            parameters[name].copy_(initial_weight(row, config.run.seed))
    return model


def theirs_trained(model: torch.nn.Module, config: ResolvedFinetune) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step, by torch alone, an example at a time."""
    section, trained = config.optimizer, [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = ([p for p in trained if (p.ndim > 1) is wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": section.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=section.learning_rate,
        betas=section.betas,
        eps=section.eps,
    )
    loader = SFT(config).loader(DataShare(rank=0, size=1))
    measured = []
    for _ in range(config.training.steps):
        batches = loader.next()
        loss = torch.zeros(())
        for batch in batches.micro_batches:
            for ids, labels in examples_of(batch):
                logits = model(input_ids=ids[None]).logits[0].float()
                loss = loss + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        (loss / batches.targets).backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, section.gradient_clipping)
        optimizer.step()
        optimizer.zero_grad()
        measured.append((loss.item() / batches.targets, norm.item()))
    return measured


@pytest.mark.parametrize("what", ["lora", "dora"])
def test_it_learns_what_pefts_does_and_exports_it(ranks: RankPool, here: Path, tmp_path: Path, what: str) -> None:
    plain = plainly(ranks, here, what)
    run = RunDir(here / "runs" / f"plain-{what}")
    config = load_run(run)
    assert isinstance(config, ResolvedFinetune)
    model = peft_of(base_of(here), config)
    for step, (loss, norm) in enumerate(theirs_trained(model, config), start=1):
        assert plain[step]["loss"] == pytest.approx(loss, rel=1e-5)
        assert plain[step]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    import peft
    from transformers import AutoModelForCausalLM

    ids = torch.arange(40)[None] % 7 + 100
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        merged = export(run.path, tmp_path / "merged", dtype="float32").folder
        got = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)(input_ids=ids).logits
        assert torch.allclose(got, expected, atol=1e-4)
        export_adapter(run.path, tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(base_of(here), dtype=torch.float32)
        assert not torch.allclose(base(input_ids=ids).logits, expected, atol=1e-3)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
        assert torch.allclose(theirs(input_ids=ids).logits, expected, atol=1e-4)
        ours = read_merged_model(run.step(6))(ids)
        assert torch.allclose(ours[..., : got.shape[-1]], got, atol=1e-5)
    assert evaluate(run.path).metrics["validation_loss"] == pytest.approx(plain[6]["validation_loss"], rel=1e-5)


@pytest.mark.parametrize("what", ["lora", pytest.param("top", marks=pytest.mark.full)])
def test_evaluate_says_what_the_loop_did(ranks: RankPool, here: Path, what: str) -> None:
    """Of the weights that a checkpoint of trained ones goes with, merged."""
    plain = plainly(ranks, here, what)
    found = evaluate(here / "runs" / f"plain-{what}").metrics
    assert found["validation_loss"] == pytest.approx(plain[6]["validation_loss"], rel=1e-5)


@pytest.mark.full
def test_a_frozen_base_in_bf16_learns_what_pefts_does(ranks: RankPool, here: Path) -> None:
    """Theirs computes with the adapter in fp32, ours rounds it to bf16 for each pass: both keep it in fp32."""
    runs = {
        name: start(ranks, config_of(f"bf16-{name}", base_of(here)), LORA, "training.precision=bf16", *layout)
        for name, layout in (("plain", ()), ("zero3", LAYOUTS["zero3-dp2"]), ("tp2", LAYOUTS["tp2-sp"]))
    }
    config = load_run(runs["plain"])
    assert isinstance(config, ResolvedFinetune)
    theirs = theirs_trained(peft_of(base_of(here), config, torch.bfloat16), config)
    for run in runs.values():
        found = reported(run)
        for step, (loss, norm) in enumerate(theirs, start=1):
            assert found[step]["loss"] == pytest.approx(loss, rel=3e-3), step
            assert found[step]["grad_norm"] == pytest.approx(norm, rel=3e-2), step
    assert reported(runs["plain"])[6]["loss"] < reported(runs["plain"])[1]["loss"] - 0.3


@pytest.mark.full
@pytest.mark.parametrize("first", ["dora"])
def test_any_adapter_that_merges_is_a_base(ranks: RankPool, here: Path, first: str) -> None:
    before = plainly(ranks, here, first)
    base = RunDir(here / "runs" / f"plain-{first}")
    layout = LAYOUTS["tp2-sp"]
    found = reported(start(ranks, config_of(f"after-{first}", str(base.path)), DORA, "training.steps=1", *layout))
    assert found[0]["validation_loss"] == pytest.approx(before[6]["validation_loss"], rel=1e-5)
    assert [*base.references.iterdir()], "so that it keeps the checkpoint"


def test_a_second_stage_starts_from_the_merged_weights(ranks: RankPool, here: Path, tmp_path: Path) -> None:
    """And refers to the first, so that a resume and an export merge both."""
    first = plainly(ranks, here, "lora")
    base = str(here / "runs" / "plain-lora")
    plain = reported(start(ranks, config_of("second", base), LORA, "training.steps=4"))
    assert plain[0]["validation_loss"] == pytest.approx(first[6]["validation_loss"], rel=1e-5)
    text = config_of("second-elsewhere", base)
    start(ranks, text, LORA, "training.steps=3", *LAYOUTS["tp2-sp"])
    found = reported(start(ranks, text, LORA, "training.steps=4", *LAYOUTS["zero3-dp2"]))
    assert found[4]["loss"] == pytest.approx(plain[4]["loss"], rel=1e-5)
    whole = start(ranks, config_of("then-all", base), "training.steps=1", "optimizer.learning_rate=1e-30")
    one, two = (MergedWeights().read(run.step(step)) for run, step in ((RunDir(base), 6), (whole, 1)))
    assert one.keys() == two.keys()
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())


def test_a_base_that_is_gone_or_another_is_refused(ranks: RankPool, here: Path, tmp_path: Path) -> None:
    base = make_base(here / "moved", "llama", here / "tokenizer")
    text = config_of("homeless", str(base))
    run = start(ranks, text, LORA, "training.steps=1")
    base.rename(here / "elsewhere")
    with pytest.raises(PreflightError, match=r"holds trained weights only.*moved, which is not there. Restore it"):
        start(ranks, text, LORA, "training.steps=2")
    with pytest.raises(CheckpointError, match="which is not there"):
        export(run.path, tmp_path / "out")
    start(ranks, text, LORA, "training.steps=2", f"finetune.base={here / 'elsewhere'}")
    assert export(run.path, tmp_path / "out").folder.is_dir()
    (here / "elsewhere").rename(base)
    weights = base / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PreflightError, match=r"elsewhere, which is not there, and .*moved holds others"):
        start(ranks, text, LORA, "training.steps=3")
    base.rename(here / "elsewhere")
    with pytest.raises(CheckpointError, match=r"elsewhere, which is not what it was \(SHA-256 differs\)"):
        export(run.path, tmp_path / "again")


@pytest.mark.full
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_a_classifiers_head_is_trained_with_its_adapter(ranks: RankPool, here: Path, tmp_path: Path, family) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForSequenceClassification

    write_reviews(here / "reviews.jsonl", 300, seed=1)
    write_reviews(here / "held-out.jsonl", 61, seed=2)
    base = base_of(here, family)
    run = start(ranks, classifiers.config_of(f"lora-{family}", base), LORA)
    elsewhere = start(ranks, classifiers.config_of(f"lora-{family}-tp2", base), LORA, *LAYOUTS["tp2-sp"])
    plain, found = reported(run), reported(elsewhere)
    for step in range(1, 7):
        assert found[step]["loss"] == pytest.approx(plain[step]["loss"], rel=1e-5)
        assert found[step]["grad_norm"] == pytest.approx(plain[step]["grad_norm"], rel=1e-4)
    merged = AutoModelForSequenceClassification.from_pretrained(
        export(elsewhere.path, tmp_path / "merged", dtype="float32").folder, dtype=torch.float32
    )
    export_adapter(elsewhere.path, tmp_path / "adapter")
    model = AutoModelForSequenceClassification.from_pretrained(base, dtype=torch.float32, num_labels=3)
    adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter")
    ids = torch.arange(20)[None] % 7 + 100
    with torch.no_grad():
        expected, got = merged.eval()(input_ids=ids).logits, adapted.eval()(input_ids=ids).logits
    assert torch.allclose(got, expected, atol=1e-5)


@pytest.mark.full
def test_biases_and_fused_matrices_of_a_gpt(ranks: RankPool, here: Path, tmp_path: Path) -> None:
    import transformers

    torch.manual_seed(0)
    folder = here / "base-gpt"
    sizes = {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 384, "n_positions": 64}
    config = transformers.AutoConfig.for_model("gpt2", **sizes, initializer_range=0.05, n_inner=64)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    write_tokenizer(Tokenizer.load(here / "tokenizer"), folder)
    plain = reported(start(ranks, config_of("gpt", str(folder)), LORA))
    run = start(ranks, config_of("gpt-tp2", str(folder)), LORA, *LAYOUTS["tp2-sp"])
    for step, values in reported(run).items():
        if step:
            assert values["loss"] == pytest.approx(plain[step]["loss"], rel=1e-5)
    ids = torch.arange(20)[None] % 7 + 100
    merged = export(run.path, tmp_path / "merged", dtype="float32").folder
    theirs = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = read_merged_model(run.step(6)).eval()(ids)
        assert torch.allclose(theirs(input_ids=ids).logits, ours[..., : config.vocab_size], atol=1e-4)
    with pytest.raises(ConfigError, match=r"attention.query.weight: is a part of a larger matrix in transformers"):
        export_adapter(run.path, tmp_path / "adapter")


def test_an_adapters_run_is_evaluated(ranks: RankPool, here: Path) -> None:
    last = plainly(ranks, here, "lora")
    found = evaluate(here / "runs" / "plain-lora")
    assert found.metrics["validation_loss"] == pytest.approx(last[found.step]["validation_loss"], rel=1e-6)
