"""Read a folder of a user's images and texts for `edgeclip quantize --calibrate`.

Images, and .txt files with a text per line; or images with captions in any layout of `edgeclip eval`, which say which
texts describe which image.
"""

import warnings
from collections.abc import Callable
from pathlib import Path

from edgeclip.errors import InputError, TruncationWarning
from edgeclip.families.family import Item
from edgeclip.families.tasks import needed_task
from edgeclip.families.token_texts import INPUT_IDS
from edgeclip.inputs.image_folder import is_system_name
from edgeclip.inputs.picture_folder import list_pictures
from edgeclip.manifest import Manifest
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.quality.languages import find_code, speaks_by_task
from edgeclip_bench.quality.layouts import open_captions
from edgeclip_quant.inputs.feeder import Feeder
from edgeclip_quant.inputs.made_up import Samples, text_items

# More images than these say little more, and each is a run of both bundles: 4 s at full size on two cores.
_MOST_IMAGES, _MOST_TEXTS = 400, 4000
_LEAST = 2
# A text, and its language if the data name it.
_Text = tuple[str, str | None]


def read_samples(
    folder: Path,
    bundle: Path,
    manifest: Manifest,
    *,
    is_recursive: bool = False,
    on_skip: Callable[[str], None] | None = None,
) -> Samples:
    """The samples in the folder that the bundle takes; of more than 400 images and 4000 texts an even choice.

    `is_recursive` takes subfolders too. With `on_skip`, an image that cannot be read or is not there is left out with
    its captions, and the reason is passed to it. InputError for anything else that cannot be read, and for too
    little.
    """
    if not folder.is_dir():
        raise InputError(f"--calibrate {folder}: is no folder, wanted one with images and texts")
    pairs: list[int] | None = None
    if data := open_captions(folder, on_skip):
        images = list(data.images)
        texts = [(caption.text, caption.language) for caption in data.captions]
        pairs = [caption.image for caption in data.captions]
    else:
        images, texts = _side_by_side(folder, is_recursive, skips_broken=on_skip is not None)
    images = images if manifest.image else []
    texts, pairs = (texts, pairs) if manifest.text else ([], None)
    _check_enough(folder, manifest, images, texts)
    found = len(images), len(texts)
    images, texts, pairs = _keep(_evenly(len(images), _MOST_IMAGES), images, texts, pairs if images else None)
    chosen = _evenly(len(texts), _MOST_TEXTS)
    texts, pairs = [texts[index] for index in chosen], pairs and [pairs[index] for index in chosen]
    feeder = Feeder(bundle, manifest)
    pictures = _prepare_images(feeder, images, on_skip)
    if len(pictures) < len(images):
        images, texts, pairs = _keep(list(pictures), images, texts, pairs)
        _check_enough(folder, manifest, images, texts)
    is_all = found == (len(images), len(texts))
    name = folder.resolve().name
    return Samples(
        name=name if is_all else f"{name} ({len(images)} of {found[0]} images, {len(texts)} of {found[1]} texts)",
        text=_prepare_texts(feeder, texts) if texts else (),
        image=tuple(pictures.values()),
        pairs=None if pairs is None else tuple(pairs),
    )


def _prepare_images(feeder: Feeder, images: list[Path], on_skip: Callable[[str], None] | None) -> dict[int, Item]:
    """The images as items by their places; without those that cannot be read, where `on_skip` is given."""
    task = needed_task(feeder.manifest, "image")
    pictures: dict[int, Item] = {}
    with ProgressBar("reading images", len(images), is_shown=is_wanted(None)) as bar:
        for index, path in enumerate(images):
            try:
                pictures[index] = feeder.family.image(str(path), task, max_pixels=None, label="--calibrate: image")
            except (InputError, MemoryError) as error:
                if on_skip is None:
                    raise
                on_skip(str(error))
            bar.advance(1)
    return pictures


def _prepare_texts(feeder: Feeder, texts: list[_Text]) -> tuple[Item, ...]:
    """The texts as items, with the task of their language or the needed one; a TruncationWarning counts cut ones."""
    manifest = feeder.manifest
    first = needed_task(manifest, "text")
    spoken = [language if speaks_by_task(manifest) else None for _, language in texts]
    tasks = [find_code(language, manifest) if language else first for language in spoken]
    items: list[Item | None] = [None] * len(texts)
    cut = 0
    for task in dict.fromkeys(tasks):
        rows = [row for row, one in enumerate(tasks) if one == task]
        prepared = feeder.family.texts([texts[row][0] for row in rows], task, None)
        cut += len(prepared.cut)
        for row, item in zip(rows, prepared.items, strict=True):
            items[row] = item
    if cut:
        limit = feeder.manifest.need_text().max_length
        warnings.warn(
            TruncationWarning(f"{cut} of {len(texts)} texts were cut to {limit} tokens", cut=cut), stacklevel=3
        )
    return text_items(feeder, [item.arrays[INPUT_IDS] for item in items if item is not None])


def _side_by_side(folder: Path, is_recursive: bool, *, skips_broken: bool) -> tuple[list[Path], list[_Text]]:
    """The images, and the lines of the .txt files, which say nothing of them."""
    images = [Path(path) for path in list_pictures(folder, is_recursive=is_recursive, skips_broken=skips_broken)]
    files = sorted(path for path in folder.glob("**/*" if is_recursive else "*") if path.suffix.lower() == ".txt")
    texts = set(files) - set(images)
    return images, [
        (line, None)
        for path in files
        if path in texts and not any(map(is_system_name, path.relative_to(folder).parts))
        for line in _lines(path)
        if line.strip()
    ]


def _check_enough(folder: Path, manifest: Manifest, images: list[Path], texts: list[_Text]) -> None:
    """InputError for fewer than two inputs of a modality that the bundle takes."""
    counts = {"images": len(images)} if manifest.image else {}
    counts |= {"texts": len(texts)} if manifest.text else {}
    if min(counts.values()) < _LEAST:
        found = " and ".join(f"{count} {what}" for what, count in counts.items())
        raise InputError(
            f"--calibrate {folder}: {found} (lines of .txt files, or captions in captions.jsonl), wanted "
            f"{_LEAST} {'of each ' * (len(counts) > 1)}or more"
        )


def _keep(
    kept: list[int], images: list[Path], texts: list[_Text], pairs: list[int] | None
) -> tuple[list[Path], list[_Text], list[int] | None]:
    """Keep the images of these indices, and of texts that belong to images only theirs."""
    some = [images[index] for index in kept]
    if pairs is None:
        return some, texts, None
    place = {image: index for index, image in enumerate(kept)}
    of_kept = [index for index in range(len(texts)) if pairs[index] in place]
    return some, [texts[index] for index in of_kept], [place[pairs[index]] for index in of_kept]


def _evenly(count: int, most: int) -> list[int]:
    return [index * count // min(count, most) for index in range(min(count, most))]


def _lines(path: Path) -> list[str]:
    """The lines of a file; lines end at newlines alone, because a text may hold U+2028."""
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise InputError(f"--calibrate {path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--calibrate {path}: not UTF-8 ({error.reason} at byte {error.start})") from error
