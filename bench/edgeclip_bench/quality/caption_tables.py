"""Captions in a table beside the images: Hugging Face's imagefolder, and Flickr8k and Flickr30k as Kaggle has them.

A table is JSON lines, or rows under a header, and is known by its columns: metadata.jsonl and metadata.csv have
`file_name`, and a caption or a list of them (https://huggingface.co/docs/datasets/image_dataset); captions.txt
`image,caption`; results.csv `image_name| comment_number| comment`. Flickr8k.token.txt has no header: "a.jpg#0", a
tab, a caption. A file that is called like such a table and is none is an error: passed over, the images beside it
would be taken for something else, as for classes.
"""

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip.inputs.image_kinds import has_image_suffix
from edgeclip_bench.quality.datasets import ImageTextData
from edgeclip_bench.quality.image_text_layouts import Item, gather
from edgeclip_bench.quality.records import (
    Record,
    as_text,
    find_delimiter,
    list_folder,
    plain_suffix,
    read_lines,
    read_records,
    read_table,
)
from edgeclip_bench.quality.selection import Selection, choose_split

_IMAGE_COLUMNS = ("file_name", "image", "image_name", "filename", "image_path", "file_path")
_CAPTION_COLUMNS = ("caption", "captions", "text", "texts", "comment", "sentence", "sentences", "raw", "description")
_TOKEN = re.compile(r"(.+)#\d\t(.*)")
# Of one row of Kaggle's Flickr30k the bar between number and comment is missing.
_NUMBERED = re.compile(r"\s*\d+\s+(\S.*)")
_FOLDERS = (
    *("images", "Images", "flickr30k_images", "flickr30k-images", "flickr30k_images/flickr30k_images"),
    *("Flickr8k_Dataset", "Flicker8k_Dataset", "Flickr_Data/Images"),
)
# What is called so is meant as a table of captions, whatever is in it.
_TABLE_NAMES = re.compile(r"(metadata\.(jsonl|csv|tsv)|captions\.(csv|tsv))(\.gz)?", re.IGNORECASE)
# What is called so may be one: captions.txt may also hold plain texts, results.csv any results.
_LIKELY_NAMES = re.compile(r"(captions\.txt|results\.csv|.*\.token(\.txt)?)(\.gz)?", re.IGNORECASE)


def is_caption_table(file: Path) -> bool:
    """Say whether a file is a table of captions, by its name or by an image and a caption in its first row.

    Of captions.txt and results.csv one of the two, or an image file, is enough: reading them says what is missing.
    """
    if _TABLE_NAMES.fullmatch(file.name):
        return True
    if _LIKELY_NAMES.fullmatch(file.name) and plain_suffix(file) != ".jsonl" and _is_meant(file):
        return True
    try:
        _read(file)
    except InputError:
        return False
    return True


def caption_tables(folder: Path) -> list[Path]:
    """The files of a folder that are called as tables of captions are, and are such tables or meant as such."""
    return [
        path
        for path in list_folder(folder)
        if (_TABLE_NAMES.fullmatch(path.name) or _LIKELY_NAMES.fullmatch(path.name))
        and path.is_file()
        and is_caption_table(path)
    ]


def _is_meant(file: Path) -> bool:
    """Say whether the first row has a column of such a table, or begins with the name of an image file."""
    _, line = next(read_lines(file), ("", ""))
    _, columns = _split_header(line)
    is_known = any(column.lower() in (*_IMAGE_COLUMNS, *_CAPTION_COLUMNS) for column in columns)
    return len(columns) > 1 and (is_known or has_image_suffix(columns[0].partition("#")[0]))


def read_caption_table(file: Path, selection: Selection) -> ImageTextData:
    """The images and captions of a table, or of one split of it, with the images beside it or in Kaggle's folders."""
    rows = list(_read(file))
    splits = {str(split) for row in rows if (split := _optional(row, "split"))}
    if splits:
        split = choose_split(splits, selection.split, file)
        rows = [row for row in rows if _optional(row, "split") == split]
    else:
        selection.refuse(file, "a table of captions", split="which names no splits")
    return gather(
        map(_item, rows), file, selection, folders=_FOLDERS, benchmark=selection.name.lower(), is_split_up=True
    )


def _item(row: Record) -> Item:
    captions = row.take(_column(row, _CAPTION_COLUMNS, "caption"))
    if isinstance(captions, str) and captions.lstrip().startswith('["'):  # a list, in a table of strings
        try:
            captions = json.loads(captions)
        except ValueError as error:
            raise row.error(f"a list of captions that is no JSON ({error})") from error
    values = captions if isinstance(captions, list) else [captions]
    language = _optional(row, "language")
    language = as_text(language, row.where, "'language'") if language else None
    return Item(
        where=row.where,
        names=(row.text(_column(row, _IMAGE_COLUMNS, "image")).strip(),),
        captions=tuple((as_text(text, row.where, "a caption"), language) for text in values),
    )


def _read(file: Path) -> Iterator[Record]:
    """The rows of a table; InputError at once for what is none."""
    if plain_suffix(file) == ".jsonl":
        first, rows = next(read_records(file), Record(str(file), {})), read_records(file)
    else:
        where, line = next(read_lines(file), (str(file), ""))
        if _TOKEN.fullmatch(line):
            return _read_tokens(file)
        delimiter, columns = _split_header(line)
        first, rows = Record(where, dict.fromkeys(columns)), _read_rows(file, columns, delimiter)
    _column(first, _IMAGE_COLUMNS, "image")
    _column(first, _CAPTION_COLUMNS, "caption")
    return rows


def _split_header(line: str) -> tuple[str, list[str]]:
    """The delimiter of a header line, and the names of its columns."""
    delimiter = find_delimiter(line)
    return delimiter, [column.strip().strip('"') for column in line.split(delimiter)]


def _read_tokens(file: Path) -> Iterator[Record]:
    for where, line in read_lines(file):
        if line.strip():
            match = _TOKEN.fullmatch(line)
            if match is None:
                raise InputError(f"{where}: wanted a.jpg#0, a tab and a caption")
            yield Record(where, {"image": match[1], "caption": match[2]})


def _read_rows(file: Path, columns: list[str], delimiter: str) -> Iterator[Record]:
    """Yield each row below the header by column; surplus fields belong to the last column, if that is the caption."""
    quoting = csv.QUOTE_MINIMAL if delimiter in ",;" else csv.QUOTE_NONE
    rows = read_table(file, delimiter=delimiter, quoting=quoting)
    next(rows)
    for where, fields in rows:
        if len(fields) == len(columns) - 1 and (numbered := _NUMBERED.fullmatch(fields[-1])) and delimiter == "|":
            fields = [*fields[:-1], "", numbered[1]]
        if len(fields) > len(columns) and columns[-1].lower() in _CAPTION_COLUMNS:
            fields = [*fields[: len(columns) - 1], delimiter.join(fields[len(columns) - 1 :])]
        if len(fields) != len(columns):
            raise InputError(f"{where}: {len(fields)} columns, wanted {len(columns)}: {', '.join(columns)}")
        yield Record(where, dict(zip(columns, fields, strict=True)))


def _column(row: Record, known: tuple[str, ...], what: str) -> str:
    """The only column of those known, in capitals or not; InputError for none or several."""
    found = [column for column in row.fields if column.lower() in known]
    if len(found) != 1:
        there = ", ".join(map(repr, found)) or row.names() or "no column"
        raise row.error(f"found {there}; wanted one column for the {what}, called {', '.join(known)}")
    return found[0]


def _optional(row: Record, name: str) -> Any:
    """The value of the column of that name, in capitals or not; None where there is none."""
    return next((value for column, value in row.fields.items() if column.lower() == name), None)
