"""Checkpoints that any layout reads: chunks of globally named tensors, committed by a manifest of hashes."""
