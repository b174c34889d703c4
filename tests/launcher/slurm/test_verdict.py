"""What becomes of a job when its ranks have ended, and which node is to blame."""

import pytest

from launcher.slurm.job_record import JobRecord
from launcher.slurm.verdict import node_is_to_blame, verdict
from megatrain.run.attempts import Attempt
from megatrain.run.outcomes import Outcome

CRASH = Outcome(exit_code=1, error="ValueError: odd", rank=3, host="n2", time=0.0)
SAVED = Outcome(exit_code=75, error="SIGUSR2", rank=0, host="n1", time=0.0)
DATA = Outcome(exit_code=4, error="data/train: is gone", rank=0, host="n1", time=0.0)
FINAL = Outcome(exit_code=1, error="the loss is NaN", rank=0, host="n1", time=0.0, retryable=False)
WORDY = Outcome(exit_code=1, error="ERR_TRUNCATED in CUDA RUNTIME; requeued", rank=0, host="n1", time=0.0)


def an_attempt(start=0, end=0, **fields):
    given = {"job": "7", "host": "n1", "pid": 1, "ranks": 2, "started": 10.0, "ended": 20.0}
    return Attempt(**given | {"start_step": start, "end_step": end} | fields)


@pytest.mark.parametrize(
    ("history", "outcome", "code", "job_record", "requeue", "exit_code", "text"),
    [
        ([(0, 20)], None, 0, JobRecord(), False, 0, "finished: step 20, after 0 restarts"),
        ([(0, 5)], SAVED, 0, JobRecord(), True, 75, "saved step 5; requeued"),
        ([(0, 5)], SAVED, 0, JobRecord(stop=True), False, 75, "stopped at step 5, as asked"),
        ([(0, 0)], SAVED, 0, JobRecord(), True, 75, "no new checkpoint (attempt 1 of 4); requeued"),
        ([(0, 5)], CRASH, 1, JobRecord(), True, 1, "saved step 5; requeued after: ValueError: odd"),
        ([(0, 5)], None, 137, JobRecord(), True, 1, "the ranks exited with 137 without recording an outcome"),
        ([(0, 0)], DATA, 4, JobRecord(), False, 4, "non-retryable error: data/train: is gone"),
        ([(0, 5)], FINAL, 1, JobRecord(), False, 1, "non-retryable error: the loss is NaN"),
        ([(5, 5)] * 4, CRASH, 1, JobRecord(), False, 1, "aborted after 3 restarts without a new checkpoint"),
        ([(5, 5)] * 4, SAVED, 0, JobRecord(), False, 75, "aborted after 3 restarts"),
        ([(5, 5)] * 3 + [(5, 6)], CRASH, 1, JobRecord(), True, 1, "saved step 6; requeued"),
        ([(5, 5)] * 4, CRASH, 1, JobRecord(submitted=15.0), True, 1, "requeued"),
    ],
)
def test_the_verdict(tiny, history, outcome, code, job_record, requeue, exit_code, text):
    attempts = [an_attempt(*steps) for steps in history]
    ending = verdict(tiny(), attempts, attempts[-1], outcome, code, job_record, complete=history == [(0, 20)])
    assert (ending.requeue, ending.exit_code) == (requeue, exit_code)
    assert text in ending.text()


def test_verdict_quotes_the_error_as_it_is(tiny):
    ending = verdict(tiny(), [an_attempt(0, 5)], an_attempt(0, 5), WORDY, 1, JobRecord(), complete=False)
    assert ending.text() == f"saved step 5; requeued after: {WORDY.error}"
    assert ending.text("job 8 resumes") == f"saved step 5; job 8 resumes after: {WORDY.error}"


@pytest.mark.parametrize(
    "error",
    [
        "AcceleratorError: CUDA error: uncorrectable ECC error encountered",
        "AcceleratorError: CUDA error: unspecified launch failure",
        "DistBackendError: NCCL error, unhandled cuda error: Cuda failure 'uncorrectable ECC error encountered'",
        "RuntimeError: No CUDA-capable device is detected",
        "RuntimeError: CUDA driver initialization failed, you might not have a CUDA gpu",
        "NVRM: Xid (PCI:0000:3b:00): 79, GPU has fallen off the bus",
        "OSError: [Errno 5] Input/output error: '/tmp/x'",
        "OSError: [Errno 28] No space left on device: '/tmp/x'",
        "the rank was killed by SIGBUS: Bus error",
    ],
)
def test_a_node_is_blamed_for_what_only_a_node_does(error):
    assert node_is_to_blame(CRASH.model_copy(update={"error": error}))


@pytest.mark.parametrize(
    "error",
    [
        "DistBackendError: NCCL error: unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "DistBackendError: ncclSystemError: System call (e.g. socket, malloc) or external library call failed or "
        "device error. Last error: socketProgress: Connection closed by remote peer n3<4711>",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "NCCL WARN NET/IB : Got completion from peer 10.0.0.2 with status=12: Input/output error, reset by peer",
        "RuntimeError: [gloo] Connection closed by peer [10.0.0.2]:4711",
        "RuntimeError: [gloo/transport/tcp/pair.cc:534] Read error [10.0.0.2]:4711: Connection reset by peer",
        "RuntimeError: Timed out waiting 60000ms for recv operation to complete",
        "DistNetworkError: failed to recv, got 0 bytes",
        "BrokenPipeError: [Errno 32] Broken pipe",
        "OSError: [Errno 113] No route to host",
        "DistBackendError: NCCL communicator was aborted on rank 3",
        "Watchdog caught collective operation timeout: WorkNCCL(SeqNum=12) ran for 600000 ms; CUDA driver is fine",
        "AcceleratorError: CUDA error: an illegal memory access was encountered",
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "ValueError: odd",
        "hung: no progress for 600 s in a step",
    ],
)
def test_a_healthy_node_is_not_blamed_for_its_peers_or_its_program(error):
    assert not node_is_to_blame(CRASH.model_copy(update={"error": error}))


def test_a_users_mistake_blames_no_node():
    assert not node_is_to_blame(DATA.model_copy(update={"error": "Input/output error"}))
