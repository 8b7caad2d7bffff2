"""The requests that a service is loaded with, as its model needs them: short texts, images, the task of each."""

import base64
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from edgeclip.errors import InputError
from edgeclip.families.tasks import list_tasks
from edgeclip_bench.measure.pictures import encode_file, made_up_picture

Body = dict[str, Any]
Size = tuple[int, int]

BULK_CLIENTS, BULK_IMAGES = 4, 8
IMAGE_PX: Size = (640, 480)
_TEXTS_TO_AN_IMAGE = 9
_SEED = 0
TEXTS = (
    "a red bicycle against a wall",
    "zwei Hunde spielen am Strand mit einem Ball",
    "une tasse de café sur une table en bois",
    "夜の東京の街角",
    "a woman reads a newspaper on a train",
    "старый мост через реку в тумане",
    "football",
    "a plate of pasta with basil and tomatoes, seen from above",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The requests that a model is asked with: the tasks of texts and images, None for none, and the images' size."""

    task: str | None = None
    image_task: str | None = None
    image_px: Size = IMAGE_PX
    has_images: bool = True

    @classmethod
    def of(cls, model: Body, task: str | None, image_px: Size, *, texts_only: bool) -> Self:
        """Those for a model as `/v1/models` describes it; InputError for a task that it does not have."""
        known = {
            modality: [name for name, facts in model["task_details"].items() if modality in facts["modalities"]]
            for modality in ("text", "image")
        }
        if "text" not in model["modalities"]:
            raise InputError("the service takes no texts, and every workload has some")
        if task is None and model["task_required"]:
            task = next(iter(known["text"]), None)
        if task is not None and task not in known["text"]:
            raise InputError(f"--task {task}: wanted one of {list_tasks(known['text'], task) or 'none'}")
        image_task = task if task in known["image"] else None
        if image_task is None and model["task_required"]:
            image_task = next(iter(known["image"]), None)
        has_images = "image" in model["modalities"] and not texts_only
        return cls(task=task, image_task=image_task, image_px=image_px, has_images=has_images)

    def texts(self) -> Iterator[Body]:
        """Request bodies of one short text each, in a cycle."""
        return itertools.cycle([body_of([text], self.task) for text in TEXTS])

    def mixed(self) -> Iterator[Body]:
        """Request bodies of nine texts, then an image."""
        texts = self.texts()
        pictures = itertools.cycle([body_of([image], self.image_task) for image in self.images(4)])
        while True:
            yield from itertools.islice(texts, _TEXTS_TO_AN_IMAGE)
            yield next(pictures)

    def bulk(self) -> Iterator[Body]:
        """Request bodies of BULK_IMAGES images each, each time others: a model may keep what it knows of the last."""
        files = self.images(2 * BULK_CLIENTS * BULK_IMAGES)
        starts = range(0, len(files), BULK_IMAGES)
        return itertools.cycle([body_of(files[start : start + BULK_IMAGES], self.image_task) for start in starts])

    def images(self, count: int) -> list[dict[str, str]]:
        """Made-up JPEGs in base64, no two alike."""
        draw = np.random.default_rng(_SEED)
        files = (encode_file(made_up_picture(self.image_px, draw)) for _ in range(count))
        return [{"image": base64.b64encode(file).decode()} for file in files]


def body_of(inputs: list[Any], task: str | None) -> Body:
    """A request body, without a field for no task. A text that is too long for a model is cut."""
    return {"input": inputs, "model": "any", "truncate": True, **({} if task is None else {"task": task})}
