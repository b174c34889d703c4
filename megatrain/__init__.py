"""megatrain trains: streams sharded tokens through a Transformer on DeepSpeed and writes layout-free checkpoints.

For notebooks and scripts: `open_run` and `open_data`; see `megatrain.api`.
"""

from typing import TYPE_CHECKING, Any

from megatrain.version import __version__

if TYPE_CHECKING:
    from megatrain.api import open_data, open_run


__all__ = ["__version__", "open_data", "open_run"]


def __getattr__(name: str) -> Any:
    """The launcher imports this package too, and does without torch."""
    if name in ("open_run", "open_data"):
        from megatrain import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
