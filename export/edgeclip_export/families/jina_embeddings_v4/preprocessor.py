"""The image processor's settings of a jina-embeddings-v4 checkpoint, as the manifest's facts."""

from collections.abc import Mapping
from typing import Any

from edgeclip.errors import BuildError
from edgeclip.manifest import PatchFacts
from edgeclip_export.checkpoint import PREPROCESSOR
from edgeclip_export.towers.window_vision_layout import WindowVisionConfig

# What the processor must do for the graphs to be right.
_STEPS = ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb")
_BICUBIC = 3  # Pillow's number
_RESCALES_ALIKE = 1e-4  # of one part: 1/255 is written with as few as 4 digits


def patch_facts(
    document: Mapping[str, Any], vision: WindowVisionConfig, *, prompt_ids: tuple[int, ...], image_id: int
) -> PatchFacts:
    """The facts in a parsed preprocessor_config.json; BuildError names what is missing or of another kind."""
    for name in _STEPS:
        if document.get(name, True) is not True:
            raise BuildError(f"{PREPROCESSOR}: {name} is {document[name]!r}; only True is supported")
    wanted = {"patch_size": vision.patch_px, "merge_size": vision.merge, "temporal_patch_size": vision.frames}
    for name, value in wanted.items():
        if document.get(name, value) != value:
            raise BuildError(
                f"{PREPROCESSOR}: {name} is {document[name]!r}, vision_config in config.json says {value}"
            )
    if document.get("resample", _BICUBIC) != _BICUBIC:
        raise BuildError(
            f"{PREPROCESSOR}: resample is {document['resample']!r}; only {_BICUBIC} (bicubic) is supported"
        )
    factor = document.get("rescale_factor", 1 / 255)
    if type(factor) is not float or abs(255 * factor - 1) > _RESCALES_ALIKE:
        raise BuildError(f"{PREPROCESSOR}: rescale_factor is {factor!r}, wanted 1/255 as a number")
    mean, std = (_channels(document, name) for name in ("image_mean", "image_std"))
    if min(std) <= 0:
        raise BuildError(f"{PREPROCESSOR}: image_std is {list(std)}, wanted positive numbers")
    fewest, most = _pixels(document, "min_pixels", "shortest_edge"), _pixels(document, "max_pixels", "longest_edge")
    if fewest > most:
        raise BuildError(f"{PREPROCESSOR}: min_pixels {fewest} is more than max_pixels {most}")
    return PatchFacts(
        kind="patches",
        patch_px=vision.patch_px,
        merge=vision.merge,
        window_px=vision.window_px,
        min_pixels=fewest,
        max_pixels=most,
        interpolation="bicubic",
        mean=mean,
        std=std,
        prompt_ids=prompt_ids,
        image_id=image_id,
    )


def _channels(document: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    value = document.get(name)
    if not isinstance(value, list) or len(value) != 3 or not all(type(one) in (int, float) for one in value):
        raise BuildError(f"{PREPROCESSOR}: {name} is {value!r}, wanted three numbers")
    red, green, blue = value
    return float(red), float(green), float(blue)


def _pixels(document: Mapping[str, Any], name: str, edge: str) -> int:
    """A limit of pixels, which stands under its own name or as an edge of `size`: the two must not differ."""
    size = document.get("size")
    other = size.get(edge) if isinstance(size, Mapping) else None
    value = other if document.get(name) is None else document[name]
    if type(value) is not int or value < 1:
        raise BuildError(f"{PREPROCESSOR}: {name} is {value!r}, wanted a positive whole number")
    if other not in (None, value):
        raise BuildError(f"{PREPROCESSOR}: {name} is {value} and size says {other} as {edge}; wanted one value")
    return value
