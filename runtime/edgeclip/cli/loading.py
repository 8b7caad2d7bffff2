"""Loading what an extra brings, by name, inside the verb that needs it."""

from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

from edgeclip.errors import MissingExtraError

_EXPORT_NEEDS = ("torch", "onnx", "onnxruntime", "onnxscript", "safetensors", "PIL")


def load_exporter() -> ModuleType:
    """edgeclip_export, or MissingExtraError."""
    return load_extra("edgeclip_export", "export", needs=_EXPORT_NEEDS)


def load_extra(module: str, extra: str, *, needs: Sequence[str]) -> ModuleType:
    """Import `module`; MissingExtraError names the extra when a package in `needs` is not there."""
    if missing := [name for name in needs if find_spec(name) is None]:
        raise MissingExtraError(f"{', '.join(missing)} not installed: `pip install edgeclip[{extra}]`")
    return import_module(module)
