"""What `edgeclip embed` wrote, a row for each input, whichever form it has."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """An input, and its vector or why it has none."""

    name: str
    vector: Any
    error: str | None


def read_rows(written: Path | str) -> list[Row]:
    """The rows of a .npy with its sidecar, of a .jsonl, or of what stdout had."""
    is_npy = isinstance(written, Path) and written.suffix == ".npy"
    if isinstance(written, Path):
        text = Path(f"{written}.rows.jsonl" if is_npy else written).read_text(encoding="utf-8")
    else:
        text = written
    vectors = np.load(written) if is_npy else None
    rows = []
    for document in map(json.loads, text.split("\n")[:-1]):
        if vectors is not None:
            vector = None if document["row"] is None else vectors[document["row"]]
        else:
            vector = document["embedding"]
        name = document.get("text", document.get("image"))
        rows.append(Row(name, vector, document.get("error")))
    return rows
