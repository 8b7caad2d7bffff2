"""The image processor's settings of a jina-clip-v2 checkpoint, as the manifest's facts."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Protocol, get_args

from edgeclip.errors import BuildError
from edgeclip.manifest import ImageFacts, Interpolation, ResizeMode
from edgeclip_export.checkpoint import PREPROCESSOR, PROCESSOR, read_json

# How transformers names the edges of an image.
_EDGES = frozenset(("height", "width", "shortest_edge", "longest_edge"))
# Steps of transformers' image processors that this model has too, so none may be switched off.
_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
# Pillow's numbers and names for its filters.
_RESAMPLE: dict[Any, str] = {2: "bilinear", 3: "bicubic", "bilinear": "bilinear", "bicubic": "bicubic"}
_RESCALES_ALIKE = 1e-4  # of one part: 1/255 is written with as few as 4 digits


class _Vision(Protocol):
    @property
    def image_size(self) -> int:
        """The side in pixels of the images that the tower takes."""


class Config(Protocol):
    """A model's configuration, as far as it decides how images are prepared."""

    @property
    def vision(self) -> _Vision:
        """The vision tower's part."""


def read_image_facts(folder: Path, config: Config) -> ImageFacts:
    """How images are prepared, from preprocessor_config.json or, as transformers 5 saves it, processor_config.json.

    Raises BuildError where neither says it, they contradict each other, or it is not as this model has it.
    """
    documents: dict[str, Mapping[str, Any]] = {}
    if (folder / PROCESSOR).is_file():
        nested = read_json(folder / PROCESSOR).get("image_processor")
        if isinstance(nested, Mapping):
            documents[PROCESSOR] = nested
    if (folder / PREPROCESSOR).is_file():
        documents[PREPROCESSOR] = read_json(folder / PREPROCESSOR)
    if not documents:
        raise BuildError(f"{folder / PROCESSOR}: has no image_processor; copy {PREPROCESSOR} beside it")
    found = {name: image_facts(document, config, name) for name, document in documents.items()}
    first, *others = found.values()
    for other in others:
        for field in fields(first):
            one, two = getattr(first, field.name), getattr(other, field.name)
            if one != two:
                raise BuildError(
                    f"{folder}: {field.name} is {one!r} in {PROCESSOR} and {two!r} in {PREPROCESSOR}; "
                    "remove the file that the model was not trained with"
                )
    return first


def image_facts(document: Mapping[str, Any], config: Config, file: str = PREPROCESSOR) -> ImageFacts:
    """The facts in the parsed settings of an image processor, which `file` holds.

    They are read under the names that jina-clip-v2 has for them and under those of transformers. Raises BuildError
    for a kind this model does not have, and for two values of one setting.
    """

    def one_of(names: Mapping[str, Callable[[Any], Any]], default: Any = None) -> Any:
        """The value of a setting, which each of its names may give and none otherwise than the others."""
        given = {name: read(document[name]) for name, read in names.items() if document.get(name) is not None}
        first = next(iter(given.items()), (next(iter(names)), default))
        for name, value in given.items():
            if value != first[1]:
                raise BuildError(f"{file}: {first[0]} says {first[1]!r} and {name} says {value!r}; wanted one value")
        return first[1]

    def choice(name: str, value: Any, kinds: tuple[str, ...]) -> Any:
        if value not in kinds:
            raise BuildError(f"{file}: {name} is {value!r}, wanted one of {', '.join(kinds)}")
        return value

    def channels(name: str, alias: str) -> tuple[float, float, float]:
        value = one_of({name: _as_is, alias: _as_is})
        if not isinstance(value, list) or len(value) != 3 or not all(type(v) in (int, float) for v in value):
            raise BuildError(f"{file}: {name} is {value!r}, wanted three numbers")
        return float(value[0]), float(value[1]), float(value[2])

    side = one_of({name: partial(_side, file, name) for name in ("size", "crop_size")})
    if side != config.vision.image_size:
        raise BuildError(f"{file}: size is {side!r}, the vision tower wants {config.vision.image_size}")
    mode = _resize_mode(document, file)
    for name in _STEPS:
        if document.get(name) is False:
            raise BuildError(f"{file}: {name} is False; only True is supported")
    factor = document.get("rescale_factor")
    if factor is not None and (type(factor) is not float or abs(255 * factor - 1) > _RESCALES_ALIKE):
        raise BuildError(f"{file}: rescale_factor is {factor!r}, wanted 1/255 as a number")
    fill = document.get("fill_color", 0)
    if type(fill) is not int or not 0 <= fill <= 255:
        raise BuildError(f"{file}: fill_color is {fill!r}, wanted a number from 0 to 255")
    std = channels("std", "image_std")
    if min(std) <= 0:
        raise BuildError(f"{file}: std is {list(std)}, wanted positive numbers")
    interpolation = one_of({"interpolation": _as_is, "resample": _filter}, "bicubic")
    return ImageFacts(
        kind="square",
        size_px=config.vision.image_size,
        resize_mode=choice("resize_mode", mode or "shortest", get_args(ResizeMode)),
        interpolation=choice("interpolation", interpolation, get_args(Interpolation)),
        fill_color=fill,
        mean=channels("mean", "image_mean"),
        std=std,
    )


def _resize_mode(document: Mapping[str, Any], file: str) -> Any:
    """The resize mode that the settings name, or that the edges in `size` imply; None where neither says one."""
    mode, edges = document.get("resize_mode"), document.get("size")
    if isinstance(edges, Mapping):
        for edge, implied in (("shortest_edge", "shortest"), ("longest_edge", "longest")):
            if edges.get(edge) is not None:
                if mode not in (None, implied):
                    raise BuildError(f"{file}: size has {edge} and resize_mode is {mode!r}; wanted one of the two")
                mode = implied
        # To transformers these two mean a squashed image, to jina-clip's own processor they mean nothing more.
        if mode is None and not str(document.get("image_processor_type")).startswith("JinaCLIP"):
            raise BuildError(
                f"{file}: size is {edges!r} and resize_mode is missing; add it, jina-clip-v2 has 'shortest'"
            )
    return mode


def _side(file: str, name: str, value: Any) -> int:
    """The side of a square in pixels, of an int, a list of one or two, or a mapping of edges."""
    sides = value
    if isinstance(value, Mapping):
        if unknown := sorted(set(value) - _EDGES):
            raise BuildError(
                f"{file}: {name} has {', '.join(map(repr, unknown))}, wanted {', '.join(sorted(_EDGES))}"
            )
        is_half = ("height" in value) != ("width" in value)
        sides = [] if is_half else [side for side in value.values() if side is not None]
    if not isinstance(sides, list):
        sides = [sides]
    if not sides or len(sides) > 2 or not all(type(side) is int for side in sides):
        raise BuildError(f"{file}: {name} is {value!r}, wanted a number of pixels, a list of two or height and width")
    if len(set(sides)) > 1:
        raise BuildError(f"{file}: {name} is {value!r}, wanted a square: the vision tower takes no other image")
    return int(sides[0])


def _filter(value: Any) -> Any:
    return _RESAMPLE.get(value, value) if isinstance(value, int | str) else value


def _as_is(value: Any) -> Any:
    return value
