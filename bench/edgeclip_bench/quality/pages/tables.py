"""Read tables a row at a time: parquet, JSON lines, and text between tabs or commas.

Parquet needs pyarrow, which is loaded when such a file is opened. A file is mapped and read in batches of a few rows,
and only the columns that are asked for, so of a corpus of gigabytes of images a row group is in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.errors import InputError
from edgeclip.host.installation import needs_extra
from edgeclip_bench.quality.records import (
    Record,
    check_pointer,
    find_delimiter,
    plain_suffix,
    read_lines,
    read_records,
    read_table,
)

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

SUFFIXES = (".parquet", ".jsonl", ".tsv", ".csv")
# Rows read at once from parquet. Beside them pyarrow holds values of a row group, decompressed: of images at 1 MB in
# groups of 100, as the Hub writes them, 200 MB.
_PAGE_ROWS, _ROWS = 4, 4096


@dataclass(frozen=True, slots=True)
class Table:
    """One table in one file or in several (shards), in the order of their names.

    `columns` are those of the first, in lower case, as those of each row are.
    """

    files: tuple[Path, ...]
    columns: tuple[str, ...]

    @classmethod
    def open(cls, files: Sequence[Path]) -> "Table":
        """The table of these files; InputError for an empty one, MissingExtraError for parquet without pyarrow."""
        for file in files:
            if columns := _columns(file):
                return cls(tuple(files), columns)
        raise InputError(f"{files[0]}: holds no rows")

    def find(self, *names: str) -> str | None:
        """The first of these columns that is there."""
        return next((name for name in names if name in self.columns), None)

    def need(self, what: str, *names: str) -> str:
        """The first of these columns that is there; InputError, which calls it `what`, if none is."""
        if (found := self.find(*names)) is None:
            there = ", ".join(map(repr, self.columns))
            raise InputError(f"{self.files[0]}: no column for {what} ({' or '.join(names)}); there are: {there}")
        return found

    def rows(self, columns: Iterable[str], *, at_once: int = _ROWS) -> Iterator[Record]:
        """Each row of every file, with these columns at least; those that a row of JSON lines lacks are None."""
        wanted = list(dict.fromkeys(columns))
        for file in self.files:
            if plain_suffix(file) == ".parquet":
                yield from _parquet_rows(file, wanted, at_once)
            else:
                for record in _text_rows(file):
                    yield Record(record.where, {name: record.get(name) for name in wanted})

    def page_rows(self, columns: Iterable[str]) -> Iterator[Record]:
        """The same for columns with images, of which few are in memory together."""
        return self.rows(columns, at_once=_PAGE_ROWS)


def _columns(file: Path) -> tuple[str, ...]:
    """The names of a file's columns; none of a file that is empty."""
    if plain_suffix(file) == ".parquet":
        with _open_parquet(file) as opened:
            return tuple(name.lower() for name in opened.schema_arrow.names)
    if plain_suffix(file) == ".jsonl":
        found: dict[str, None] = {}
        for record in islice(read_records(file), 100):  # a field may be left out where it is null
            found |= dict.fromkeys(map(str.lower, record.fields))
        return tuple(found)
    _, header = next(_rows_of_text(file), ("", []))
    return tuple(map(str.lower, header))


def _text_rows(file: Path) -> Iterator[Record]:
    if plain_suffix(file) == ".jsonl":
        for record in read_records(file):
            yield Record(record.where, {name.lower(): value for name, value in record.fields.items()})
        return
    rows = _rows_of_text(file)
    header = [name.lower() for name in next(rows, ("", []))[1]]
    for where, row in rows:
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} columns, wanted {', '.join(header)}")
        yield Record(where, dict(zip(header, row, strict=True)))


def _rows_of_text(file: Path) -> Iterator[tuple[str, list[str]]]:
    """The rows of a table between tabs or the like, its header first."""
    _, line = next(read_lines(file), ("", ""))
    return read_table(file, delimiter=find_delimiter(line))


@contextmanager
def _open_parquet(file: Path) -> Iterator["ParquetFile"]:
    check_pointer(file)
    with needs_extra("bench"):
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    try:
        # Mapped and buffered, a column is read as it is decoded, not a whole row group first.
        with ParquetFile(file, memory_map=True, buffer_size=1 << 20) as opened:
            yield opened
    except (ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: cannot be read as parquet ({reason})") from error


def _parquet_rows(file: Path, columns: Sequence[str], at_once: int) -> Iterator[Record]:
    with _open_parquet(file) as opened:
        there, spelled = [], {name.lower(): name for name in opened.schema_arrow.names}
        for name in columns:  # of "image.path" without such a field the column as it is
            column, _, inner = name.partition(".")
            if column not in spelled:
                raise InputError(f"{file}: lacks the column {column!r} that the files before it have")
            has_fields = inner and opened.schema_arrow.field(spelled[column]).type.num_fields
            there.append(f"{spelled[column]}.{inner}" if has_fields else spelled[column])
        number = 0
        for batch in opened.iter_batches(batch_size=at_once, columns=there):
            rows: list[dict[str, Any]] = batch.to_pylist()
            for fields in rows:
                number += 1
                yield Record(f"{file}, row {number}", {name.lower(): value for name, value in fields.items()})
