"""Loading what an extra brings, by name, inside the verb that needs it."""

from importlib import import_module
from types import ModuleType

from edgeclip.host.installation import missing_package


def load_extra(module: str, extra: str) -> ModuleType:
    """Import `module`; MissingExtraError names the extra when a package that it needs is not there."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise missing_package(error, extra) from error
