"""Make up inputs where there are no data: texts of random tokens, pictures of random patches and slopes.

They show what a graph's layers do to inputs of every length and contrast, not what a user's data look like:
calibrating on those is better.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.errors import BuildError
from edgeclip.families.family import Arrays, Item
from edgeclip.families.token_texts import INPUT_IDS
from edgeclip.manifest import FIRST_GRAPH, PROOF_DATA, Manifest, Modality, PatchFacts
from edgeclip_quant.inputs.feeder import Feeder

_LENGTHS = (3, 64)
_CELLS = (2, 4, 8, 16)
# Tokens along a side of a picture whose size is free.
_TOKENS_HIGH = (2, 10)
# Of a made-up document, the share of its tokens that its query repeats.
_PIECE = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Inputs of a bundle as items. `name` describes them.

    `pairs` gives for each text the index of the image that it describes, None where that is unknown. Of texts
    without images it gives the index of a query's document, and of a document its own.
    """

    name: str
    text: tuple[Item, ...] = ()
    image: tuple[Item, ...] = ()
    pairs: tuple[int, ...] | None = None

    def of(self, modality: Modality) -> tuple[Item, ...]:
        """The samples of one modality."""
        return self.text if modality == "text" else self.image

    def halves(self) -> tuple["Samples", "Samples"]:
        """Two halves: every other image to calibrate on, and the rest to prove on; texts go with their images, or
        alternate. Without images, queries go with their documents.
        """
        return self._half(0), self._half(1)

    def _half(self, which: int) -> "Samples":
        if self.pairs is None:
            return replace(self, text=self.text[which::2], image=self.image[which::2])
        answers = sorted({*self.pairs} if not self.image else range(len(self.image)))
        place = {answer: at for at, answer in enumerate(answers[which::2])}
        kept = [index for index, answer in enumerate(self.pairs) if answer in place]
        if not self.image:
            place = {answer: kept.index(answer) for answer in place}
        return replace(
            self,
            text=tuple(self.text[index] for index in kept),
            image=self.image[which::2],
            pairs=tuple(place[self.pairs[index]] for index in kept),
        )


def made_up_samples(feeder: Feeder, *, texts: int, images: int, seed: int = 0) -> Samples:
    """Made-up samples for a bundle, of the modalities that it takes; the same arguments give the same samples.

    The adapters take turns. Raises BuildError for a bundle without a tokenizer.
    """
    draw = np.random.default_rng(seed)
    manifest = feeder.manifest
    items: tuple[Item, ...] = ()
    if manifest.text:
        ids = [] if manifest.task_required else made_up_ids(feeder, draw, texts)
        items = prompted_items(feeder, draw, texts) if manifest.task_required else text_items(feeder, ids)
    sides = picture_sides(manifest, draw, images) if manifest.image else ()
    return Samples(
        name=PROOF_DATA,
        text=items,
        image=picture_items(feeder, (_picture(max(one), draw)[: one[0], : one[1]] for one in sides)),
    )


def prompted_items(feeder: Feeder, draw: np.random.Generator, count: int) -> tuple[Item, ...]:
    """Texts of random tokens, each behind the prompt of a task; the tasks take turns.

    A decoder's largest values are those of its first tokens, which are the prompt's.
    """
    tasks = feeder.manifest.tasks_of("text")
    items = []
    for index in range(count):
        (empty,) = feeder.family.texts([""], tasks[index % len(tasks)], None).items
        prompt = empty.arrays[INPUT_IDS]
        room = feeder.manifest.need_text().max_length - len(prompt)
        inner = feeder.family.made_up(draw, "text", min(int(draw.integers(*_LENGTHS)), room)).arrays[INPUT_IDS]
        ids = np.concatenate((prompt, inner))
        items.append(text_item(feeder, ids, empty.adapter))
    return tuple(items)


def made_up_ids(feeder: Feeder, draw: np.random.Generator, count: int) -> list[NDArray[np.int64]]:
    """Texts as ids (T,), from the opening to the closing one."""
    facts = feeder.manifest.need_text()
    vocabulary = _vocabulary(feeder)
    lengths = (_LENGTHS[0], min(_LENGTHS[1], facts.max_length - 1))
    allowed = np.setdiff1d(np.arange(vocabulary), [facts.pad_id, facts.bos_id, facts.eos_id])
    return [
        np.concatenate(([facts.bos_id], draw.choice(allowed, draw.integers(*lengths)), [facts.eos_id])).astype(
            np.int64
        )
        for _ in range(count)
    ]


def queries_and_documents(feeder: Feeder, draw: np.random.Generator, count: int) -> Samples:
    """`count` made-up documents, and as many queries: a query is a piece of its document, with its adapter."""
    documents = made_up_ids(feeder, draw, count)
    queries = []
    for ids in documents:
        inner = ids[1:-1]
        length = max(1, round(_PIECE * len(inner)))
        start = int(draw.integers(0, len(inner) - length + 1))
        queries.append(np.concatenate((ids[:1], inner[start : start + length], ids[-1:])))
    text = (*text_items(feeder, documents), *text_items(feeder, queries))
    return Samples(name=PROOF_DATA, text=text, pairs=(*range(count), *range(count)))


def text_items(feeder: Feeder, texts: Sequence[NDArray[np.int64]]) -> tuple[Item, ...]:
    """Texts of ids as items; the adapters of the text graph take turns, none at all among them."""
    manifest = feeder.manifest
    adapters = [name for name, facts in manifest.adapters.items() if facts.graph == FIRST_GRAPH["text"]]
    turns = adapters if manifest.task_required and adapters else [None, *adapters]
    return tuple(text_item(feeder, ids, turns[index % len(turns)]) for index, ids in enumerate(texts))


def text_item(feeder: Feeder, ids: NDArray[np.int64], adapter: str | None) -> Item:
    """A text of these ids (T,) as an item, without the prompt of any task."""
    made_up = feeder.family.made_up(np.random.default_rng(0), "text", len(ids))
    return replace(made_up, arrays={**made_up.arrays, INPUT_IDS: ids}, adapter=adapter)


def picture_items(feeder: Feeder, pictures: Iterable[NDArray[np.uint8]]) -> tuple[Item, ...]:
    """Pictures (H, W, 3) as items; where a task is required, the tasks take turns."""
    manifest = feeder.manifest
    turns = (manifest.tasks_of("image") if manifest.task_required else ()) or (None,)
    return tuple(
        feeder.family.image(picture, turns[index % len(turns)], max_pixels=None, label="made-up picture")
        for index, picture in enumerate(pictures)
    )


def picture_sides(manifest: Manifest, draw: np.random.Generator, count: int) -> list[tuple[int, int]]:
    """Heights and widths in pixels of pictures that go to the graph as they are: its one size, or various ones."""
    facts = manifest.image
    if not isinstance(facts, PatchFacts):
        return [(manifest.need_image().size_px,) * 2] * count
    side = facts.token_px
    most, least = facts.max_pixels // side**2, -(-facts.min_pixels // side**2)
    sides = []
    for _ in range(count):
        rows = int(draw.integers(_TOKENS_HIGH[0], min(_TOKENS_HIGH[1], max(2, most // 2)) + 1))
        columns = int(draw.integers(*_TOKENS_HIGH))
        columns = max(-(-least // rows), min(columns, most // rows))
        sides.append((rows * side, columns * side))
    return sides


def padded_pair(feeder: Feeder, texts: tuple[Item, ...]) -> Arrays:
    """The feed of the shortest and the longest text as one batch, which needs a mask, as no single text does."""
    ids = sorted((item.arrays[INPUT_IDS] for item in texts), key=len)
    padded = np.full(len(ids[-1]), feeder.manifest.need_text().pad_id, np.int64)
    padded[: len(ids[0])] = ids[0]
    return feeder.feed([text_item(feeder, row, texts[0].adapter) for row in (padded, ids[-1])])


def _vocabulary(feeder: Feeder) -> int:
    path = feeder.folder / feeder.manifest.need_text().file
    try:
        return Tokenizer.from_file(str(path)).get_vocab_size()
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
        raise BuildError(f"{path}: not a tokenizer ({error}); export or copy the bundle again") from error


def _picture(size_px: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of flat cells, of one of four sizes, under a slope of light."""
    picture: NDArray[Any] = flat_cells(size_px, draw)
    slope = np.linspace(-60, 60, size_px)[:, None, None] * draw.uniform(-1, 1)
    return (picture + slope + draw.normal(0, 8, picture.shape)).clip(0, 255).astype(np.uint8)


def flat_cells(size_px: int, draw: np.random.Generator) -> NDArray[np.float64]:
    """Cells of one colour each (size_px, size_px, 3), in one of four sizes."""
    cells = int(draw.choice(_CELLS))
    side = -(-size_px // cells)
    flat: NDArray[Any] = np.kron(draw.uniform(0, 255, (cells, cells, 3)), np.ones((side, side, 1)))
    return flat[:size_px, :size_px]
