"""Where a query's time goes: each step of a text or an image, measured apart.

    text    tokenise -> queue -> host-to-device -> compute -> device-to-host
    image   read -> decode -> resize -> queue -> host-to-device -> compute -> device-to-host

The steps are called one after another in one thread, so they may add up to more than a query takes that overlaps
them. A step that does not exist is None: a lone query has no queue, and the CPU copies nothing. On a GPU the copies
are those of the same bytes by onnxruntime, and compute is the rest.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip.encoder import Encoder
from edgeclip.engine.paired_timing import take_turns
from edgeclip.families.family import Item
from edgeclip.inputs.images import decode_image

STAGES = ("read", "decode", "resize", "tokenise", "queue", "host_to_device", "compute", "device_to_host")
LEAST_ROUNDS, MOST_ROUNDS = 3, 200

_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """The median of each step in milliseconds, of `rounds` rounds; None for a step that does not exist."""

    rounds: int
    read_ms: float | None = None
    decode_ms: float | None = None
    resize_ms: float | None = None
    tokenise_ms: float | None = None
    queue_ms: float | None = None
    host_to_device_ms: float | None = None
    compute_ms: float | None = None
    device_to_host_ms: float | None = None

    def of(self, stage: str) -> float | None:
        """The median of the step of that name."""
        found: float | None = getattr(self, f"{stage}_ms")
        return found


class _Watch:
    """Measured times by the name of their step."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = {}

    def time(self, stage: str, work: Callable[[], _Value]) -> _Value:
        started = time.perf_counter()
        value = work()
        self.times.setdefault(stage, []).append((time.perf_counter() - started) * 1000)
        return value


def measure_text_stages(
    encoder: Encoder, texts: Sequence[str], seconds: float, task: str | None = None
) -> tuple[Stages, tuple[Item, ...]]:
    """Measure the steps of texts of one length that form a batch; also return the batch's items."""

    def once(watch: _Watch) -> tuple[Item, ...]:
        prepared = watch.time("tokenise", lambda: encoder.prepare_texts(list(texts), task=task))
        return _run(watch, encoder, prepared.items)

    return _measure(once, seconds)


def measure_image_stages(
    encoder: Encoder, paths: Sequence[Path], seconds: float, task: str | None = None
) -> tuple[Stages, tuple[Item, ...]]:
    """Measure the steps of image files that form a batch; also return the batch's items."""

    def once(watch: _Watch) -> tuple[Item, ...]:
        files = watch.time("read", lambda: [path.read_bytes() for path in paths])
        pictures = watch.time("decode", lambda: [decode_image(data, label="image") for data in files])
        items = watch.time("resize", lambda: [encoder.prepare_image(picture, task=task) for picture in pictures])
        return _run(watch, encoder, tuple(items))

    return _measure(once, seconds)


def medians(times: Mapping[str, Sequence[float]]) -> Stages:
    """The steps' medians; compute is the graphs' run less the copies in it."""
    found: dict[str, float] = {stage: float(np.median(values)) for stage, values in times.items()}
    run = found.pop("run")
    copies = found.get("host_to_device", 0.0) + found.get("device_to_host", 0.0)
    rounds = len(times["run"])
    return Stages(
        rounds=rounds,
        **{f"{stage}_ms": value for stage, value in (found | {"compute": max(0.0, run - copies)}).items()},
    )


def _run(watch: _Watch, encoder: Encoder, items: tuple[Item, ...]) -> tuple[Item, ...]:
    vectors = watch.time("run", lambda: encoder.run_items(items))
    kind, _, index = encoder.device.partition(":")
    if kind in ("cuda", "tensorrt"):
        from onnxruntime import OrtValue

        def copy_in(arrays: Sequence[NDArray[Any]]) -> list[Any]:
            return [OrtValue.ortvalue_from_numpy(array, "cuda", int(index or 0)) for array in arrays]

        batch = list(encoder.family.feed(items).values())
        watch.time("host_to_device", lambda: copy_in(batch))
        (held,) = copy_in([vectors])
        watch.time("device_to_host", held.numpy)
    return items


def _measure(once: Callable[[_Watch], tuple[Item, ...]], seconds: float) -> tuple[Stages, tuple[Item, ...]]:
    items = once(_Watch())  # warms up
    watch = _Watch()
    take_turns({"": partial(once, watch)}, MOST_ROUNDS, seconds=seconds, least=LEAST_ROUNDS, is_alone=False)
    return medians(watch.times), items
