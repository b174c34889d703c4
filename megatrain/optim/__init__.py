"""Optimizers, and which weights each group of them trains."""
