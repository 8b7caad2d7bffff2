"""A folder of a user's images and texts, as `edgeclip quantize --calibrate` takes it.

Images, and .txt files with a text per line; or images with captions in any layout of docs/evaluating.md, read by the
reader of `edgeclip eval`, which say which texts describe which image.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError, TruncationWarning
from edgeclip.families.jina_clip import preprocess_image
from edgeclip.inputs.image_folder import is_system_name
from edgeclip.inputs.picture_folder import list_pictures
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.quality.layouts import open_captions
from edgeclip_quant.inputs.made_up import Samples

# More images than these say little more, and each is a run of both bundles: 4 s at full size on two cores.
_MOST_IMAGES, _MOST_TEXTS = 400, 4000
_LEAST = 2


def read_samples(
    folder: Path,
    bundle: Path,
    manifest: Manifest,
    *,
    is_recursive: bool = False,
    on_skip: Callable[[str], None] | None = None,
) -> Samples:
    """The samples in the folder; of more than 400 images and 4000 texts an even choice.

    `is_recursive` takes the images and .txt files of subfolders too. With `on_skip`, an image that cannot be read or
    is not there is left out with its captions, and the reason is passed to it. Raises InputError, naming the file,
    for what cannot be read and for a folder with too little in it.
    """
    if not folder.is_dir():
        raise InputError(f"--calibrate {folder}: is no folder, wanted one with images and texts")
    pairs: list[int] | None = None
    if data := open_captions(folder, on_skip):
        images, texts = list(data.images), [caption.text for caption in data.captions]
        pairs = [caption.image for caption in data.captions]
    else:
        images, texts = _side_by_side(folder, is_recursive, skips_broken=on_skip is not None)
    _check_enough(folder, images, texts)
    found = len(images), len(texts)
    images, texts, pairs = _choose(images, texts, pairs)
    pictures: dict[int, Any] = {}
    with ProgressBar("reading images", len(images), is_shown=is_wanted(None)) as bar:
        for index, path in enumerate(images):
            try:
                pictures[index] = preprocess_image(str(path), manifest.image, label="--calibrate: image")[None]
            except (InputError, MemoryError) as error:
                if on_skip is None:
                    raise
                on_skip(str(error))
            bar.advance(1)
    if len(pictures) < len(images):
        images, texts, pairs = _keep(list(pictures), images, texts, pairs)
        _check_enough(folder, images, texts)
    tokenized = TextTokenizer(bundle / manifest.tokenizer.file, manifest.tokenizer).encode(texts, None)
    if cut := len(tokenized.cut):
        told = f"{cut} of {len(texts)} texts were cut to {manifest.tokenizer.max_length} tokens"
        warnings.warn(TruncationWarning(told, cut=cut), stacklevel=2)
    is_all = found == (len(images), len(texts))
    name = folder.resolve().name
    return Samples(
        name=name if is_all else f"{name} ({len(images)} of {found[0]} images, {len(texts)} of {found[1]} texts)",
        text=tuple(row[None] for row in tokenized.rows),
        vision=tuple(pictures.values()),
        pairs=None if pairs is None else tuple(pairs),
    )


def _side_by_side(folder: Path, is_recursive: bool, *, skips_broken: bool) -> tuple[list[Path], list[str]]:
    """The images, and the lines of the .txt files, which say nothing of them."""
    images = [Path(path) for path in list_pictures(folder, is_recursive=is_recursive, skips_broken=skips_broken)]
    files = sorted(path for path in folder.glob("**/*" if is_recursive else "*") if path.suffix.lower() == ".txt")
    texts = set(files) - set(images)
    return images, [
        line
        for path in files
        if path in texts and not any(map(is_system_name, path.relative_to(folder).parts))
        for line in _lines(path)
        if line.strip()
    ]


def _check_enough(folder: Path, images: list[Path], texts: list[str]) -> None:
    if len(texts) < _LEAST or len(images) < _LEAST:
        raise InputError(
            f"--calibrate {folder}: {len(images)} images and {len(texts)} texts (lines of .txt files, or captions in "
            f"captions.jsonl), wanted {_LEAST} of each or more"
        )


def _choose(
    images: list[Path], texts: list[str], pairs: list[int] | None
) -> tuple[list[Path], list[str], list[int] | None]:
    """An even choice of images; of texts those that go with them, or an even choice too."""
    images, texts, pairs = _keep(_evenly(len(images), _MOST_IMAGES), images, texts, pairs)
    chosen = _evenly(len(texts), _MOST_TEXTS)
    return images, [texts[index] for index in chosen], None if pairs is None else [pairs[index] for index in chosen]


def _keep(
    kept: list[int], images: list[Path], texts: list[str], pairs: list[int] | None
) -> tuple[list[Path], list[str], list[int] | None]:
    """Only the images of these indices; of texts that belong to images, only theirs."""
    some = [images[index] for index in kept]
    if pairs is None:
        return some, texts, None
    place = {image: index for index, image in enumerate(kept)}
    of_kept = [index for index in range(len(texts)) if pairs[index] in place]
    return some, [texts[index] for index in of_kept], [place[pairs[index]] for index in of_kept]


def _evenly(count: int, most: int) -> list[int]:
    return [index * count // min(count, most) for index in range(min(count, most))]


def _lines(path: Path) -> list[str]:
    """Lines end at newlines alone: a text may hold U+2028."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"--calibrate {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--calibrate {path}: not UTF-8 ({error.reason} at byte {error.start})") from error
