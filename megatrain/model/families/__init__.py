"""Families of architectures, a package each. To add one, import it here."""

from megatrain.model.families import bert, gemma3, gpt, llama, modernbert, transformers

__all__ = ["bert", "gemma3", "gpt", "llama", "modernbert", "transformers"]
