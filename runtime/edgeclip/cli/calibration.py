"""A folder of a user's images and texts, as `edgeclip quantize --calibrate` takes it.

Images, and .txt files with a text per line; or captions.jsonl as `edgeclip eval` reads it, which says which texts
describe which image: a line is {"image": "a.jpg", "caption": "..."}, or "captions" with a list, or with an object of
lists by language. An image may stand on several lines. It lies in the folder or in its images/, and nowhere else:
such a file often comes from others, and should not make us read what its user never pointed at.
"""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeclip.cli.loading import load_extra
from edgeclip.errors import InputError, TruncationWarning
from edgeclip.image_folder import list_images
from edgeclip.jina_clip import preprocess_image
from edgeclip.manifest import Manifest
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tokenization import TextTokenizer

CAPTIONS = "captions.jsonl"
# More images than these say little more, and each is a run of both bundles: 4 s at full size on two cores.
_MOST_IMAGES, _MOST_TEXTS = 400, 4000
_LEAST = 2


def read_samples(folder: Path, bundle: Path, manifest: Manifest) -> Any:
    """The folder as `edgeclip_quant.samples.Samples`; of more than 400 images and 4000 texts an even choice.

    Raises InputError, naming the file and line, for what cannot be read and for a folder with too little in it.
    """
    sampling = load_extra("edgeclip_quant.samples", "quant")
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"--calibrate {folder}: cannot be read ({error.strerror})") from error
    pairs: list[int] | None = None
    if folder / CAPTIONS in paths:
        images, texts, pairs = _captioned(folder)
    else:
        images = [Path(path) for path in list_images(folder)]
        texts = [line for path in paths if path.suffix.lower() == ".txt" for line in _lines(path) if line.strip()]
    if len(texts) < _LEAST or len(images) < _LEAST:
        raise InputError(
            f"--calibrate {folder}: {len(images)} images and {len(texts)} texts (lines of .txt files, or captions in "
            f"{CAPTIONS}), wanted {_LEAST} of each or more"
        )
    found = len(images), len(texts)
    images, texts, pairs = _choose(images, texts, pairs)
    tokenized = TextTokenizer(bundle / manifest.tokenizer.file, manifest.tokenizer).encode(texts, None)
    if cut := len(tokenized.cut):
        told = f"{cut} of {len(texts)} texts were cut to {manifest.tokenizer.max_length} tokens"
        warnings.warn(TruncationWarning(told, cut=cut), stacklevel=2)
    pictures = []
    with ProgressBar("reading images", len(images), is_shown=is_wanted(None)) as bar:
        for path in images:
            pictures.append(preprocess_image(str(path), manifest.image, label="--calibrate: image")[None])
            bar.advance(1)
    is_all = found == (len(images), len(texts))
    name = folder.resolve().name
    return sampling.Samples(
        name=name if is_all else f"{name} ({len(images)} of {found[0]} images, {len(texts)} of {found[1]} texts)",
        text=tuple(row[None] for row in tokenized.rows),
        vision=tuple(pictures),
        pairs=None if pairs is None else tuple(pairs),
    )


def _captioned(folder: Path) -> tuple[list[Path], list[str], list[int]]:
    places: dict[Path, int] = {}
    texts: list[str] = []
    pairs: list[int] = []
    for number, line in enumerate(_lines(folder / CAPTIONS), start=1):
        if not line.strip():
            continue
        where = f"--calibrate {folder}: {CAPTIONS}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error})") from error
        name, captions = (row.get("image"), list(_captions(row))) if isinstance(row, dict) else (None, [])
        if not isinstance(name, str) or not captions or not all(isinstance(text, str) for text in captions):
            raise InputError(f'{where}: wanted {{"image": "a.jpg", "captions": ["...", ...]}}')
        _check_captions(captions, where)
        place = places.setdefault(_find_image(folder, name, where), len(places))
        texts += captions
        pairs += [place] * len(captions)
    return list(places), texts, pairs


def _captions(row: dict[str, Any]) -> Iterator[Any]:
    """None for a row that has both or neither of "caption" and "captions"."""
    if ("caption" in row) == ("captions" in row):
        yield None
        return
    captions = row.get("caption", row.get("captions"))
    for texts in captions.values() if isinstance(captions, dict) and "captions" in row else [captions]:
        yield from texts if isinstance(texts, list) else [texts]


def _check_captions(captions: list[str], where: str) -> None:
    for text in captions:
        if not text.strip():
            raise InputError(f"{where}: a caption is empty")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where}: a caption holds a lone surrogate, so it is no Unicode text") from error


def _find_image(folder: Path, name: str, where: str) -> Path:
    """By the names alone: where a link leads is the affair of whoever made it."""
    if not Path(os.path.abspath(folder / name)).is_relative_to(os.path.abspath(folder)):
        raise InputError(f"{where}: image {name!r:.200} lies outside the folder; put it there, or link it")
    for root in (folder, folder / "images"):
        path = Path(os.path.normpath(root / name))
        if os.path.isfile(path):
            return path
    raise InputError(f"{where}: there is no image {name!r:.200}")


def _choose(
    images: list[Path], texts: list[str], pairs: list[int] | None
) -> tuple[list[Path], list[str], list[int] | None]:
    """An even choice of images; of texts those that go with them, or an even choice too."""
    kept = _evenly(len(images), _MOST_IMAGES)
    place = {image: index for index, image in enumerate(kept)}
    of_kept = [index for index in range(len(texts)) if pairs is None or pairs[index] in place]
    chosen = [of_kept[index] for index in _evenly(len(of_kept), _MOST_TEXTS)]
    return (
        [images[index] for index in kept],
        [texts[index] for index in chosen],
        None if pairs is None else [place[pairs[index]] for index in chosen],
    )


def _evenly(count: int, most: int) -> list[int]:
    return [index * count // min(count, most) for index in range(min(count, most))]


def _lines(path: Path) -> list[str]:
    """Lines end at newlines alone: JSON may hold U+2028 as it is."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"--calibrate {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--calibrate {path}: not UTF-8 ({error.reason} at byte {error.start})") from error
