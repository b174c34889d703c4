"""Families of architectures, a package each. To add one, import it here."""

from megatrain.model.families import gpt, llama

__all__ = ["gpt", "llama"]
