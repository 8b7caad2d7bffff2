"""jina-embeddings-v4: texts and images of any size, by one decoder, to one vector or to a vector per token.

    text  -> prompt -> token ids                                             -> graph "text" -> single, multi
    image -> patches -> graph "vision" -> image features, the image's prompt -> graph "text" -> single, multi

The adapter of the task is used in the graph "text" alone, so an image's features are the same for every task. The
decoder is causal. A text's single vector is the mean over all of its tokens, an image's is the mean over the tokens
of the image and the marker on each side, not over the other words of its prompt. What an item is decides that, never
an id in a text: a text that spells a marker is a text.

Normalisation of pixels, pooling and the normalisation of vectors are inside the graphs.
"""

from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgeclip.errors import BundleError, InputError
from edgeclip.families.family import Arrays, Item, Prepared, stack
from edgeclip.families.tasks import find_task
from edgeclip.inputs.images import ImageInput
from edgeclip.inputs.patches import Grid, cut_patches, group_windows, patch_positions
from edgeclip.inputs.tokenization import TextTokenizer, check_max_length
from edgeclip.manifest import FIRST_GRAPH, Manifest, Modality, PatchFacts, Space

_INPUT_IDS, _PIXELS, _FEATURES = "input_ids", "pixel_values", "image_features"
# Inputs of the graph "vision" that are the same for all images of a batch, because these have one grid.
_SHARED = ("patch_positions", "windows", "window_places")
# An id of `image_places` for a token that takes the embedding of its own id.
_NO_PLACE = -1


class JinaEmbeddingsV4:
    """jina-embeddings-v4 at run time (`edgeclip.families.family.Family`)."""

    def __init__(self, manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> None:
        self._manifest, self._tokenizer = manifest, tokenizer
        self._no_features = np.zeros((1, _width(manifest)), np.float32)

    def texts(self, texts: Sequence[str], task: str | None, max_length: int | None) -> Prepared:
        """Texts as items, the task's prompt before each; a text that is too long loses its end."""
        found = find_task(self._manifest, task, "text")
        prompts = [found.prompt + text for text in texts]
        tokenized = self._tokenizer().encode(prompts, max_length, keeps_closing=False)
        items = tuple(self._text_item(row, found.adapter) for row in tokenized.rows)
        return Prepared(items=items, cut=tokenized.cut)

    def token_ids(self, ids: Sequence[Sequence[int]], task: str | None, max_length: int | None) -> Prepared:
        """Token ids as items. The task's prompt is one text with what follows, so the ids must begin with its own.

        InputError for ids that begin otherwise.
        """
        found = find_task(self._manifest, task, "text")
        limit = check_max_length(max_length, self._manifest.need_text())
        # The space at the prompt's end is part of the next word's token.
        wanted = self._tokenizer().encode([found.prompt.rstrip()], None, keeps_closing=False).rows[0]
        rows = [np.array(row, np.int64) for row in ids]
        for index, row in enumerate(rows):
            if len(row) == 0 or not np.array_equal(row[: len(wanted)], wanted):
                raise InputError(
                    f"the ids of text {index} do not begin with {wanted.tolist()}, those of the prompt "
                    f"{found.prompt!r} of the task {task!r}; tokenise prompt and text together, or give the text"
                )
        cut = tuple(index for index, row in enumerate(rows) if len(row) > limit)
        return Prepared(items=tuple(self._text_item(row[:limit], found.adapter) for row in rows), cut=cut)

    def image(self, image: ImageInput, task: str | None, *, max_pixels: int | None, label: str) -> Item:
        """An image as an item of the graph "vision": its patches, and where they lie."""
        adapter = find_task(self._manifest, task, "image").adapter
        patches, grid = cut_patches(image, self._manifest.need_patches(), max_pixels=max_pixels, label=label)
        return self._vision_item(patches, grid, adapter)

    def feed(self, items: Sequence[Item]) -> Arrays:
        """A batch's arrays: those of each item stacked, but one of each that is the same for one grid."""
        first = items[0].arrays
        return {
            name: first[name] if name in _SHARED else stack([item.arrays[name] for item in items]) for name in first
        }

    def follow(self, item: Item, outputs: Arrays) -> Item | None:
        """An image's prompt around its features, as an item of the graph "text"; None for a text."""
        if item.graph != FIRST_GRAPH["image"]:
            return None
        features: NDArray[np.float32] = outputs[_FEATURES]
        count = len(features)
        before, after = _divide(self._manifest.need_patches())
        ids = np.array([*before, *[self._manifest.need_patches().image_id] * count, *after], np.int64)
        first, last = len(before), len(before) + count
        places = np.full(len(ids), _NO_PLACE, np.int64)
        places[first:last] = np.arange(count)
        pooled = np.zeros(len(ids), np.float32)
        pooled[first - 1 : last + 1] = 1
        positions = _image_positions(_grid(item), self._manifest.need_patches(), len(ids))
        return _decoder_item(ids, positions, features, places, pooled, item.next_adapter)

    def output(self, graph: str, space: Space) -> str:
        """single or multi."""
        return space

    def made_up(self, draw: Generator, modality: Modality, tokens: int) -> Item:
        """A text of random tokens, or a square image of random pixels as large as the model's limit allows."""
        tasks = self._manifest.tasks_of(modality)
        adapter = self._manifest.tasks[tasks[0]].adapter if tasks else None
        if modality == "text":
            special = min(
                self._manifest.need_text().bos_id,
                self._manifest.need_text().eos_id,
                self._manifest.need_text().pad_id,
            )  # they come after all others
            ids: NDArray[np.int64] = draw.integers(0, max(1, special), max(1, tokens))
            return self._text_item(ids, adapter)
        facts = self._manifest.need_patches()
        side = max(1, int(facts.max_pixels**0.5) // facts.token_px) * facts.merge
        pixels = draw.integers(0, 256, (side * side, 3 * facts.patch_px**2), dtype=np.uint8)
        return self._vision_item(pixels, Grid(rows=side, columns=side), adapter)

    def billed(self, item: Item, size: tuple[int, int] | None) -> int:
        """The tokens that the decoder takes: a text's with its prompt, an image's with the words around it."""
        return item.next_tokens or item.tokens

    def _text_item(self, ids: NDArray[np.int64], adapter: str | None) -> Item:
        count = len(ids)
        positions = np.tile(np.arange(count), (3, 1))
        places, pooled = np.full(count, _NO_PLACE, np.int64), np.ones(count, np.float32)
        return _decoder_item(ids, positions, self._no_features, places, pooled, adapter)

    def _vision_item(self, patches: NDArray[np.uint8], grid: Grid, next_adapter: str | None) -> Item:
        windows, places = group_windows(grid, self._manifest.need_patches())
        shared = dict(
            zip(_SHARED, (patch_positions(grid, self._manifest.need_patches()), windows, places), strict=True)
        )
        key = blake2b(f"{grid.rows} {grid.columns} ".encode(), digest_size=16)
        key.update(patches.data)
        return Item(
            graph=FIRST_GRAPH["image"],
            arrays={_PIXELS: patches, **shared},
            tokens=len(patches),
            alike=(grid.rows, grid.columns),
            next_adapter=next_adapter,
            next_tokens=len(patches) // self._manifest.need_patches().merge ** 2
            + len(self._manifest.need_patches().prompt_ids)
            - 1,
            key=key.digest(),
        )


def _decoder_item(
    ids: NDArray[np.int64],
    positions: NDArray[np.int64],
    features: NDArray[np.float32],
    places: NDArray[np.int64],
    pooled: NDArray[np.float32],
    adapter: str | None,
) -> Item:
    """An item of the graph "text": T ids, positions (3, T), features (M, H), places (T,), the pooled tokens (T,)."""
    arrays: Arrays = {
        _INPUT_IDS: ids,
        "position_ids": positions,
        _FEATURES: features,
        "image_places": places,
        "pool_mask": pooled,
    }
    alike = (len(ids), len(features))
    return Item(graph=FIRST_GRAPH["text"], arrays=arrays, tokens=len(ids), alike=alike, adapter=adapter)


def _width(manifest: Manifest) -> int:
    """The width of image features; BundleError where the graph does not say it."""
    for array in manifest.graphs[FIRST_GRAPH["text"]].inputs:
        if array.name == _FEATURES and isinstance(array.axes[-1], int):
            return array.axes[-1]
    raise BundleError(f"manifest: the text graph has no input {_FEATURES} of a fixed width; export the bundle again")


def _divide(facts: PatchFacts) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids of the prompt before the image's tokens, and those after them."""
    place = facts.prompt_ids.index(facts.image_id)
    return facts.prompt_ids[:place], facts.prompt_ids[place + 1 :]


def _grid(item: Item) -> Grid:
    """The grid of an image's item."""
    last = item.arrays["patch_positions"][-1]
    return Grid(rows=int(last[0]) + 1, columns=int(last[1]) + 1)


def _image_positions(grid: Grid, facts: PatchFacts, count: int) -> NDArray[np.int64]:
    """The positions (3, T) of an image's prompt of `count` tokens: time, row and column, for M-RoPE.

    Words count on in all three; the image's tokens stay at the time of the first and take their row and column; the
    words after them begin one after the largest position before.
    """
    before = len(_divide(facts)[0])
    rows, columns = grid.rows // facts.merge, grid.columns // facts.merge
    last = before + rows * columns
    positions = np.empty((3, count), np.int64)
    positions[:, :before] = np.arange(before)
    positions[0, before:last] = before
    positions[1:, before:last] = before + np.indices((rows, columns)).reshape(2, -1)
    positions[:, last:] = before + max(rows, columns) + np.arange(count - last)
    return positions
