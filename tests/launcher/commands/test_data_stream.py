"""`megatrain data stream`: what a run sees, under any number of ranks."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from launcher.cli import app
from megatrain.base.errors import ConfigError
from megatrain.config.file import load_config
from megatrain.data.checks.preview_samples import preview_samples
from megatrain.data.loading.loader import TrainLoader
from megatrain.data.loading.masking import Masking
from megatrain.run.directory import RunDir
from tests.launcher.conftest import saved
from tests.project import make_project, megatrain


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = make_project(tmp_path_factory.mktemp("project"))
    (folder / "more.txt").write_text("\n".join(f"{n} and {n} make {2 * n}." for n in range(4000)))
    arguments = ["--out", "data/more", "--tokenizer", "data/tokenizer", "--block-tokens", "4096"]
    megatrain(folder, "data", "prepare", "more.txt", *arguments)
    text = (folder / "run.yaml").read_text()
    train = "[{path: data/train, weight: 3.0}, {path: data/more}]"
    text = text.replace(
        "train: [{path: data/train}]", f"train: {train}, phases: [{{from_sample: 50, weights: [1, 1]}}]"
    )
    (folder / "run.yaml").write_text(text.replace("global_batch_size: 8", "global_batch_size: 24, micro_batch_size: 2"))
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


def stream(*arguments):
    result = CliRunner().invoke(app, ["data", "stream", "run.yaml", *map(str, arguments)])
    if result.exception:
        raise result.exception
    return result.stdout.splitlines()


def samples(*arguments):
    return [json.loads(line) for line in stream("--json", *arguments)]


def test_it_is_what_the_loader_reads():
    config = load_config(Path("run.yaml"))
    loader = TrainLoader(config.data, global_batch_size=24, micro_batch_size=24, data_rank=0, data_size=1, seed=1337)
    expected = np.concatenate([loader.next().micro_batches[0].input_ids.numpy() for _ in range(3)])
    loader.close()
    got = samples("--start", 0, "--count", 72)
    assert [sample["position"] for sample in got] == list(range(72))
    assert [sample["tokens"][:-1] for sample in got] == expected.tolist()
    assert {sample["source"] for sample in got} == {"data/train", "data/more"}
    assert [sample["phase"] for sample in got] == [0] * 50 + [1] * 22
    keys = ["position", "phase", "source", "epoch", "shard", "block", "row", "tokens", "hash"]
    assert all(list(sample) == keys for sample in got)
    for sample in got:
        words = np.array(sample["tokens"], dtype="<u4").tobytes()
        assert sample["hash"] == hashlib.blake2b(words, digest_size=8).hexdigest()


def test_fields_are_set_as_for_every_verb():
    as_given = samples("--step", 2)
    assert samples("run.seed=1337", "--step", 2) == as_given
    assert [sample["hash"] for sample in samples("run.seed=7", "--step", 2)] != [s["hash"] for s in as_given]
    assert len(samples("training.global_batch_size=48", "--step", 1)) == 48


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 12])
def test_ranks_share_the_same_samples(ranks):
    whole = {sample["position"]: sample for sample in samples("--start", 40, "--count", 30)}
    if ranks < 4:
        parts = [samples("--start", 40, "--count", 30, "--ranks", ranks, "--rank", rank) for rank in range(ranks)]
        assert all(sample.pop("rank") == rank for rank, part in enumerate(parts) for sample in part)
        assert {sample["position"]: sample for part in parts for sample in part} == whole
        assert sum(map(len, parts)) == 30
    together = samples("--start", 40, "--count", 30, "--ranks", ranks)
    assert [sample["rank"] for sample in together] == [position % 24 // 2 % ranks for position in range(40, 70)]


def test_a_step_is_the_one_that_metrics_count():
    got = samples("--step", 3)
    assert [sample["position"] for sample in got] == list(range(48, 72))
    assert samples("--step", 3, "--count", 1) == got[:1]


def test_lines_for_people_and_text():
    first, text, second, _ = stream("--start", 49, "--count", 2, "--text")
    assert first.startswith("sample 49 · phase 0 · epoch 0 · data/")
    assert "· shard-00000.tar · block " in first
    assert second.startswith("sample 50 · phase 1 · ")
    assert " is " in text or " make " in text
    (sample,) = samples("--start", 49, "--count", 1, "--text")
    assert text.strip() == json.dumps(sample["text"][:100] + "…", ensure_ascii=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "1", "--step", "1"], "--start and --step: give one of them"),
        (["--rank", "0"], "--rank 0: must be below --ranks"),
        (["--ranks", "2", "--rank", "2"], r"--rank 2: must be below --ranks (2)"),
        (["--ranks", "5"], "training.global_batch_size: 24: must be a multiple of"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        stream(*arguments)


def test_the_real_command(folder):
    said = megatrain(folder, "data", "stream", "run.yaml", "--start", "5", "--count", "1", "--json")
    assert [json.loads(said)] == samples("--start", 5, "--count", 1)


def test_a_step_of_a_run_is_where_its_batch_sizes_have_led(folder, monkeypatch):
    """Two steps of 10 samples, then steps of 24."""
    run = RunDir(folder / "runs/changed")
    saved(run, 3, samples=44, batches=[[0, 0, 10], [2, 20, 24]])
    run.config.write_text((folder / "run.yaml").read_text(), encoding="utf-8")

    def positions(*arguments):
        result = CliRunner().invoke(app, ["data", "stream", str(run), "--json", *map(str, arguments)])
        if result.exception:
            raise result.exception
        return [json.loads(line)["position"] for line in result.stdout.splitlines()]

    assert positions("--step", 2) == list(range(10, 20))
    assert positions("--step", 3) == list(range(20, 44))
    assert positions("--step", 5) == list(range(68, 92))
    parts = [positions("--step", 3, "--ranks", 2, "--rank", rank) for rank in range(2)]
    assert parts[0][:2] == [20, 21], "the first micro-batch of the first rank"
    assert sorted(parts[0] + parts[1]) == list(range(20, 44))
    with pytest.raises(ConfigError, match=r"step 2 had a global batch of 10, and .* now has 24"):
        positions("--step", 2, "--ranks", 2)


def test_hidden_tokens_of_masked_language_modelling() -> None:
    """`megatrain data preview`."""
    config = load_config("run.yaml")
    (plain,) = preview_samples(config, 1, None, None)
    special = np.zeros(10_000, dtype=np.bool_)
    masking = Masking(seed=1, rate=0.2, mask_share=1.0, random_share=0.0, mask_id=33, is_special=special)
    (hidden,) = preview_samples(config, 1, None, masking)
    assert plain.targets == len(plain.token_ids) - 1
    changed = [one for one, other in zip(hidden.token_ids, plain.token_ids, strict=True) if one != other]
    assert set(changed) == {33}
    assert hidden.targets == round(0.2 * len(plain.token_ids))
    labels = [piece for piece in hidden.pieces if piece.label is not None]
    assert len(labels) == hidden.targets
    assert sum(piece.tokens for piece in hidden.pieces) == len(hidden.token_ids)


def test_ranks_share_each_batch_of_a_warmup():
    warmup = "training.batch_size_warmup=[{until_sample: 10, global_batch_size: 4}]"
    assert [sample["position"] for sample in samples("--step", 3, warmup)] == [8, 9, 10, 11]
    assert [sample["position"] for sample in samples("--step", 4, warmup)] == list(range(12, 36))
    got = samples("--count", 36, "--ranks", 2, warmup)
    assert [sample["rank"] for sample in got] == 9 * [0, 0, 1, 1]
    mine = samples("--start", 9, "--count", 5, "--ranks", 2, "--rank", 1, warmup)
    assert [sample["position"] for sample in mine] == [10, 11]
