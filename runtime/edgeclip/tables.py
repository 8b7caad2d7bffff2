"""Byte counts and tables as a terminal shows them, for the command line and for the benchmarks."""

import unicodedata
from collections.abc import Sequence


def format_bytes(count: int) -> str:
    """Bytes in the unit a person would use, powers of ten: 1730556954 -> "1.73 GB"."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


def describe_vectors(modality: str, space: str) -> str:
    """What vectors are of, for the first column of a table: "text", or "text, each token"."""
    return modality if space == "single" else f"{modality}, each token"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as they need to be; the first to the left, the others to the right."""
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(_columns(row[column]) for row in table) for column in range(len(header))]
    lines = []
    for row in table:
        gaps = [" " * (width - _columns(cell)) for cell, width in zip(row, widths, strict=True)]
        cells = [row[0] + gaps[0], *(gap + cell for gap, cell in zip(gaps[1:], row[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _columns(text: str) -> int:
    """The terminal columns of a text: two for a wide character, none for a combining one."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)
