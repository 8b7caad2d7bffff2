"""A table of words under its title, as reports of all kinds hold it."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeclip.tables import format_table

NONE = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of words under a title; the first column says what a row is of."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render_table(table: Table) -> str:
    """For a terminal: the title, and under it the columns."""
    return f"{table.title}\n{format_table(table.header, table.rows)}"


def render_tables(tables: Sequence[Table]) -> str:
    """One below another."""
    return "\n\n".join(render_table(table) for table in tables)
