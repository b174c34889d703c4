"""MosaicML Streaming as a contestant of `benchmarks.data`, in an environment of its own: it needs numpy < 2.2.

python mosaic.py write WORK     flat.bin as MDS shards
python mosaic.py read WORK      prints tokens per second
"""

import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
from streaming import MDSWriter, StreamingDataset

SEQUENCE = 2048
SECONDS = 1.0


def write(work: Path) -> None:
    tokens = np.memmap(work / "flat.bin", dtype=np.uint16, mode="r")
    with MDSWriter(out=str(work / "mds"), columns={"tokens": f"ndarray:uint16:{SEQUENCE + 1}"}) as writer:
        for first in range(0, len(tokens) - SEQUENCE, SEQUENCE):
            writer.write({"tokens": np.array(tokens[first : first + SEQUENCE + 1])})


def read(work: Path) -> float:
    dataset = StreamingDataset(local=str(work / "mds"), shuffle=True, batch_size=64)
    rows = (row for _ in count() for row in dataset)
    next(rows)
    started, tokens = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < SECONDS:
        tokens += len(next(rows)["tokens"]) - 1
    return tokens / elapsed


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]))
    else:
        print(read(Path(sys.argv[2])), flush=True)
