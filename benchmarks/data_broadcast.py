"""Under tensor parallelism: what it costs every rank to read a micro-batch, against one reading and sending it.

python -m benchmarks.data_broadcast WORK ROUNDS     prints the median seconds of both
"""

import statistics
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from benchmarks.data_contestants import section
from megatrain.data.loading.loader import TrainLoader

SIZE, STEPS = 8, 50


def rank_main(rank: int, rendezvous: str, work: Path, rounds: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    share = {"global_batch_size": SIZE, "micro_batch_size": SIZE, "data_rank": 0, "data_size": 1}
    loader = TrainLoader(section(work), **share, seed=1)  # type: ignore[arg-type]
    read, sent = [], []
    for number in range(rounds * STEPS):
        dist.barrier()
        began = time.perf_counter()
        batch = loader.read_step(number * SIZE).micro_batches[0]
        read.append(time.perf_counter() - began)
        tensors = [getattr(batch, field.name) for field in fields(batch)]
        # what all ranks know the shape of; cu_seqlens would need its length sent first
        payload = torch.stack([tensor.long() for tensor in tensors[:4]])
        dist.barrier()
        began = time.perf_counter()
        dist.broadcast(payload, 0)
        sent.append(time.perf_counter() - began)
    if rank == 1:  # the one that waits for the message
        print(statistics.median(read), statistics.median(sent), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        arguments = (str(Path(folder) / "rendezvous"), Path(sys.argv[1]), int(sys.argv[2]))
        multiprocessing.start_processes(rank_main, arguments, nprocs=2, start_method="spawn")
