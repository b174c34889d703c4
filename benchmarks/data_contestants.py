"""The contestants of `benchmarks.data`, each run in a process of its own: `python -m benchmarks.data_contestants NAME
WORK` prints tokens per second. Every one reads rows of 2,048 tokens (and one more) in shuffled order, repeatedly, for
SECONDS; its set-up and its first rows are not timed.
"""

import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

SEQUENCE = 2048
SECONDS = 1.0
BATCH = 64  # rows per step of what reads in batches


def memmap_rows(work: Path) -> Iterator[int]:
    """The floor: copies of slices of one flat file, in the order of a permutation that is at hand."""
    tokens = np.memmap(work / "flat.bin", dtype=np.uint16, mode="r")
    rows = (len(tokens) - 1) // SEQUENCE
    for epoch in count():
        for row in np.random.default_rng(epoch).permutation(rows).tolist():
            np.array(tokens[row * SEQUENCE : (row + 1) * SEQUENCE + 1])
            yield SEQUENCE


def megatrain_rows(work: Path, *, ends: bool, mode: str = "windowed") -> Iterator[int]:
    """Samples by position, as `data stream` and the loader read them, in batches."""
    from megatrain.data.loading.stream import SampleStream

    stream = SampleStream(section(work, attend_across_documents=not ends, shuffle={"mode": mode}), seed=1)
    for step in count():
        stream.read(np.arange(step * BATCH, (step + 1) * BATCH))
        yield BATCH * SEQUENCE


def webdataset_rows(work: Path) -> Iterator[int]:
    """A row a member, shards and a buffer of 1,000 shuffled."""
    import webdataset

    urls = sorted(str(path) for path in (work / "rows").glob("*.tar"))
    for _ in count():
        for sample in webdataset.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000):
            np.frombuffer(sample["tokens"], dtype=np.uint16)
            yield SEQUENCE


def datasets_rows(work: Path) -> Iterator[int]:
    """An arrow table, memory-mapped, with a permutation of its rows."""
    import datasets

    table = datasets.load_from_disk(str(work / "arrow")).with_format("numpy")
    for epoch in count():
        for row in table.shuffle(seed=epoch):
            yield len(row["tokens"]) - 1


def megatrain_loader(work: Path, *, ends: bool) -> Iterator[int]:
    """The shipped loader as a run drives it: prefetch thread, tensors of inputs, labels, positions, documents."""
    from megatrain.data.loading.loader import TrainLoader

    data = section(work, attend_across_documents=not ends)
    share = {"global_batch_size": BATCH, "micro_batch_size": BATCH, "data_rank": 0, "data_size": 1}
    loader = TrainLoader(data, **share, seed=1)  # type: ignore[arg-type]
    for _ in count():
        loader.next()
        yield BATCH * SEQUENCE


def torch_loader(work: Path) -> Iterator[int]:
    """torch's DataLoader with one worker over a memory-mapped file: inputs and labels, shuffled."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset[Any]):
        def __init__(self) -> None:
            self.tokens = np.memmap(work / "flat.bin", dtype=np.uint16, mode="r")

        def __len__(self) -> int:
            return (len(self.tokens) - 1) // SEQUENCE

        def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
            tokens = torch.from_numpy(self.tokens[row * SEQUENCE : (row + 1) * SEQUENCE + 1].astype(np.int64))
            return tokens[:-1], tokens[1:]

    for _ in count():
        for inputs, _labels in DataLoader(Rows(), batch_size=BATCH, shuffle=True, num_workers=1):
            yield inputs.numel()


def section(work: Path, **changes: Any) -> Any:
    from megatrain.config import DataSection

    content = {"sequence_length": SEQUENCE, "train": [{"path": str(work / "prepared")}]}
    return DataSection.model_validate(content | changes)


CONTESTANTS: dict[str, Callable[[Path], Iterator[int]]] = {
    "memmap": memmap_rows,
    "megatrain": lambda work: megatrain_rows(work, ends=False),
    "megatrain, document ends": lambda work: megatrain_rows(work, ends=True),
    "megatrain, full permutation": lambda work: megatrain_rows(work, ends=False, mode="full"),
    "webdataset, a row a member": webdataset_rows,
    "datasets, arrow": datasets_rows,
    "loader": lambda work: megatrain_loader(work, ends=False),
    "loader, document ends": lambda work: megatrain_loader(work, ends=True),
    "DataLoader, 1 worker, memmap": torch_loader,
}


def rate(rows: Iterator[int], seconds: float = SECONDS) -> float:
    """Tokens a second of an endless iterator of token counts, after its first."""
    next(rows)
    started, tokens = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        tokens += next(rows)
    return tokens / elapsed


if __name__ == "__main__":
    print(rate(CONTESTANTS[sys.argv[1]](Path(sys.argv[2]))), flush=True)
