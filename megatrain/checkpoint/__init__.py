"""Checkpoints that any layout reads: boxes of globally named tensors, committed by a manifest of hashes."""
