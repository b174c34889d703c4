"""Host synchronisations in three steps, counted by CUDA's own debug mode, and the kernels of one step by their time."""

import warnings
from typing import Any

import torch

from benchmarks.gpu.measure import Recorder
from benchmarks.gpu.steps import Trainer

TOP = 40


def main() -> None:
    record = Recorder("trace")
    toy = {"model": "toy", "length": 32, "compiled": False} if record.toy else {}
    trainer = Trainer(record.device, packed=True, **toy)
    for _ in range(3):
        trainer.step()
    if not record.toy:
        record.attempt("synchronisations", lambda: synchronisations(trainer))
    with torch.profiler.profile() as profile:
        trainer.step()
        record.synchronize()
    kernels = sorted(profile.key_averages(), key=lambda e: e.self_device_time_total, reverse=True)
    for event in kernels[:TOP]:
        record.write("kernel", kernel=event.key[:120], ms=event.self_device_time_total / 1e3, calls=event.count)
    record.write("profile", device_ms=sum(e.self_device_time_total for e in kernels) / 1e3)
    trainer.close()


def synchronisations(trainer: Trainer) -> dict[str, Any]:
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(3):
            trainer.step()
    torch.cuda.set_sync_debug_mode("default")
    where = [f"{warning.filename}:{warning.lineno}" for warning in seen if "synchroniz" in str(warning.message)]
    return {"per_step": len(where) / 3, "where": sorted(set(where))}


if __name__ == "__main__":
    main()
