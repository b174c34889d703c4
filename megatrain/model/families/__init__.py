"""Families of architectures, a package each. To add one, import it here."""

from megatrain.model.families import bert, gpt, llama, modernbert

__all__ = ["bert", "gpt", "llama", "modernbert"]
