"""Compiles graphs to machine code as torch.compile does, and runs them as they are."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._inductor import compile_fx, config
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.runtime.triton_heuristics import CachingAutotuner


class Kernels:
    """Counts the graphs and kernels that were compiled since it was made."""

    def __init__(self) -> None:
        self.graphs = 0
        self.kernels = 0
        config.compile_threads = 1  # in this process
        config.force_disable_caches = True

        def precompile(tuner: CachingAutotuner, *_: Any, **__: Any) -> None:
            """As that of CachingAutotuner, up to where machine code is loaded onto a device."""
            if not tuner.compile_results:
                tuner._precompile_worker()
                self.kernels += len(tuner.compile_results)

        CachingAutotuner.precompile = precompile
        self.backend = aot_autograd(
            fw_compiler=self._compile, bw_compiler=self._compile, decompositions=select_decomp_table
        )

    def _compile(self, graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graphs += 1
        compile_fx.compile_fx_inner(copy.deepcopy(graph), inputs)
        return make_boxed_func(graph.forward)
