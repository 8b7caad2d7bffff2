"""Small data sets of pages in the layouts of the Hub: tables as parquet or JSON lines, with images."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow.parquet import write_table

SIZES = ((56, 84), (112, 56), (84, 84), (56, 56), (140, 84))
Rows = Sequence[Mapping[str, Any]]


def draw_page(number: int) -> bytes:
    """A PNG file of noise, another for each number."""
    pixels = np.random.default_rng(number).integers(0, 256, (*SIZES[number % len(SIZES)], 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def embedded(number: int) -> dict[str, Any]:
    """An image as the Hub's parquet has it."""
    return {"bytes": draw_page(number), "path": f"{number}.png"}


def write_parquet(path: Path, rows: Rows, *, shards: int = 1, row_group_size: int = 2) -> Path:
    """Rows as parquet; with several `shards` `path` is "test.parquet" for test-00000-of-00002.parquet and so on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        file = path if shards == 1 else path.with_name(f"{path.stem}-{shard:05}-of-{shards:05}.parquet")
        part = rows[len(rows) * shard // shards : len(rows) * (shard + 1) // shards]
        write_table(pa.Table.from_pylist([dict(row) for row in part]), file, row_group_size=row_group_size)
    return path.parent


def write_jsonl(path: Path, rows: Rows) -> Path:
    """Rows as JSON lines; an embedded image becomes a file in images/ beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for row in rows:
        line = dict(row)
        if isinstance(image := line.get("image"), dict):
            file = path.parent / "images" / image["path"]
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(image["bytes"])
            line["image"] = f"images/{file.name}"
        lines.append(json.dumps(line, ensure_ascii=False))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path.parent


def corpus(numbers: Sequence[int], key: str = "corpus-id") -> list[dict[str, Any]]:
    """Pages as rows, each with its number as its id."""
    return [{key: number, "image": embedded(number)} for number in numbers]


def queries(
    numbers: Sequence[int], *, key: str = "query-id", text: str = "query", **more: Any
) -> list[dict[str, Any]]:
    """Queries as rows; `more` are other columns, the same in each."""
    return [{key: number, text: f"what is on page {number}", **more} for number in numbers]


def qrels(grades: Mapping[tuple[Any, Any], int]) -> list[dict[str, Any]]:
    """Judgements as rows, by (query, page)."""
    return [{"query-id": query, "corpus-id": page, "score": grade} for (query, page), grade in grades.items()]
