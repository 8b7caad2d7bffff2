"""Reading captioned images that a test has written."""

from pathlib import Path
from typing import Any

from edgeclip_bench.quality.datasets import ImageTextData
from edgeclip_bench.quality.layouts import open_data


def read(path: Path, **options: Any) -> ImageTextData:
    """The only data set there."""
    (data,) = open_data(path, **options)
    assert isinstance(data, ImageTextData)
    return data


def captions(data: ImageTextData) -> list[tuple[str, int, str | None]]:
    """Each caption's text, its image's index and its language."""
    return [(caption.text, caption.image, caption.language) for caption in data.captions]
