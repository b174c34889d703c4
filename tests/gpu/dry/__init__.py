"""What a GPU would run, without one: `make gpu-dry`.

torch's CUDA build, on top of a runtime and a driver that know of one H100 and run nothing (`stand_in.py`):

    forward and backward of every family on fake CUDA tensors: shapes, dtypes, devices, and that nothing waits for the
    device, for a fake tensor has no value to give
    compilation of its blocks to machine code for sm_90, by Inductor, Triton and ptxas
    compilation of the vocabulary loss's own Triton kernels; what they compute, by Triton's interpreter, beside torch

Numbers, speed, memory and NCCL need a card: tests/gpu and benchmarks/gpu.
"""
