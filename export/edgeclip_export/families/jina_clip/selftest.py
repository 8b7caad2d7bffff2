"""What a bundle is asked to prove itself: a few texts, a few images that are not square, and answers.

The answers are the fp32 torch towers', fed by tokenizers and Pillow directly. Nothing here goes
through the runtime's own preprocessing, so the self-test of a bundle checks that too: a wrong crop,
a squashed image or a text cut at 77 tokens gives other vectors.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tokenizers import Tokenizer

from edgeclip.manifest import ImageFacts
from edgeclip_export.families.jina_clip.config import TextConfig
from edgeclip_export.families.jina_clip.text_tower import TextTower
from edgeclip_export.families.jina_clip.vision_tower import VisionTower

TEXTS = (
    "a red bicycle leaning on a wall",
    "ein rotes Fahrrad an einer Wand",
    "夕日の海辺を歩く二人",
    "صورة لقطة سوداء تنام",
    "a <pad> is masked",
    " ".join(f"{number} sheep" for number in range(1, 201)),  # more rows than `passes.choice` calls few
)
IMAGE_SIZES_PX = ((96, 61), (40, 129))  # width, height

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """Inputs as a tower takes them: one row of ids per text, pixels (N, S, S, 3)."""

    images: tuple[NDArray[np.uint8], ...]
    ids: tuple[NDArray[np.int64], ...]
    pixels: NDArray[np.uint8]


def make_selftest(tokenizer: Tokenizer, text: TextConfig, image: ImageFacts) -> SelfTest:
    """Tokenise the texts, draw and preprocess the images."""
    rows = []
    for row in (tokenizer.encode(sentence).ids for sentence in TEXTS):
        cut = row if len(row) <= text.max_tokens else [*row[: text.max_tokens - 1], text.eos_id]
        rows.append(np.array([cut], dtype=np.int64))  # (1, T)
    images = tuple(draw_image(width, height) for width, height in IMAGE_SIZES_PX)
    return SelfTest(
        images=images, ids=tuple(rows), pixels=np.stack([preprocess(picture, image) for picture in images])
    )


def answer_texts(tower: TextTower, selftest: SelfTest) -> NDArray[np.float32]:
    """The tower's vector for each text (N, D)."""
    with torch.inference_mode():
        return torch.cat([tower(torch.from_numpy(row)) for row in selftest.ids]).numpy()


def answer_images(tower: VisionTower, selftest: SelfTest) -> NDArray[np.float32]:
    """The tower's vector for each image (N, D)."""
    with torch.inference_mode():
        return torch.cat([tower(torch.from_numpy(pixels)[None]) for pixels in selftest.pixels]).numpy()


def draw_image(width: int, height: int) -> NDArray[np.uint8]:
    """A smooth picture with an edge and some grain, (height, width, 3), the same on every machine."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * x // max(width - 1, 1)
    green = 255 * y // max(height - 1, 1)
    blue = np.where((x - width // 3) ** 2 + (y - height // 2) ** 2 < (height // 4) ** 2, 220, 40)
    grain = (x * 7 + y * 13) % 32
    return np.stack((red, green, blue - grain), axis=-1).clip(0, 255).astype(np.uint8)


def preprocess(picture: NDArray[np.uint8], facts: ImageFacts) -> NDArray[np.uint8]:
    """Resize and centre crop (or pad) with Pillow, by the reference's rules: (S, S, 3)."""
    size = facts.size_px
    image = Image.fromarray(picture)
    width, height = image.size
    if facts.resize_mode == "squash":
        target = (size, size)
    elif facts.resize_mode == "longest":
        scale = size / max(width, height)
        target = (round(width * scale), round(height * scale))
    else:
        short, long = min(width, height), int(size * max(width, height) / min(width, height))
        target = (size, long) if width == short else (long, size)
    image = image.resize(target, _RESAMPLING[facts.interpolation])
    if facts.resize_mode == "longest":
        canvas = Image.new("RGB", (size, size), (facts.fill_color,) * 3)
        canvas.paste(image, ((size - target[0]) // 2, (size - target[1]) // 2))
        return np.asarray(canvas)
    left, top = (round((side - size) / 2) for side in target)
    return np.asarray(image.crop((left, top, left + size, top + size)))
