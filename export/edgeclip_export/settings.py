"""Reading the numbers of a parsed config.json; what is missing or of another kind is a BuildError that names it."""

from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError


def section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object inside the document."""
    found = document.get(name)
    if not isinstance(found, Mapping):
        raise BuildError(f"config.json: {name} is missing")
    return found


def require(where: str, settings: Mapping[str, Any], **wanted: object) -> None:
    """Check that settings are as wanted; one may be absent (the reference's default is what is wanted)."""
    for name, value in wanted.items():
        if settings.get(name, value) != value:
            raise BuildError(f"config.json: {where} has {name} {settings[name]!r}; only {value!r} is supported")


def count(where: str, settings: Mapping[str, Any], name: str) -> int:
    """A positive whole number."""
    value = settings.get(name)
    if type(value) is not int or value < 1:
        raise BuildError(f"config.json: {where} needs a positive whole number as {name}, found {value!r}")
    return value


def token_id(where: str, settings: Mapping[str, Any], name: str) -> int:
    """A token's id."""
    value = settings.get(name)
    if type(value) is not int or value < 0:
        raise BuildError(f"config.json: {where} needs a token id as {name}, found {value!r}")
    return value


def number(where: str, settings: Mapping[str, Any], name: str) -> float:
    """A positive number."""
    value = settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise BuildError(f"config.json: {where} needs a positive number as {name}, found {value!r}")
    return float(value)


def dimensions(document: Mapping[str, Any], width: int) -> tuple[int, ...]:
    """The dimensions that vectors may be cut to; the full width alone where the document names none."""
    dims = document.get("matryoshka_dimensions") or [width]
    if not isinstance(dims, list) or not all(type(dim) is int and 0 < dim <= width for dim in dims):
        raise BuildError(f"config.json: matryoshka_dimensions {dims} do not lie between 1 and {width}")
    return tuple(dims)


def prompts(model: Mapping[str, Any]) -> dict[str, str]:
    """What is put before a text, by task."""
    found = model.get("task_instructions") or {}
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise BuildError("config.json: task_instructions must map task names to strings")
    return dict(found)
