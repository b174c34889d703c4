"""Triton's kernels of the vocabulary loss, in its interpreter; torch's CPU build comes without Triton."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from megatrain.kernels import cross_entropy
from tests.project import ROOT


def test_without_a_gpu_torch_computes_the_loss() -> None:
    assert cross_entropy._chunk_loss(on_gpu=False, compiled=False) is cross_entropy._loss_and_grad


@pytest.mark.skipif(find_spec("triton") is not None, reason="Triton is installed")
def test_without_triton_a_gpu_has_torchs_operators() -> None:
    assert cross_entropy._chunk_loss(on_gpu=True, compiled=False) is cross_entropy._loss_and_grad


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, as `make gpu-dry` installs it")
def test_kernels_agree_with_torchs_operators_in_the_interpreter() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.gpu.dry.interpreted"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
