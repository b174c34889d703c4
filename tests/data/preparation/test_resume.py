"""A preparation that was killed ends, when it is run again, with the same bytes."""

import contextlib
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatrain.data.folder.manifest import read_manifest
from megatrain.data.preparation.prepare import PrepareOptions, prepare
from megatrain.data.preparation.selection import SelectionPolicy
from tests.data.preparation.test_prepare import KilledError, contents


@pytest.mark.parametrize(
    "how",
    [
        {"shard_bytes": 2 * 256 * 2},
        {"shard_bytes": 2 * 256 * 2, "pack": "best_fit", "sequence_length": 64},
        {"shard_bytes": 4 * 256 * 2, "selection": SelectionPolicy(duplicates="near", minimum_characters=60)},
    ],
    ids=["concat", "best_fit", "selection"],
)
def test_killed_at_any_write_and_run_again_it_ends_with_the_same_bytes(
    tmp_path, make_corpus, tokenizer_folder, prepare_text, monkeypatch, how
):
    corpus = make_corpus(tmp_path / "a.jsonl", documents=20, seed=4)
    monkeypatch.setattr("megatrain.data.preparation.prepare._SELECTION_DOCUMENTS", 4)
    monkeypatch.setattr("megatrain.data.preparation.prepare.WINDOW_TOKENS", 700)
    monkeypatch.setattr("megatrain.data.preparation.prepare._WINDOW_ROWS", 1)

    def run(folder):
        options = {"holdout": 0.3, "holdout_out": folder / "held"} | how
        prepare_text(corpus, folder / "train", tokenizer_folder, **options)
        return contents(folder / "train"), contents(folder / "held")

    syncs = 0

    def counted(descriptor):
        """A file is synced before its rename, its folder after: a kill here falls on either side of every rename."""
        nonlocal syncs
        syncs += 1
        if syncs == killed_at:
            raise KilledError

    monkeypatch.setattr(os, "fsync", counted)
    killed_at = 0
    expected = run(tmp_path / "whole")
    writes = syncs
    assert writes > 30
    assert len(read_manifest(tmp_path / "whole" / "train").shards) >= 2
    for first in range(1, writes + 1):
        folder, syncs, killed_at = tmp_path / "killed", 0, first
        with pytest.raises(KilledError):
            run(folder)
        if first % 3 == 0:  # and once more, while it goes on, if so much is left to do
            syncs, killed_at = 0, 9
            with contextlib.suppress(KilledError):
                run(folder)
        syncs, killed_at = 0, 0
        assert run(folder) == expected, f"after a kill at write {first} of {writes}"
        shutil.rmtree(folder)


def test_sigkill_and_again_with_worker_processes(tmp_path, corpus, tokenizer_folder, prepared):
    """The real signal, at growing times, until a run comes through. No worker outlives its parent."""
    code = (
        "import sys, pathlib; from megatrain.data.preparation.prepare import PrepareOptions, prepare;"
        "a, b, c = map(pathlib.Path, sys.argv[1:]); prepare(PrepareOptions(inputs=(str(a),), out=b, tokenizer=c,"
        "block_tokens=256, shard_bytes=2048, workers=2), progress=None)"
    )
    out = tmp_path / "out"
    arguments = [sys.executable, "-c", code, str(corpus), str(out), str(tokenizer_folder)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    started_writing = False
    for shards_before_kill in (0, 2, 5, None):
        child = subprocess.Popen(arguments, env=environment, start_new_session=True)
        if shards_before_kill is not None:
            wanted = [out / ".recipe.json", *(out / f"shard-{n:05d}.tar" for n in range(shards_before_kill))]
            while not all(file.exists() for file in wanted) and child.poll() is None:
                time.sleep(0.001)
            child.kill()
            started_writing = started_writing or child.wait() == -signal.SIGKILL
            assert _gone(child.pid), "a worker outlived its parent"
        else:
            assert child.wait(timeout=120) == 0
    assert started_writing
    assert contents(out) == contents(prepared)


def _gone(session: int) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        fields = [_stat(process) for process in Path("/proc").iterdir() if process.name.isdigit()]
        if not any(stat[3] == str(session) and stat[0] != "Z" for stat in fields if stat):
            return True
        time.sleep(0.05)
    return False


def _stat(process: Path) -> list[str]:
    """State, parent, group, session, … of a process; empty when it has ended."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def test_a_resumed_preparation_does_not_tokenise_again(tmp_path, corpus, tokenizer_folder, monkeypatch):
    options = PrepareOptions(
        inputs=(str(corpus),), out=tmp_path, tokenizer=tokenizer_folder, block_tokens=256, shard_bytes=2048
    )
    fsync, syncs = os.fsync, 0

    def killed(descriptor):
        nonlocal syncs
        syncs += 1
        if syncs == 47:  # ten shards and their receipts are down: 6 + 10 × 4 calls
            raise KilledError
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KilledError):
        prepare(options, progress=None)
    monkeypatch.undo()
    output = io.StringIO()
    prepare(options, progress=output)
    done_again = int(re.search(r"prepare: (\d+) documents", output.getvalue())[1])
    assert 0 < done_again < 80  # of 120
    output = io.StringIO()
    prepare(options, progress=output)  # complete: nothing to do
    assert output.getvalue() == ""
