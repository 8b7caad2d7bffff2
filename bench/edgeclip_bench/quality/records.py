"""Read files of records a line at a time: JSON lines, tables and text, as data sets on the internet have them.

Text is UTF-8, with or without a byte order mark, with either line end, and gzipped where the name ends in .gz. What
is wrong with a line is an InputError that begins with the file and the line's number. Nothing is held but the line;
only `read_json` holds its file.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Self, cast

from edgeclip.errors import InputError
from edgeclip.inputs.image_folder import is_system_name
from edgeclip.manifest import POINTER_BYTES, describe_pointer

# A line of a file that holds none would fill the memory, and gzip makes such a file of a few megabytes.
LONGEST_LINE_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """A JSON object or a table's row, with its place (`file:number`), which begins each message about it."""

    where: str
    fields: Mapping[str, Any]

    @classmethod
    def of(cls, value: object, where: str) -> Self:
        """The record that a JSON value is; InputError unless it is an object."""
        if not isinstance(value, dict):
            raise InputError(f"{where}: wanted a JSON object, found {_kind(value)}")
        return cls(where, value)

    def __contains__(self, key: str) -> bool:
        return key in self.fields

    def get(self, key: str) -> Any:
        """The value under `key`; None where there is none."""
        return self.fields.get(key)

    def take(self, key: str) -> Any:
        """The value that must stand under `key`."""
        if key not in self.fields:
            raise self.error(f"{key!r} is missing; there are: {self.names() or 'no fields'}")
        return self.fields[key]

    def text(self, key: str, *, may_be_empty: bool = False) -> str:
        """The text that must stand under `key`."""
        return as_text(self.take(key), self.where, repr(key), may_be_empty=may_be_empty)

    def id(self, key: str) -> str:
        """The id under `key`: a string, or a whole number as its digits."""
        value = self.take(key)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return as_text(value, self.where, repr(key))

    def number(self, key: str, what: str) -> float:
        """A JSON number, or a string that is one, not necessarily finite; `what` names it in the message."""
        value = self.take(key)
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            with suppress(ValueError, OverflowError):
                return float(value)
        raise self.error(f"{what} is {value!r:.50}, wanted a number")

    def array(self, key: str) -> list[Any]:
        """The JSON array that must stand under `key`."""
        return as_list(self.take(key), f"{self.where}: {key!r}")

    def names(self) -> str:
        """The names of all fields, for messages."""
        return ", ".join(map(repr, self.fields))

    def error(self, what: str) -> InputError:
        """An error of this record."""
        return InputError(f"{self.where}: {what}")


def plain_suffix(path: Path) -> str:
    """The suffix in lower case, of x.jsonl.gz too: ".jsonl"."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def plain_stem(path: Path) -> str:
    """The name without its suffix, of x.jsonl.gz too: "x"."""
    return Path(path.stem).stem if path.name.lower().endswith(".gz") else path.stem


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line without its end, after `file:number` for messages; InputError where it cannot be read."""
    check_pointer(path)
    with _open(path) as file:
        number = 0
        while line := file.readline(LONGEST_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > LONGEST_LINE_BYTES:
                raise InputError(f"{where}: the line is longer than {LONGEST_LINE_BYTES >> 20} MiB")
            yield where, _decode(line, where, "utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")


def read_records(path: Path) -> Iterator[Record]:
    """The JSON object of each line that is not blank."""
    for where, line in read_lines(path):
        if line and not line.isspace():
            yield Record.of(_parse_json(line, where), where)


def read_table(path: Path, *, delimiter: str, quoting: int = csv.QUOTE_MINIMAL) -> Iterator[tuple[str, list[str]]]:
    """The fields of each row that is not blank, after `file:number` (of the row's last line)."""
    lines = (f"{line}\n" for _, line in read_lines(path))
    rows = csv.reader(lines, delimiter=delimiter, quoting=cast("Any", quoting), strict=True)
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise InputError(f"{path}:{rows.line_num}: not a row of a table ({error})") from error
        if row is None:
            return
        if row:
            yield f"{path}:{rows.line_num}", row


def read_json(path: Path) -> Any:
    """The JSON value that the file is, as a whole."""
    check_pointer(path)
    with _open(path) as file:
        data = file.read()
    return _parse_json(_decode(data, str(path), "utf-8-sig"), str(path))


def read_head(path: Path, size_bytes: int) -> bytes:
    """The file's first bytes, to see what it is."""
    with _open(path) as file:
        return file.read(size_bytes)


def check_pointer(path: Path) -> None:
    """InputError for a file that stands for one which was not fetched (Git LFS, git-annex)."""
    try:
        with path.open("rb") as file:
            found = describe_pointer(file.read(POINTER_BYTES))
    except OSError:
        return  # for the reader to say
    if found:
        raise InputError(f"{path}: {found}")


def find_delimiter(header: str) -> str:
    """The character between the columns of a table, by its first line: a bar, a tab, a semicolon or a comma."""
    return next((one for one in "|\t;," if one in header), ",")


def list_folder(folder: Path) -> list[Path]:
    """The entries of a folder by name, without hidden and system files (`edgeclip.inputs.image_folder`)."""
    try:
        return sorted(path for path in folder.iterdir() if not is_system_name(path.name))
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror})") from error


def as_list(value: object, where: str) -> list[Any]:
    """`value`, checked to be a JSON array."""
    if not isinstance(value, list):
        raise InputError(f"{where}: wanted a JSON array, found {_kind(value)}")
    return value


def as_text(value: object, where: str, what: str, *, may_be_empty: bool = False) -> str:
    """`value`, checked to be text that can be encoded; `what` names it in the message."""
    if not isinstance(value, str):
        raise InputError(f"{where}: {what} is {_kind(value)}, wanted a string")
    if not may_be_empty and not value.strip():
        raise InputError(f"{where}: {what} is empty")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {what} holds a lone surrogate, so it is no Unicode text") from error
    return value


@contextmanager
def _open(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """The file, unzipped where it is gzipped; InputError where it cannot be read."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _decode(data: bytes, where: str, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _parse_json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON ({error.msg} at character {error.pos})") from error
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, or thousands of brackets
        raise InputError(f"{where}: JSON that cannot be read ({error})") from error


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")
