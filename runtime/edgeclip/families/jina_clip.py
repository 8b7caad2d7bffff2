"""jina-clip: texts and images of one square size, each by a graph of its own, to one vector.

    text  -> prompt -> token ids            -> graph "text"   -> text_embeds
    image -> one square size, uint8 pixels  -> graph "vision" -> image_embeds

Pooling, LoRA, mean and std, and the normalisation are inside the graphs.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator

from edgeclip.families.family import Arrays, Item, Prepared, refuse_max_pixels, stack
from edgeclip.families.tasks import find_task
from edgeclip.families.token_texts import TokenTexts
from edgeclip.inputs.images import ImageInput
from edgeclip.inputs.square import preprocess_image
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import FIRST_GRAPH, Manifest, Modality, Space

_PIXELS = "pixel_values"
_OUTPUTS = {"text": "text_embeds", "vision": "image_embeds"}
# An image costs so many tokens for each tile of so many pixels a side that it begins
# (https://jina.ai/embeddings, jina-clip-v2).
_TILE_PX, _TOKENS_PER_TILE = 512, 4000


class JinaClip:
    """jina-clip-v2 and jina-clip-v1 at run time (`edgeclip.families.family.Family`); v1 has no task."""

    # Whether an image that is not RGB is resized before it becomes RGB.
    _resizes_first = False

    def __init__(self, manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> None:
        self._manifest = manifest
        self._texts = TokenTexts(manifest, tokenizer, masks_padding=True)

    def texts(self, texts: Sequence[str], task: str | None, max_length: int | None) -> Prepared:
        """Texts as items, a task's instruction before each."""
        return self._texts.texts(texts, task, max_length)

    def token_ids(self, ids: Sequence[Sequence[int]], task: str | None, max_length: int | None) -> Prepared:
        """Token ids as items."""
        return self._texts.token_ids(ids, task, max_length)

    def image(self, image: ImageInput, task: str | None, *, max_pixels: int | None, label: str) -> Item:
        """An image as an item: `pixel_values` (S, S, 3) uint8."""
        find_task(self._manifest, task, "image")
        refuse_max_pixels(max_pixels)
        facts = self._manifest.need_image()
        pixels = preprocess_image(image, facts, label=label, resizes_first=self._resizes_first)
        return Item(graph=FIRST_GRAPH["image"], arrays={_PIXELS: pixels}, tokens=1, alike=pixels.shape)

    def feed(self, items: Sequence[Item]) -> Arrays:
        """A batch's arrays: ids (B, T) or pixels (B, S, S, 3)."""
        (name,) = items[0].arrays
        return {name: stack([item.arrays[name] for item in items])}

    def follow(self, item: Item, outputs: Arrays) -> Item | None:
        """None: each graph gives vectors."""
        return None

    def output(self, graph: str, space: Space) -> str:
        """text_embeds or image_embeds."""
        return _OUTPUTS[graph]

    def made_up(self, draw: Generator, modality: Modality, tokens: int) -> Item:
        """A text of random tokens, or an image of random pixels."""
        if modality == "text":
            return self._texts.made_up(draw, tokens)
        size = self._manifest.need_image().size_px
        pixels = draw.integers(0, 256, (size, size, 3), dtype=np.uint8)
        return Item(graph=FIRST_GRAPH["image"], arrays={_PIXELS: pixels}, tokens=1, alike=pixels.shape)

    def billed(self, item: Item, size: tuple[int, int] | None) -> int:
        """A text's tokens, with the special ones and the instruction; 4,000 for each tile that an image begins."""
        if size is None:
            return item.tokens
        width, height = size
        return -(-width // _TILE_PX) * -(-height // _TILE_PX) * _TOKENS_PER_TILE
