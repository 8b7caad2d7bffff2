"""Strict reading of JSON into frozen dataclasses: a typo, a missing fact or a wrong type is a clear BundleError.

`parse` takes the few shapes that the manifest's dataclasses are made of. It knows nothing of the manifest itself.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from edgeclip.errors import BundleError


def parse(kind: Any, value: object, where: str) -> object:
    """The JSON value as `kind`: a dataclass, Literal, X | None, int | str, tuple, Mapping, str, int, float or bool.

    Of several dataclasses the value's "kind" says which. Raises BundleError, which names the place `where`, for a
    value of another type and for a field that is unknown or missing.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _parse_dataclass(typing.cast(type, kind), value, where)
    if origin is Literal:
        if value not in arguments:
            raise BundleError(f"{where}: {value!r} is none of {', '.join(map(str, arguments))}")
        return value
    if origin in (typing.Union, types.UnionType):
        return _parse_union(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise BundleError(f"{where}: wanted a list, found {json_kind(value)}")
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise BundleError(f"{where}: wanted {len(kinds)} values, found {len(value)}")
        return tuple(parse(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise BundleError(f"{where}: wanted an object, found {json_kind(value)}")
        return {key: parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) in (int, float):
        return _parse_float(value, where)
    if type(value) is not kind:
        raise BundleError(f"{where}: wanted {kind.__name__}, found {json_kind(value)}")
    return value


def json_kind(value: object) -> str:
    """What a JSON value is, in words for a message."""
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(type(value), repr(value))


def _parse_union(kinds: tuple[Any, ...], value: object, where: str) -> object:
    if value is None and type(None) in kinds:
        return None
    others = [kind for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        return parse(others[0], value, where)
    if all(map(dataclasses.is_dataclass, others)):
        return _parse_dataclass_of(others, value, where)
    if type(value) not in others:
        raise BundleError(
            f"{where}: wanted {' or '.join(kind.__name__ for kind in others)}, found {json_kind(value)}"
        )
    return value


def _parse_dataclass_of(kinds: Sequence[Any], value: object, where: str) -> object:
    """The dataclass whose field `kind`, a Literal of one value, is the value's "kind"."""
    if not isinstance(value, dict):
        raise BundleError(f"{where}: wanted an object, found {json_kind(value)}")
    names = {typing.get_args(typing.get_type_hints(kind)["kind"])[0]: kind for kind in kinds}
    if (name := value.get("kind")) not in list(names):
        raise BundleError(f"{where}.kind: {name!r} is none of {', '.join(names)}")
    return _parse_dataclass(names[name], value, where)


def _parse_float(value: Any, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise BundleError(f"{where}: wanted a finite number")
    return number


def _parse_dataclass(kind: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise BundleError(f"{where}: wanted an object, found {json_kind(value)}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(set(value) - set(hints)):
        raise BundleError(f"{where}: unknown {', '.join(unknown)}")
    if missing := sorted(set(hints) - set(value)):
        raise BundleError(f"{where}: {', '.join(missing)} missing")
    return kind(**{name: parse(hint, value[name], f"{where}.{name}") for name, hint in hints.items()})
