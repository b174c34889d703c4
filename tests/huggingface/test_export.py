"""What is exported is what transformers computes with: the same logits, the same tokens."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from launcher.runs.inputs import keep_inputs
from megatrain.base.errors import CheckpointError, ConfigError
from megatrain.checkpoint.read import read_model
from megatrain.config import FinetuneConfig
from megatrain.config.file import dump_config, load_config, parse_config
from megatrain.data.text.tokenizer import Tokenizer
from megatrain.huggingface import export as exporting
from megatrain.huggingface.config_json import read_pretrained
from megatrain.huggingface.export import DTYPES, export
from megatrain.run.directory import RunDir
from megatrain.run.inputs import own_positions
from tests.decided import DECIDED
from tests.trained import SEQUENCE, make_trained_run, write_checkpoint


@pytest.fixture
def run(tmp_path):
    return make_trained_run(tmp_path)


def theirs(folder, **options):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard_bytes", [10**9, 10_000], ids=["one file", "many files"])
def test_transformers_gives_the_same_logits(tmp_path, tied, shard_bytes) -> None:
    run = make_trained_run(tmp_path, tied=tied)
    done = export(run.path, tmp_path / "out", dtype="float32", shard_bytes=shard_bytes)
    files = sorted(file.name for file in done.folder.glob("*.safetensors"))
    assert len(files) == done.files
    assert (done.files > 1) == (done.folder / "model.safetensors.index.json").is_file() == (shard_bytes < 10**9)
    rows = Tokenizer.load(tmp_path / "tokenizer").vocab_size
    ids = torch.randint(0, rows, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = read_model(run.step(10))(ids), theirs(done.folder, dtype=torch.float32)(input_ids=ids).logits
    assert expected.std() > 0.1
    assert got.shape[-1] == rows < expected.shape[-1], "rows that pad the vocabulary are no tokens: none can be drawn"
    torch.testing.assert_close(got, expected[..., :rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_dtype_is_that_of_the_weights(tmp_path, run, dtype) -> None:
    done = export(run.path, tmp_path / "out", dtype=dtype)
    model = theirs(done.folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert sum(parameter.numel() for parameter in model.parameters()) == done.parameters


def test_the_tokenizer_comes_along(tmp_path, run) -> None:
    from transformers import AutoTokenizer

    folder = export(run.path, tmp_path / "out").folder
    mine, loaded = Tokenizer.load(tmp_path / "tokenizer"), AutoTokenizer.from_pretrained(folder)
    text = "once upon a time, naïve 12345"
    assert loaded(text, add_special_tokens=False)["input_ids"] == list(mine.encode(text))
    assert (loaded.eos_token_id, loaded.pad_token_id) == (mine.eos_id, mine.pad_id)
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == mine.eos_id


def test_a_folder_that_holds_something_stays_as_it_is(tmp_path, run) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(ConfigError, match="already exists"):
        export(run.path, out)
    assert [file.name for file in out.iterdir()] == ["mine.txt"]


def test_of_a_damaged_checkpoint_nothing_is_left(tmp_path, run) -> None:
    next(run.step(10).glob("*.distcp")).write_bytes(b"x")
    with pytest.raises(CheckpointError, match="none of 1 checkpoints verifies"):
        export(run.path, tmp_path / "out")
    assert not [file for file in tmp_path.iterdir() if "out" in file.name]


TEMPLATE = "{% for m in messages %}<|turn|>{{ m['role'] }}: {{ m['content'] }}<|eot|>{% endfor %}"


def write_base(folder: Path, *, end: str = "<|end|>", eos: object = None) -> None:
    """A Llama as transformers writes it, with all that such a folder says beside its weights."""
    from tokenizers import Tokenizer as Model
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    model = Model.from_file(str(folder.parent / "tokenizer/tokenizer.json"))
    model.add_special_tokens(["<|begin|>", "<|end|>", "<|eot|>", "<|turn|>"])
    ids = {name: model.token_to_id(name) for name in ("<|begin|>", "<|end|>", "<|eot|>", "<|turn|>")}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<|begin|>", eos_token=end, additional_special_tokens=["<|eot|>", "<|turn|>"]
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.model_max_length = 64
    ends = {"bos_token_id": ids["<|begin|>"], "eos_token_id": eos or [ids["<|end|>"], ids["<|eot|>"]]}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    rows = model.get_vocab_size() + 3  # trained, though no token has them
    config = LlamaConfig(vocab_size=rows, max_position_embeddings=64, attention_dropout=0.1, **sizes, **ends)
    theirs = LlamaForCausalLM(config)
    theirs.generation_config = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, **ends)
    theirs.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def tuned(folder: Path, base: str, sequence_length: int) -> RunDir:
    """A fine-tuning of it with one checkpoint, whose weights are random."""
    run = RunDir(folder / "runs/tuned")
    section, _ = read_pretrained(folder / base)
    write_checkpoint(run, 20, section)
    values = {
        "run": {"name": "tuned"},
        "model": section.model_dump(),
        "tokenizer": {"path": str(folder / base)},
        "finetune": {"base": str(folder / base), "train": ["none"], "sequence_length": sequence_length},
        "training": {"steps": 1, "global_batch_size": 1},
    }
    config = parse_config(json.dumps(values), overrides=DECIDED)
    keep_inputs(run, config)
    run.config.write_text(dump_config(config), encoding="utf-8")
    return run


class TestOfAFineTuning:
    """What the base said of itself is said of the fine-tuned model."""

    def test_nothing_is_lost(self, tmp_path) -> None:
        from transformers import AutoConfig, AutoTokenizer, GenerationConfig

        make_trained_run(tmp_path)
        write_base(tmp_path / "base")
        run = tuned(tmp_path, "base", 16)
        before, tokens = AutoConfig.from_pretrained(tmp_path / "base"), AutoTokenizer.from_pretrained(tmp_path / "base")
        drawn = GenerationConfig.from_pretrained(tmp_path / "base")
        shutil.move(tmp_path / "base", tmp_path / "gone")  # by its own copies
        folder = export(run.path, tmp_path / "out", dtype="float32").folder
        after, loaded = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        after.name_or_path = before.name_or_path
        assert after.to_dict() == before.to_dict()
        assert loaded.special_tokens_map == tokens.special_tokens_map
        assert loaded.model_max_length == tokens.model_max_length == 64
        assert loaded.get_vocab() == tokens.get_vocab()
        chat = [{"role": "user", "content": "once"}]
        assert loaded.apply_chat_template(chat) == tokens.apply_chat_template(chat)
        assert GenerationConfig.from_pretrained(folder).to_dict() == drawn.to_dict()
        model = theirs(folder, dtype=torch.float32)
        ids = torch.randint(0, before.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected, got = read_model(run.step(20))(ids), model(input_ids=ids).logits
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    def test_longer_sequences_than_the_bases(self, tmp_path) -> None:
        make_trained_run(tmp_path)
        write_base(tmp_path / "base")
        folder = export(tuned(tmp_path, "base", 128).path, tmp_path / "out").folder
        assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 128
        assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 128

    def test_what_responses_ended_with_ends_a_text(self, tmp_path) -> None:
        make_trained_run(tmp_path)
        write_base(tmp_path / "base", end="<|eot|>", eos=7)
        run = tuned(tmp_path, "base", 16)
        folder = export(run.path, tmp_path / "out").folder
        end = Tokenizer.load(run.tokenizer).eos_id
        for name in ("config.json", "generation_config.json"):
            assert json.loads((folder / name).read_text())["eos_token_id"] == [7, end]

    def test_what_is_true_of_the_bases_files_only_is_dropped(self, tmp_path) -> None:
        make_trained_run(tmp_path)
        write_base(tmp_path / "base")
        file = tmp_path / "base/config.json"
        said = json.loads(file.read_text())
        file.write_text(json.dumps(said | {"auto_map": {"AutoModel": "x.Y"}, "their_own": 5}))
        written = json.loads(
            (export(tuned(tmp_path, "base", 16).path, tmp_path / "out").folder / "config.json").read_text()
        )
        assert "auto_map" not in written
        assert written["their_own"] == 5

    def test_an_older_run_without_copies(self, tmp_path) -> None:
        make_trained_run(tmp_path)
        write_base(tmp_path / "base")
        run = tuned(tmp_path, "base", 16)
        for folder in (run.tokenizer, run.base):
            shutil.rmtree(folder)
        run.inputs.unlink()
        said = []
        folder = export(run.path, tmp_path / "out", warn=said.append).folder
        assert (folder / "chat_template.jinja").read_text() == TEMPLATE
        assert json.loads((folder / "config.json").read_text())["max_position_embeddings"] == 64
        assert "has no copy of its tokenizer" in said[0]


def test_the_longest_sequence_is_that_of_the_base_run(tmp_path) -> None:
    run = make_trained_run(tmp_path)
    keep_inputs(run, load_config(run.config))
    short = {"sequence_length": SEQUENCE // 2, "base": str(run.path), "train": ["none"]}
    values = {"run": {"name": "t"}, "finetune": short, "training": {"steps": 1, "global_batch_size": 1}}
    config = FinetuneConfig.model_validate(values | {"tokenizer": {"path": str(run.tokenizer)}})
    second = RunDir(tmp_path / "second")
    keep_inputs(second, config)
    assert own_positions(second, config) == SEQUENCE


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_value_that_the_dtype_cannot_hold(tmp_path, run, dtype, monkeypatch) -> None:
    value = 1e6 if dtype == "float16" else float("nan")
    monkeypatch.setattr(
        exporting, "read_tensors", lambda *_, names, **__: {n: torch.full((384, 16), value) for n in names}
    )
    with pytest.raises(CheckpointError, match=r"has values that float16 cannot hold|holds NaN or infinity"):
        export(run.path, tmp_path / "out", dtype=dtype)
    assert not [file for file in tmp_path.iterdir() if "out" in file.name]


def test_a_full_disk_leaves_nothing(tmp_path, run, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(exporting, "save_file", full)
    with pytest.raises(CheckpointError, match=r"out: cannot be written: .*No space left on device") as caught:
        export(run.path, tmp_path / "out")
    assert caught.value.exit_code == 5
    assert not [file for file in tmp_path.iterdir() if "out" in file.name]
