"""Make up inputs where there are no data: texts of random tokens, pictures of random patches and slopes.

They show what a tower's layers do to inputs of every length and contrast, not what a user's data look like:
calibrating on those is better.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.errors import BuildError
from edgeclip.manifest import Manifest, TowerName

Batches = tuple[NDArray[Any], ...]

_LENGTHS = (3, 64)
_CELLS = (2, 4, 8, 16)


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs of both towers in the graphs' form: ids (B, T) and pixels (B, S, S, 3). `name` describes them.

    `pairs` gives for each text the index of the image that it describes, None where that is unknown.
    """

    name: str
    text: Batches
    vision: Batches
    pairs: tuple[int, ...] | None = None

    def of(self, tower: TowerName) -> Batches:
        """The samples of one tower."""
        return self.text if tower == "text" else self.vision

    def halves(self) -> tuple["Samples", "Samples"]:
        """Two halves: every other image to calibrate on, and the rest to prove on; texts go with their images, or
        alternate.
        """
        return self._half(0), self._half(1)

    def _half(self, which: int) -> "Samples":
        vision = self.vision[which::2]
        if self.pairs is None:
            return Samples(name=self.name, text=self.text[which::2], vision=vision)
        kept = [index for index, image in enumerate(self.pairs) if image % 2 == which]
        return Samples(
            name=self.name,
            text=tuple(self.text[index] for index in kept),
            vision=vision,
            pairs=tuple(self.pairs[index] // 2 for index in kept),
        )


def made_up_samples(bundle: Path, manifest: Manifest, *, texts: int, images: int, seed: int = 0) -> Samples:
    """Made-up samples for the bundle in this folder; the same arguments give the same samples.

    Raises BuildError for a bundle without a tokenizer.
    """
    draw = np.random.default_rng(seed)
    vocabulary = _vocabulary(bundle / manifest.tokenizer.file)
    facts = manifest.tokenizer
    allowed = np.setdiff1d(np.arange(vocabulary), [facts.pad_id, facts.bos_id, facts.eos_id])
    rows = [
        np.concatenate(([facts.bos_id], draw.choice(allowed, draw.integers(*_LENGTHS)), [facts.eos_id]))[None]
        for _ in range(texts)
    ]
    return Samples(
        name="made-up inputs",
        text=tuple(row.astype(np.int64) for row in rows),
        vision=tuple(_picture(manifest.image.size_px, draw)[None] for _ in range(images)),
    )


def padded_pair(texts: Batches, pad_id: int) -> NDArray[np.int64]:
    """The shortest and the longest text as one batch (2, T), which needs a mask, as no single text does."""
    rows = sorted((batch[0] for batch in texts), key=len)
    pair = np.full((2, len(rows[-1])), pad_id, np.int64)
    for index, row in enumerate((rows[0], rows[-1])):
        pair[index, : len(row)] = row
    return pair


def _vocabulary(path: Path) -> int:
    try:
        return Tokenizer.from_file(str(path)).get_vocab_size()
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
        raise BuildError(f"{path}: not a tokenizer ({error}); export or copy the bundle again") from error


def _picture(size_px: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of flat cells, of one of four sizes, under a slope of light."""
    cells = int(draw.choice(_CELLS))
    side = -(-size_px // cells)
    flat = np.kron(draw.uniform(0, 255, (cells, cells, 3)), np.ones((side, side, 1)))[:size_px, :size_px]
    slope = np.linspace(-60, 60, size_px)[:, None, None] * draw.uniform(-1, 1)
    return (flat + slope + draw.normal(0, 8, flat.shape)).clip(0, 255).astype(np.uint8)
