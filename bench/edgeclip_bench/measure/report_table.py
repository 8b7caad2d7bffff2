"""A table of words under a title, for reports of all kinds."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from edgeclip.tables import format_table

NONE = "-"

Item = TypeVar("Item")
# The headers of a table, each with what gives the cell below it.
Columns = Mapping[str, Callable[[Item], str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of words under a title, and notes below; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def make_table(title: str, items: Iterable[Item], columns: Columns[Item], notes: Sequence[str] = ()) -> Table:
    """The table with a row for each item."""
    rows = tuple(tuple(cell(item) for cell in columns.values()) for item in items)
    return Table(title=title, header=tuple(columns), rows=rows, notes=tuple(notes))


def render_table(table: Table) -> str:
    """The table for a terminal: the title, the columns under it, and the notes."""
    return "\n".join((table.title, format_table(table.header, table.rows), *(f"  {note}" for note in table.notes)))


def render_tables(tables: Sequence[Table]) -> str:
    """Several tables, one below another."""
    return "\n\n".join(render_table(table) for table in tables)
