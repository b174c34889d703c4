"""What of DeepSpeed 0.19.8 is replaced, and why; importing this does it."""

import functools
import logging
import os
import sys
from types import ModuleType

from megatrain.hardware.device import VARIABLE as DEVICE_VARIABLE
from megatrain.hardware.device import device_type

if device_type() == "cpu":
    os.environ.setdefault(DEVICE_VARIABLE, "cpu")  # read when deepspeed is imported

import deepspeed
from deepspeed.utils import logger

from megatrain.train.zero1 import Zero1Optimizer
from megatrain.train.zero2 import Zero2Optimizer

logger.setLevel(logging.ERROR)

# Its engine makes the optimizer of a stage itself, by these names.
deepspeed.runtime.engine.BF16_Optimizer = Zero1Optimizer
deepspeed.runtime.engine.DeepSpeedZeroOptimizer = Zero2Optimizer

# Asked for a compatible op, it tries out on every start what its ops need, with a C compiler. No training step uses the
# only one that is asked for, an op for inference on a CPU: compiled at a start, and the file lock of a rank that was
# killed meanwhile would make every later start wait for ever.
vars(deepspeed.ops)["__compatible_ops__"] = {}

# It collects garbage for each of these lines, which are not shown: 14 times in the start of a bf16 run, 0.4 s each.
deepspeed.runtime.bf16_optimizer.see_memory_usage = lambda *arguments, **options: None

# Each start asks whether the optimizer is this one, which is not used here; importing it takes 1.5 s.
_muon = ModuleType("deepspeed.runtime.zero.muon.muon_optimizer")
_muon.MuonWithAuxAdam = type("MuonWithAuxAdam", (), {})  # type: ignore[attr-defined]
sys.modules[_muon.__name__] = _muon

if device_type() == "cpu":
    # It runs `numactl --hardware` to count devices, which ZeRO-3 does in the backward of each micro-batch.
    _cpu = type(deepspeed.get_accelerator())
    _cpu.device_count = functools.cache(_cpu.device_count)
