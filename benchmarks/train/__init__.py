"""Optimizer steps on CPU ranks by megatrain and by what the field uses, in one run: `python -m benchmarks.train`."""
