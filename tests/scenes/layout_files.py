"""Writing evaluation data by hand, and reading what is wrong with it."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from edgeclip.errors import InputError
from edgeclip_bench.quality.layouts import open_data


def write_images(folder: Path, *names: str) -> list[Path]:
    """Small real images."""
    paths = [folder / name for name in names]
    for number, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 3), (number, 0, 0)).save(path)
    return paths


def write_lines(path: Path, lines: Iterable[object], *, end: str = "\n") -> Path:
    """Texts as they are, everything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    path.write_bytes("".join(f"{text}{end}" for text in texts).encode())
    return path


def refusal(path: Path, **options: object) -> str:
    """The one line that opening fails with."""
    with pytest.raises(InputError) as caught:
        open_data(path, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    return message
