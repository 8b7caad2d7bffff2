"""A table of words under a title, for reports of all kinds."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeclip.tables import format_table

NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of words under a title, and notes below; the first column names the row."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def render_table(table: Table) -> str:
    """The table for a terminal: the title, the columns under it, and the notes."""
    return "\n".join((table.title, format_table(table.header, table.rows), *(f"  {note}" for note in table.notes)))


def render_tables(tables: Sequence[Table]) -> str:
    """Several tables, one below another."""
    return "\n\n".join(render_table(table) for table in tables)
