"""The sections of benchmarks/gpu_day.py."""
