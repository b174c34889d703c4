"""Some ranks of a run that only reads: `python -m tests.data.elastic_worker SPEC`. It kills itself with SIGKILL at the
moment it is told to, wherever in its work that finds it, and goes on when started again.

Every rank has a loader of its own. What a step gave all ranks, in the order of samples, is added to a running hash,
which is saved with the loaders' state every few steps, as a training run saves a checkpoint.
"""

import hashlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

import torch

from megatrain.config import DataSection
from megatrain.data.loading.loader import TrainLoader

SAVE_EVERY = 3


def global_tokens(loaders: list[TrainLoader]) -> bytes:
    """The tokens, targets and document ids of one step of all ranks, in the order of samples."""
    steps = [loader.next() for loader in loaders]
    assert len({step.targets for step in steps}) == 1
    parts = []
    for micro_batches in zip(*(step.micro_batches for step in steps), strict=True):
        for batch in micro_batches:
            assert batch.document_ids is not None
            parts += [torch.stack([batch.input_ids, batch.labels, batch.document_ids.long()], dim=1).numpy().tobytes()]
    return b"".join(parts)


def main(spec_file: str) -> None:
    spec = json.loads(Path(spec_file).read_text())
    saved = Path(spec["saved"])
    data = DataSection.model_validate(spec["data"])
    loaders = [
        TrainLoader(
            data,
            global_batch_size=spec["global_batch_size"],
            micro_batch_size=spec["micro_batch_size"],
            data_rank=rank,
            data_size=spec["ranks"],
            seed=spec["seed"],
        )
        for rank in range(spec["ranks"])
    ]
    done, digest = 0, ""
    if saved.exists():
        before = json.loads(saved.read_text())
        done, digest = before["step"], before["digest"]
        for loader in loaders:
            loader.load_state_dict(before["loader"])
    last_words = None if spec["kill_after"] is None else done + spec["kill_after"]
    while done < spec["steps"]:
        if done == last_words:
            threading.Timer(spec["kill_delay"], os.kill, (os.getpid(), signal.SIGKILL)).start()
        digest = hashlib.sha256(digest.encode() + global_tokens(loaders)).hexdigest()
        done += 1
        if done % SAVE_EVERY == 0 or done == spec["steps"]:
            states = [loader.state_dict() for loader in loaders]
            assert all(state == states[0] for state in states)
            temporary = saved.with_suffix(".tmp")
            temporary.write_text(json.dumps({"step": done, "digest": digest, "loader": states[0]}))
            temporary.replace(saved)


if __name__ == "__main__":
    main(sys.argv[1])
