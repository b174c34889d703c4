"""The promise of the whole pipeline: whatever dies and however many ranks resume, the model sees the same stream."""

import json
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatrain.data.loading.shards import PreparedData
from tests.data.elastic_worker import SAVE_EVERY
from tests.project import ROOT

GLOBAL_BATCH = 120
STEPS = 80
WORLD_SIZES = [8, 3, 5, 1, 8]
THREADS = [1, 3, 2, 4, 1]
STAGE = 2510  # within a global batch


@pytest.fixture(scope="module")
def data(tmp_path_factory, make_corpus, prepare_text, tokenizer_folder) -> dict:
    """Two sources, mixed, packed by best fit, in two phases; both begin further epochs on the way."""
    folder = tmp_path_factory.mktemp("elastic")
    sources = []
    for name, documents, seed in (("a", 300, 11), ("b", 100, 12)):
        corpus = make_corpus(folder / f"{name}.jsonl", documents=documents, seed=seed)
        prepare_text(corpus, folder / name, tokenizer_folder, pack="best_fit", sequence_length=32)
        sources.append({"path": str(folder / name), "weight": 3.0 if name == "a" else 1.0})
    return {
        "sequence_length": 32,
        "train": sources,
        "phases": [{"from_sample": STAGE, "weights": [1.0, 2.0], "sequence_length": 16}],
        "shuffle": {"streams": 16, "window_blocks": 2},
    }


def run(folder: Path, data: dict, ranks: int, threads: int, *, kill_after: int | None = None, delay: float = 0) -> dict:
    """Start ranks, that end or are killed some steps and a moment later; what they saved."""
    spec = {
        "data": data | {"reading": {"threads": threads}},
        "ranks": ranks,
        "global_batch_size": GLOBAL_BATCH,
        "micro_batch_size": GLOBAL_BATCH // ranks // (2 if ranks == 3 else 1),
        "steps": STEPS,
        "seed": 5,
        "saved": str(folder / "saved.json"),
        "kill_after": kill_after,
        "kill_delay": delay,
    }
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "tests.data.elastic_worker", str(folder / "spec.json")]
    ended = subprocess.run(command, cwd=ROOT, timeout=120, check=False)
    assert ended.returncode == (0 if kill_after is None else -signal.SIGKILL)
    return json.loads((folder / "saved.json").read_text())


@pytest.mark.timeout(300)
def test_killed_and_resumed_on_other_ranks_and_threads_the_stream_is_the_same(tmp_path, data):
    whole = run(make(tmp_path / "whole"), data, 1, 1)
    assert whole["step"] == STEPS
    rows = [PreparedData(source["path"]).manifest.rows(32) for source in data["train"]]
    given = STAGE * 3 // 4 + (STEPS * GLOBAL_BATCH - STAGE) // 3
    assert given > 1.5 * rows[0], "the larger source must begin its second epoch"
    for attempt in range(2):
        chance = random.Random(attempt)
        folder = make(tmp_path / f"killed-{attempt}")
        steps = []
        for ranks, threads in zip(WORLD_SIZES[:-1], THREADS[:-1], strict=True):
            moment = {"kill_after": chance.randrange(SAVE_EVERY, STEPS // 8), "delay": chance.random() / 50}
            steps.append(run(folder, data, ranks, threads, **moment)["step"])
        assert steps == sorted(set(steps)), "each world size got on"
        assert steps[-1] < STEPS, "the last one has something left to do"
        assert run(folder, data, WORLD_SIZES[-1], THREADS[-1]) == whole


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_what_the_worker_hashes_changes_with_the_order(data, tmp_path):
    """The comparison above would notice another order: another seed or stream count gives another hash."""
    first = run(make(tmp_path / "a"), data, 1, 1)
    other = run(make(tmp_path / "b"), data | {"shuffle": {"streams": 17, "window_blocks": 2}}, 1, 1)
    assert first["digest"] != other["digest"]
