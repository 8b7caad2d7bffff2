"""The look that all plots share, and how figures are saved: the same file from the same figures."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

INK, PALE, GRID = "#1a1a1a", "#666666", "#dddddd"
# Okabe and Ito 2008, which colour-blind readers can tell apart, and more.
COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a4a1e", "#6a3d9a", "#8c8c8c"),
    *("#b8a800", "#1a1a1a"),
)
_STYLE: Any = {
    "axes.edgecolor": "#888888",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "svg.hashsalt": "edgeclip",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}


@contextmanager
def plot_style(**more: Any) -> Iterator[None]:
    """Draw in the shared style and `more` of matplotlib's settings (a dot in a name is two underscores)."""
    settings = _STYLE | {name.replace("__", "."): value for name, value in more.items()}
    with mpl.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        yield


def save_figure(figure: Figure, path: Path) -> None:
    """Write the figure as PNG or SVG, by the file's suffix."""
    figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)


def drawable(text: str) -> str:
    """Text in which a file name that is not UTF-8 is escaped, as JSON escapes it."""
    return text.encode(errors="backslashreplace").decode()
