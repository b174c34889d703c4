"""Our own Triton kernels, compiled to machine code for an H100 that is not there."""

import itertools

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from megatrain.kernels.fused_cross_entropy import BLOCK, WARPS, gradient_kernel, statistics_kernel

_SM_90 = GPUTarget("cuda", 90, 32)
_NUMBERS = dict.fromkeys(("rows", "stride", "width", "start", "real"), "i32")
_NUMBERS |= dict.fromkeys(("softcap", "at_label", "everywhere"), "fp32")
_POINTERS = {"labels": "*i64", "out": "*fp32", "maximum": "*fp32", "factor": "*fp32"}


def compile_all() -> int:
    """How many were compiled."""
    compiled = 0
    for kernel, dtype, capped in itertools.product(
        (statistics_kernel, gradient_kernel), ("*bf16", "*fp32"), (False, True)
    ):
        fixed = {"CAPPED": capped, "BLOCK": BLOCK}
        types = _NUMBERS | _POINTERS | {"logits": dtype} | dict.fromkeys(fixed, "constexpr")
        source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constexprs=fixed)
        binary = compile(source, target=_SM_90, options={"num_warps": WARPS})
        assert binary.asm["cubin"]
        compiled += 1
    return compiled


if __name__ == "__main__":
    print(f"{compile_all()} kernels of our own compiled for sm_90")
