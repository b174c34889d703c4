"""Families of architectures, a package each. To add one, import it here."""

from megatrain.model.families import llama

__all__ = ["llama"]
