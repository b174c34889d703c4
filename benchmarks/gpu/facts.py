"""Versions, what the process holds before a model is built, and which attention kernel torch chooses."""

import importlib.metadata
import os
import resource
import subprocess
import time

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.measure import Recorder

PACKAGES = ("torch", "triton", "deepspeed", "transformers", "numpy", "nvidia-nccl-cu13")


def main() -> None:
    record = Recorder("facts")
    record.write("versions", **{name: _version(name) for name in PACKAGES}, cores=len(os.sched_getaffinity(0)))
    record.write("limits", open_files=resource.getrlimit(resource.RLIMIT_NOFILE))
    record.attempt("attention", lambda: {"op": chosen_attention(record.device)})
    if record.toy:
        return
    record.write("card", name=torch.cuda.get_device_name(), cudnn=torch.backends.cudnn.version())
    record.attempt("nvidia_smi", lambda: {"fields": _smi("name,driver_version,clocks.max.sm,power.limit,memory.used")})
    record.attempt("context", context_bytes)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()


def chosen_attention(device: torch.device) -> list[str]:
    """The ops behind SDPA for bf16, grouped queries and causality."""
    seen: list[str] = []

    class Spy(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "attention" in str(func):
                seen.append(str(func))
            return func(*args, **(kwargs or {}))

    q, k = (torch.randn(1, heads, 256, 64, device=device, dtype=torch.bfloat16) for heads in (8, 2))
    with Spy():
        F.scaled_dot_product_attention(q, k, k, is_causal=True, enable_gqa=True)
    return seen


def context_bytes() -> dict[str, int | float]:
    """What the card has in use once NCCL's communicator exists and nothing is allocated."""
    import torch.distributed as dist

    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    began = time.perf_counter()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1, device_id=device)
    dist.all_reduce(torch.ones(1, device=device))
    free, total = torch.cuda.mem_get_info()
    seconds = time.perf_counter() - began
    dist.destroy_process_group()
    return {"bytes": total - free, "seconds": seconds}


if __name__ == "__main__":
    main()
