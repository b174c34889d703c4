"""Families of architectures, a package each. To add one, import it here."""

from megatrain.model.families import bert, gpt, llama

__all__ = ["bert", "gpt", "llama"]
