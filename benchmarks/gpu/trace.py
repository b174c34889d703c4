"""Host synchronisations in three steps, counted by CUDA's own debug mode, and a profile of one step."""

import warnings
from typing import Any

import torch

from benchmarks.gpu.measure import Recorder
from benchmarks.gpu.steps import Trainer


def main() -> None:
    record = Recorder("trace")
    trainer = Trainer(record, zero_stage=1)
    trainer.step()
    if not record.toy:
        record.attempt("synchronisations", lambda: synchronisations(trainer))
    with torch.profiler.profile() as profile:
        trainer.step()
        record.synchronize()
    profile.export_chrome_trace(str(record.out.parent / "trace.json.gz"))
    record.write("profile", file="trace.json.gz", events=len(profile.events()))
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
