"""Evaluation data as users have it on disk, opened by what is there.

Detection reads names and first records, never a dataset's name; where nothing fits, or two things do, the message
lists what was found. Nothing is fetched, nothing is unpacked but .gz.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.inputs.image_folder import holds_image
from edgeclip_bench.quality.caption_tables import caption_tables, is_caption_table, read_caption_table
from edgeclip_bench.quality.class_folders import is_class_folders, read_class_folders
from edgeclip_bench.quality.datasets import Data, ImageTextData, PageData
from edgeclip_bench.quality.image_text_layouts import (
    choose_coco,
    is_coco,
    is_xtd10,
    read_captions,
    read_coco,
    read_crossmodal,
    read_image_folder,
    read_karpathy,
    read_xtd10,
)
from edgeclip_bench.quality.known_layouts import LISTED, PARQUET, not_understood
from edgeclip_bench.quality.pages.reading import captions_of, open_page_table, open_pages
from edgeclip_bench.quality.records import (
    Record,
    list_folder,
    plain_stem,
    plain_suffix,
    read_head,
    read_json,
    read_records,
)
from edgeclip_bench.quality.selection import Selection, choose_split
from edgeclip_bench.quality.text_layouts import choose_sts, is_retrieval, is_sts, read_retrieval, read_sts

Found = Data | tuple[Data, ...]

# Karpathy's and COCO's files name their "images" before that.
_HEAD_BYTES = 4096


def open_data(
    path: Path,
    *,
    images: Path | None = None,
    split: str | None = None,
    languages: Sequence[str] | None = None,
    name: str | None = None,
    limit: int | None = None,
    with_text: bool = False,
) -> tuple[Data, ...]:
    """Read the data sets of a file or a folder: mostly one, several where languages or parts are kept apart.

    `images` is the folder of the image files, where they do not lie with the captions. `split` is test unless given
    (see `selection.choose_split`). `limit` keeps the first images with their captions, the first queries, the first
    pairs of each language, or an even share of each class. `with_text` reads the texts beside pages. Raises
    InputError, naming file and line, for whatever is missing, damaged or contradictory, and for an option that the
    layout cannot follow.
    """
    selection = Selection(
        name=name or _name_of(path),
        is_named=bool(name),
        images=images,
        split=split,
        languages=None if languages is None else tuple(languages),
        limit=limit,
        with_text=with_text,
    )
    try:
        if path.is_dir() or path.is_file():
            found = _open_folder(path, selection) if path.is_dir() else _open_file(path, selection)
            opened = found if isinstance(found, tuple) else (found,)
            if with_text and not all(isinstance(one, PageData) for one in opened):
                raise InputError(f"{path}: --with-text is for pages with queries")
            return opened
    except OSError as error:  # of a file in a folder that may be listed and not entered
        raise InputError(f"{error.filename or path}: cannot be read ({error.strerror})") from error
    raise InputError(f"{path}: no such file or folder")


def open_captions(folder: Path, on_missing: Callable[[str], None] | None = None) -> ImageTextData | None:
    """The images and captions of a folder where a file says which texts describe which images, else None.

    With `on_missing`, an image that is not there is left out with its captions, and the reason is passed to it. The
    queries of pages in image files are their captions.
    """
    selection = Selection(name=_name_of(folder), on_missing=on_missing)
    if pages := open_pages(folder, selection):
        return captions_of(folder, pages)
    while (found := _open_described(folder, selection)) is None:
        if (inner := _data_folder(folder)) is None or holds_image(folder):
            return None
        folder = inner
    return found if isinstance(found, ImageTextData) else None


def _name_of(path: Path) -> str:
    path = Path(os.path.abspath(path))  # "." and ".." have a name too
    return path.name if path.is_dir() else plain_stem(path)


def _open_file(path: Path, selection: Selection) -> Found:
    suffix = plain_suffix(path)
    if suffix in (".parquet", ".jsonl") and (pages := open_page_table(path, selection)):
        return pages
    if suffix == ".json":
        return _open_json(path, selection)
    if suffix == ".jsonl":
        return _open_json_lines(path, selection)
    if suffix in (".tsv", ".csv", ".txt", ".token") and is_caption_table(path):
        return read_caption_table(path, selection)
    if suffix in (".tsv", ".csv"):
        return _open_pairs(path, selection)
    raise not_understood(path, f"is {suffix or 'without a suffix'}")


def _open_json_lines(path: Path, selection: Selection) -> Found:
    """Choose the reader by the fields of the first line."""
    first = next(read_records(path), None)
    if first is None:
        raise InputError(f"{path}: is empty")
    if "image/key" in first:
        return read_crossmodal(path, selection)
    if "image" in first:
        return read_captions(path, selection)
    if is_caption_table(path):
        return read_caption_table(path, selection)
    if "sentence1" in first:
        return _open_pairs(path, selection)
    raise not_understood(path, f"its first line has {first.names() or 'no fields'}")


def _open_json(path: Path, selection: Selection) -> Found:
    document = Record.of(read_json(path), str(path))
    if "annotations" in document:
        return read_coco(path, document, selection)
    if "images" in document:
        return read_karpathy(path, document, selection)
    raise not_understood(path, f"has {', '.join(map(repr, list(document.fields)[:LISTED])) or 'no fields'}")


def _open_pairs(path: Path, selection: Selection) -> Found:
    selection.refuse(path, "a file of sentence pairs", split="which is one")
    return read_sts(path, selection)


def _open_folder(folder: Path, selection: Selection) -> Found:
    """Files that describe a dataset go before folders of images, which may be theirs."""
    if (pages := open_pages(folder, selection)) is not None:
        return pages
    if (described := _open_described(folder, selection)) is not None:
        return described
    if holds_image(folder):
        return read_image_folder(folder, selection)
    if inner := _data_folder(folder):
        return _open_folder(inner, selection)
    if is_class_folders(folder):
        return read_class_folders(folder, selection)
    paths = list_folder(folder)
    tables = [path for path in paths if path.is_file() and plain_suffix(path) in (".jsonl", ".tsv", ".csv")]
    if pairs := [file for file in tables if is_sts(file)]:
        return read_sts(choose_sts(pairs, selection, folder), selection)
    # BEIR's cqadupstack is twelve datasets.
    folders, entered = _folders_in(paths)
    if parts := [path for path in entered if is_retrieval(path)]:
        _check_entered(folders, entered)
        return tuple(read_retrieval(part, replace(selection, name=f"{selection.name}/{part.name}")) for part in parts)
    names = [f"{path.name}/" if path.is_dir() else path.name for path in paths]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    raise not_understood(folder, f"holds {', '.join(names[:LISTED]) or 'nothing'}{more}")


def _open_described(folder: Path, selection: Selection) -> Found | None:
    """Read what files in the folder, or in its splits, describe; None where no file describes a data set."""
    paths = list_folder(folder)
    files = [path for path in paths if path.is_file()]
    folders, entered = _folders_in(paths)
    found: dict[str, Callable[[], Found]] = {}
    if is_retrieval(folder):
        found["a corpus"] = partial(read_retrieval, folder, selection)
    if is_xtd10(folder):
        found["XTD10"] = partial(read_xtd10, folder, selection)
    if is_coco(folder):
        found["annotations/captions_*.json"] = lambda: _open_json(
            choose_coco(folder, selection), replace(selection, split=None)
        )
    for table in caption_tables(folder):
        found[table.name] = partial(read_caption_table, table, selection)
    for file in files:
        if plain_stem(file) == "captions" and plain_suffix(file) == ".jsonl":
            found[file.name] = partial(_open_json_lines, file, selection)
        if plain_suffix(file) == ".json" and b'"images"' in read_head(file, _HEAD_BYTES):
            found[file.name] = partial(_open_json, file, selection)
    if len(found) > 1:
        raise InputError(f"{folder}: holds {', '.join(found)}; name the file that is meant, or keep them apart")
    for read in found.values():
        return read()
    if splits := {path.name: path for path in entered if caption_tables(path)}:
        if selection.split not in splits:
            _check_entered(folders, entered)
        chosen = splits[choose_split(splits, selection.split, folder)]
        return _open_folder(chosen, replace(selection, split=None))
    if tables := [path for part in (folder, *entered) for path in part.glob("metadata.parquet")]:
        raise InputError(f"{tables[0]}: {PARQUET}")
    if lists := [file.name for file in files if _names_images(file)]:
        raise InputError(
            f"{folder}: holds {', '.join(lists)}; name the file that is meant, or call it captions.jsonl"
        )
    return None


def _data_folder(folder: Path) -> Path | None:
    """The folder data/ where it is the only one, as in the Hub's repositories."""
    folders, _ = _folders_in(list_folder(folder))
    return folders[0] if [path.name for path in folders] == ["data"] else None


def _folders_in(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """The folders among the paths, and those of them that can be entered and listed."""
    folders = [path for path in paths if path.is_dir()]
    return folders, [path for path in folders if os.access(path, os.R_OK | os.X_OK)]


def _check_entered(folders: Sequence[Path], entered: Sequence[Path]) -> None:
    """InputError for a subfolder that cannot be entered, where it may be the one that is meant."""
    if shut := [path for path in folders if path not in entered]:
        raise InputError(f"{shut[0]}: cannot be read; make it readable, or name the folder or file that is meant")


def _names_images(file: Path) -> bool:
    """Say whether a file of another name lists which texts describe which images."""
    if plain_suffix(file) in (".csv", ".tsv"):
        return is_caption_table(file)
    if plain_suffix(file) != ".jsonl":
        return False
    try:
        first = next(read_records(file))
    except (StopIteration, InputError):
        return False
    return "image" in first or "image/key" in first
