"""Reading training data: this project against its peers, interleaved, and what its loader promises of itself.

    python -m benchmarks.data [--rounds 7] [--mosaic PYTHON] [--work FOLDER]

Contestants take turns, each in a fresh process, so that a noisy neighbour hits all of them; what counts is the median
over the rounds of the ratio within a round. `--mosaic` is the interpreter of an environment with mosaicml-streaming,
which cannot be installed beside this project (numpy < 2.2).
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.data_contestants import BATCH, CONTESTANTS, SEQUENCE, section
from megatrain.data.folder.hashed_files import FileRecord, write_bytes
from megatrain.data.folder.index import Index
from megatrain.data.folder.manifest import INDEX, MANIFEST, TOKENIZER, read_manifest
from megatrain.data.loading.loader import TrainLoader
from megatrain.data.loading.stream import SampleStream
from megatrain.data.ordering.order import Order, Phase, ShuffleRule, SourceSize
from megatrain.data.preparation.prepare import PrepareOptions, prepare
from megatrain.data.text.tokenizer import train_tokenizer

TOKENS = 1 << 25  # 64 MiB of uint16: in the page cache, as the peers' data is
SHARDS, SHARD_BLOCKS, BLOCK_TOKENS = 5000, 512, 1 << 18  # of the large data set, of sparse files
MOSAIC = "mosaicml-streaming"
READING = ("memmap", "megatrain", "megatrain, document ends", "megatrain, full permutation")
PEERS = ("webdataset, a row a member", "datasets, arrow", MOSAIC)
LOADING = ("loader", "loader, document ends", "DataLoader, 1 worker, memmap")


def make_data(work: Path, mosaic: str | None) -> None:
    """The same tokens in every format: documents of 1 to 1,000 made-up tokens."""
    import datasets
    import webdataset

    random = np.random.default_rng(0)
    (work / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
    tokenizer = train_tokenizer([str(work / "text.txt")], work / "tokenizer", 300)
    tokens = random.integers(1, 256, TOKENS, dtype=np.uint16)
    bounds = np.unique(np.append(np.cumsum(random.integers(1, 1000, TOKENS // 400)), TOKENS))
    bounds = bounds[bounds <= TOKENS]
    tokens[bounds - 1] = tokenizer.eos_id
    tokens.tofile(work / "flat.bin")
    _write_megatron(work / "corpus.idx", tokens, bounds)
    options = PrepareOptions(inputs=(str(work / "corpus.idx"),), out=work / "prepared", tokenizer=work / "tokenizer")
    prepare(options, progress=None)
    starts = range(0, TOKENS - SEQUENCE, SEQUENCE)
    rows = [tokens[first : first + SEQUENCE + 1] for first in starts]
    (work / "rows").mkdir()
    with webdataset.ShardWriter(str(work / "rows" / "%04d.tar"), maxcount=1024, verbose=0) as writer:
        for number, row in enumerate(rows):
            writer.write({"__key__": f"{number:08d}", "tokens": row.tobytes()})
    datasets.Dataset.from_dict({"tokens": rows}).save_to_disk(str(work / "arrow"))
    if mosaic:
        subprocess.run([mosaic, str(Path(__file__).with_name("mosaic.py")), "write", str(work)], check=True)


def _write_megatron(index_file: Path, tokens: np.ndarray, bounds: np.ndarray) -> None:
    tokens.tofile(index_file.with_suffix(".bin"))
    lengths = np.diff(bounds, prepend=0)
    header = b"MMIDIDX\x00\x00" + np.array([1], "<u8").tobytes() + bytes([8])
    counts = np.array([len(lengths), len(lengths) + 1], "<u8").tobytes()
    columns = (lengths.astype("<i4"), (2 * (bounds - lengths)).astype("<i8"), np.arange(len(lengths) + 1, dtype="<i8"))
    index_file.write_bytes(header + counts + b"".join(column.tobytes() for column in columns))


def measure_rate(name: str, work: Path, mosaic: str | None) -> float:
    """Tokens a second of one contestant in a fresh process."""
    own = [sys.executable, "-m", "benchmarks.data_contestants", name, str(work)]
    peer = [str(mosaic), str(Path(__file__).with_name("mosaic.py")), "read", str(work)]
    ended = subprocess.run(peer if name == MOSAIC else own, stdout=subprocess.PIPE, text=True, check=True)
    return float(ended.stdout.split()[-1])


def make_large(work: Path) -> Path:
    """671 billion tokens in 5,000 sparse shards: only what opening and finding a row costs is real here."""
    folder = work / "large"
    folder.mkdir()
    payload = BLOCK_TOKENS * 2 + 2
    stride = 512 + -(-payload // 512) * 512 + 512
    blocks = SHARDS * SHARD_BLOCKS
    number = np.arange(blocks, dtype=np.int64)
    ends = (number == blocks - 1).astype(np.int32)  # one document, which ends with the data
    index = Index(
        shard=(number // SHARD_BLOCKS).astype(np.int32),
        offset=512 + number % SHARD_BLOCKS * stride,
        tokens=np.full(blocks, BLOCK_TOKENS + 1, dtype=np.int32),
        ends_offset=(number % SHARD_BLOCKS + 1) * stride,
        ends=ends,
        hash=np.zeros((blocks, 16), dtype=np.uint8),
        targets=np.empty(0, dtype=np.uint8),
    )
    size = (SHARD_BLOCKS * stride // 10240 + 2) * 10240
    shards = tuple(FileRecord(f"shard-{shard:05d}.tar", size, "0" * 64) for shard in range(SHARDS))
    for shard in shards:
        with open(folder / shard.name, "wb") as file:
            file.truncate(size)
            if shard == shards[-1]:
                file.seek(int(index.ends_offset[-1]))
                file.write(np.array([BLOCK_TOKENS + 1], dtype="<u4").tobytes())
    small = read_manifest(work / "prepared")
    record = write_bytes(folder / INDEX, index.dumps())
    tokens = blocks * BLOCK_TOKENS + 1
    manifest = replace(small, tokens=tokens, documents=1, blocks=blocks, shards=shards, index_sha256=record.sha256)
    write_bytes(folder / MANIFEST, manifest.dumps().encode())
    shutil.copy(work / "prepared" / TOKENIZER, folder / TOKENIZER)
    return folder


def measure_large(folder: Path, rounds: int) -> Iterator[str]:
    """Start-up, and a resume early and late in an epoch, in turn."""
    data = section(folder.parent, train=[{"path": str(folder)}])
    share: dict[str, Any] = {"global_batch_size": BATCH, "micro_batch_size": BATCH, "data_rank": 0, "data_size": 1}
    starts: list[float] = []
    resumes: dict[float, list[float]] = {0.01: [], 0.9: []}
    for number in range(2 * rounds):
        for part in resumes if number % 2 else reversed(resumes):
            began = time.perf_counter()
            loader = TrainLoader(data, **share, seed=1)
            starts.append(time.perf_counter() - began)
            epoch = loader._stream.sources.sizes[0].rows
            state = loader.state_dict() | {"position": int(part * epoch) // BATCH * BATCH}
            began = time.perf_counter()
            loader.load_state_dict(state)
            loader.next()
            resumes[part].append(time.perf_counter() - began)
            loader.close()
    early, late = (statistics.median(times) for times in resumes.values())
    ratio = statistics.median(b / a for a, b in zip(*resumes.values(), strict=True))
    yield f"start-up with {SHARDS:,} shards (671 Gtokens), no collective: {statistics.median(starts):.2f} s (< 2)"
    times_ = f"at 1% of an epoch {early * 1e3:.1f} ms, at 90% {late * 1e3:.1f} ms (< 50)"
    yield f"resume to the first batch {times_}: {ratio:.2f} × (≤ 1.2)"


def measure_order(rounds: int) -> Iterator[str]:
    """Set-up and the first batch of the order of 10^9 samples."""
    for mode in ("windowed", "full"):
        times, peak = [], 0
        for attempt in range(rounds):
            tracemalloc.start()
            began = time.perf_counter()
            order = Order([SourceSize(10**9, 128)], [Phase(0, (4096,))], attempt, ShuffleRule(mode))  # type: ignore[arg-type]
            order.locate(np.arange(BATCH))
            times.append(time.perf_counter() - began)
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        cost = f"{statistics.median(times) * 1e3:.1f} ms (< 50), {peak / 2**20:.1f} MiB (< 10)"
        yield f"order of 10⁹ samples, {mode}: {cost}"


def measure_remote(work: Path) -> Iterator[str]:
    """Bytes that a local http server sends for one epoch, over the bytes of its rows."""
    from tests.data.file_server import FileServer

    server = FileServer(work)
    data = section(work, train=[{"path": f"{server.address}/prepared"}], shuffle={"streams": 16})
    began = time.perf_counter()
    stream = SampleStream(data, seed=1)
    rows = stream.sources.sizes[0].rows // 4
    for first in range(0, rows, BATCH):
        stream.read(np.arange(first, min(first + BATCH, rows)))
    seconds = time.perf_counter() - began
    ratio = server.sent / (rows * SEQUENCE * 2)
    server.close()
    yield (
        f"http: {rows:,} rows, bytes sent over bytes of their tokens {ratio:.3f} (≤ 1.05), index and document ends "
        f"included; {rows * SEQUENCE / seconds / 1e6:.2f} Mtok/s from a server in Python on the same cores"
    )


def measure_tensor_parallel(work: Path, rounds: int) -> Iterator[str]:
    """A micro-batch read by every rank of a group, or read by one and sent by gloo."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchmarks.data_broadcast", str(work), str(rounds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    read, sent = (float(value) for value in ended.stdout.split()[-2:])
    yield (
        f"8 × 2,048 tokens with document ends: read {read * 1e3:.2f} ms, "
        f"broadcast by gloo to one other rank {sent * 1e3:.2f} ms"
    )


def table(rates: dict[str, list[float]], base: str, names: Sequence[str]) -> Iterator[str]:
    yield f"| contestant | Mtok/s | slowest, fastest | {base} over it |"
    yield "|---|---|---|---|"
    for name in names:
        ratio = statistics.median(ours / its for ours, its in zip(rates[base], rates[name], strict=True))
        low, high = min(rates[name]) / 1e6, max(rates[name]) / 1e6
        yield f"| {name} | {statistics.median(rates[name]) / 1e6:.1f} | {low:.1f}, {high:.1f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mosaic", metavar="PYTHON", help="interpreter of an environment with mosaicml-streaming")
    parser.add_argument("--work", type=Path, help="folder for the data; default: a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
        report(Path(folder), arguments.rounds, arguments.mosaic)


def report(work: Path, rounds: int, mosaic: str | None) -> None:
    make_data(work, mosaic)
    names = [name for name in (*READING, *PEERS, *LOADING) if mosaic or name != MOSAIC]
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names if number % 2 else reversed(names):
            rates[name].append(measure_rate(name, work, mosaic))
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    processor = next((line.split(": ")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    cores = len(os.sched_getaffinity(0))
    load = f"load {os.getloadavg()[0]:.0f}"
    print(f"{date.today()}, {cores} cores of {processor}, Python {platform.python_version()}, {load}")
    print(", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "webdataset", "datasets", "fsspec")))
    print(f"{TOKENS / 1e6:.1f} Mtokens in rows of {SEQUENCE:,}; medians of {rounds} rounds\n")
    for base, group in (("megatrain", (*READING, *PEERS)), ("loader", LOADING)):
        print(*table(rates, base, [name for name in group if name in rates]), "", sep="\n")
    found = (measure_order(rounds), measure_large(make_large(work), rounds), measure_remote(work))
    for measured in (*found, measure_tensor_parallel(work, rounds)):
        print(*(f"- {line}" for line in measured), sep="\n", flush=True)
    print(json.dumps({name: [round(value) for value in values] for name, values in rates.items()}), file=sys.stderr)


assert set(CONTESTANTS) | {MOSAIC} == {*READING, *PEERS, *LOADING}

if __name__ == "__main__":
    main()
