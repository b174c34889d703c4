"""Weights in Hugging Face's format are read by any layout, and compute what transformers computes."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from megatrain.base.errors import CheckpointError
from megatrain.checkpoint.read import read_tensors
from megatrain.huggingface.config_json import read_pretrained
from megatrain.huggingface.export import export
from megatrain.huggingface.names import from_huggingface
from megatrain.huggingface.reader import PretrainedReader
from megatrain.model.architecture import row_of
from megatrain.model.initialization import initial_weight
from megatrain.run.directory import RunDir
from tests.distributed.layouts import Layout, Run, config_of, documents, global_batch, model_section
from tests.distributed.ranks import RankPool

pytestmark = pytest.mark.distributed

LAYOUTS = [
    Layout(0, 1, 1),
    Layout(1, 2, 2, sequence_parallel=True),
    Layout(2, 1, 2, "bf16"),
    Layout(3, 2, 1),
    Layout(3, 1, 2, context=2),
]


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as transformers saves it, in several files."""
    from transformers import LlamaConfig, LlamaForCausalLM

    section = model_section()
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=section.num_hidden_layers,
        hidden_size=section.hidden_size,
        num_attention_heads=section.num_attention_heads,
        num_key_value_heads=section.key_value_heads,
        intermediate_size=section.intermediate_size,
        vocab_size=section.padded_vocab_size,
        rms_norm_eps=section.rms_norm_eps,
        initializer_range=0.2,
        max_position_embeddings=64,
    )
    folder = tmp_path_factory.mktemp("theirs")
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def loaded_loss(layout: Layout, base: str, folder: str, drawn: tuple[str, ...] = ()) -> float:
    """Start from a model folder; the summed loss of a batch, and a checkpoint of what was loaded."""
    from megatrain.checkpoint.store import CheckpointStore
    from megatrain.train.checkpointing import Checkpointer, Start

    run = Run(layout)
    store = CheckpointStore(RunDir(folder), run.mesh.control_group, layout="", keep_last=1, report=print)
    checkpointer = Checkpointer(config_of(layout), run.engine, store)
    assert checkpointer.load_weights(Path(base)) == Start(Path(base), drawn)
    checkpointer.save(0, {})
    loss = sum(run.engine.evaluate(batch)["loss"] for batch in run.micro_batches(0))
    torch.distributed.all_reduce(loss, group=run.mesh.dp_cp_group)
    return float(loss)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_any_layout_reads_its_slices(ranks: RankPool, theirs: Path, tmp_path: Path, layout: Layout) -> None:
    losses = ranks.run(layout.world_size, loaded_loss, layout, str(theirs), str(tmp_path))
    assert len(set(losses)) == 1

    files: dict[str, torch.Tensor] = {}
    for file in theirs.glob("*.safetensors"):
        files |= load_file(file)
    expected = from_huggingface(files, model_section())
    got = read_tensors(RunDir(tmp_path).step(0), kind="weight")
    assert got.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(got[name], tensor.float()), name

    from transformers import AutoModelForCausalLM

    ids, labels = global_batch(0)
    model = AutoModelForCausalLM.from_pretrained(theirs, dtype=torch.float32)
    apart = documents()[:, :, None] == documents()[:, None, :]
    mask = (apart & torch.ones(apart.shape[1:], dtype=torch.bool).tril())[:, None]
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits
        wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    assert losses[0] == pytest.approx(float(wanted), rel=1e-5 if layout.precision == "fp32" else 1e-2)


def test_a_head_that_is_not_there_is_drawn_the_same_on_any_layout(
    ranks: RankPool, theirs: Path, tmp_path: Path
) -> None:
    """Of a folder of the bare model, as of LlamaModel."""
    files: dict[str, torch.Tensor] = {}
    for file in theirs.glob("*.safetensors"):
        files |= load_file(file)
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(theirs / "config.json", bare)
    head = "lm_head.weight"
    save_file(
        {name.removeprefix("model."): tensor for name, tensor in files.items() if name != head},
        bare / "model.safetensors",
    )
    layout = Layout(1, 2, 2, sequence_parallel=True)
    ranks.run(layout.world_size, loaded_loss, layout, str(bare), str(tmp_path), ("head.weight",))
    expected = from_huggingface(files, model_section())
    seed = config_of(layout).run.seed
    expected["head.weight"] = initial_weight(row_of(model_section(), "head.weight"), seed)
    got = read_tensors(RunDir(tmp_path).step(0), kind="weight")
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], tensor.float()) for name, tensor in expected.items())


def test_what_is_exported_is_read_again(ranks: RankPool, theirs: Path, tmp_path: Path) -> None:
    """From their format into a checkpoint and back: the same bits."""
    from megatrain.config.file import dump_config

    run = RunDir(tmp_path / "run")
    ranks.run(2, loaded_loss, Layout(1, 1, 2), str(theirs), str(run.path))
    run.config.write_text(dump_config(config_of(Layout(1, 1, 2))), encoding="utf-8")
    folder = export(run.step(0), tmp_path / "out", dtype="float32").folder
    mine = load_file(folder / "model.safetensors")
    for file in theirs.glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            assert torch.equal(mine[name], tensor), name


def test_what_does_not_fit_is_named(theirs: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no \*.safetensors. Weights in pickles"):
        PretrainedReader(tmp_path, model_section())
    wider = model_section().model_copy(update={"intermediate_size": 96, "num_hidden_layers": 4})
    with pytest.raises(CheckpointError) as caught:
        PretrainedReader(theirs, wider)
    said = str(caught.value)
    assert "model.layers.3.mlp.up_proj.weight: is missing" in said
    assert "model.layers.0.mlp.up_proj.weight: has shape (88, 72), the model section says (96, 72)" in said


def test_their_configuration_is_ours(theirs: Path) -> None:
    section, longest = read_pretrained(theirs)
    assert section == model_section().model_copy(update={"initializer_range": 0.2, "head_dim": section.head_dim})
    assert (section.head_size, longest) == (6, 64)
