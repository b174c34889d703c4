"""Modules that a run names, imported before its configuration is checked: they register what it uses."""

import importlib
from collections.abc import Sequence

from megatrain.base.errors import ConfigError


def load_extensions(modules: Sequence[str]) -> None:
    """Import each once.

    Raises:
        ConfigError: one cannot be imported; says which, and why.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ConfigError:
            raise
        except ModuleNotFoundError as error:
            fix = "Install it, or put its folder into PYTHONPATH" if error.name == module.partition(".")[0] else ""
            raise ConfigError(". ".join(filter(None, (f"{module}: cannot be imported: {error}", fix)))) from None
        except Exception as error:  # whatever somebody else's module raises
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise ConfigError(f"{module}: cannot be imported: {what}") from None
