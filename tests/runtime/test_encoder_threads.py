"""One Encoder in many hands: right rows whoever calls; an answer or one clear line when it is closed meanwhile."""

import io
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip import Encoder, InputError
from edgeclip.errors import EdgeclipError
from tests.conftest import DATA
from tests.scenes.damage import replace_graph

# The same work in other company and at another time. Measured: 3e-7.
SAME = 5e-6
CLOSED = "the encoder is closed; open the bundle again"
TEXTS = [f"text {number} " * (1 + number % 4) for number in range(10)]
FILES = [*sorted((DATA / "images").glob("rgb_*.png"))[:4], DATA / "images" / "gray.jpg"]


def image_threads() -> int:
    return sum(thread.name.startswith("edgeclip-images") for thread in threading.enumerate())


def test_eight_threads_mix_texts_and_images(bundle: Path, encoder: Encoder) -> None:
    """From the start, when no graph is loaded: both are loaded at once, each by the first thread that needs it."""
    texts, images = encoder.encode_text(TEXTS), encoder.encode_image(FILES)
    start = threading.Barrier(8, timeout=60)

    def work(number: int) -> float:
        start.wait()
        worst = 0.0
        for turn in range(6):
            if (number + turn) % 2:
                order = np.random.default_rng(10 * number + turn).permutation(len(TEXTS))
                found = shared.encode_text([TEXTS[index] for index in order], batch_size=1 + turn) - texts[order]
            else:
                order = np.random.default_rng(10 * number + turn).permutation(len(FILES))
                found = shared.encode_image([FILES[index] for index in order], batch_size=1 + turn) - images[order]
            worst = max(worst, float(np.abs(found).max()))
        return worst

    with Encoder.open(bundle, device="cpu") as shared, ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) <= SAME
    assert np.abs(texts[0] - texts[1:]).max(axis=1).min() > 1e-3  # a wrong row would be seen


@pytest.mark.parametrize("delay_s", [0.0, 0.01, 0.1])
def test_who_encodes_while_it_is_closed_finishes_or_is_told(bundle: Path, delay_s: float) -> None:
    """Before the graphs are loaded, while they are, and while they compute. Afterwards it stays closed."""
    shared = Encoder.open(bundle, device="cpu")
    started = threading.Barrier(5, timeout=60)

    def work(number: int) -> str:
        started.wait()
        try:
            for _ in range(500):
                vectors = shared.encode_text(TEXTS) if number % 2 else shared.encode_image(FILES)
                assert np.isfinite(vectors).all()
        except InputError as error:
            return str(error)
        return "finished"

    with ThreadPoolExecutor(4) as pool:
        ends = [pool.submit(work, number) for number in range(4)]
        started.wait()
        time.sleep(delay_s)
        shared.close()
        assert {end.result(timeout=60) for end in ends} == {CLOSED}
    assert not shared._graphs.sessions  # nor of those that were being loaded
    for call in (lambda: shared.encode_text("a"), lambda: shared.encode_image(FILES)):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == CLOSED
    assert image_threads() == 0


def test_a_damaged_image_stops_the_others_and_leaves_no_thread(encoder: Encoder) -> None:
    """The first in the list is told, though the second is as bad and quicker to find."""
    buffer = io.BytesIO()
    Image.new("RGB", (1500, 1500)).save(buffer, "PNG")
    for _ in range(5):
        with pytest.raises(InputError, match="^image 3: is damaged"):
            encoder.encode_image([*FILES[:3], buffer.getvalue()[:-2000], b"", *FILES * 20])
        assert image_threads() == 0


def test_images_are_read_a_few_ahead_and_no_more(encoder: Encoder, tmp_path: Path) -> None:
    """Those behind a bad one are not touched, but for as many as there are threads and buffers."""
    touched: list[int] = []

    class Watched(os.PathLike[str]):
        def __init__(self, index: int) -> None:
            self.index = index

        def __fspath__(self) -> str:
            touched.append(self.index)
            return str(FILES[0] if self.index < 5 else tmp_path / "missing.png")

    with pytest.raises(InputError, match="^image 5 .*no such file"):
        encoder.encode_image([Watched(index) for index in range(10_000)])
    assert max(touched) <= 5 + 2 * encoder._threads + 1


@pytest.mark.parametrize("batch_size", [None, 3])
def test_one_pil_image_many_times(bundle: Path, batch_size: int | None) -> None:
    """Opened and not read yet: Pillow reads one image in one thread alone."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    with Encoder.open(bundle, device="cpu", threads=4) as opened:
        wanted = opened.encode_image(noise)
        for _ in range(5):
            with Image.open(io.BytesIO(file.getvalue())) as lazy:
                found = opened.encode_image([lazy] * 8, batch_size=batch_size)
            assert np.abs(found - wanted).max() <= SAME


def test_images_as_a_list_equal_images_one_by_one(encoder: Encoder) -> None:
    many = FILES * 6
    wanted = np.stack([encoder.encode_image(file) for file in many])
    for batch_size in (None, 1, 4, 100):
        assert np.abs(encoder.encode_image(many, batch_size=batch_size) - wanted).max() <= SAME


def test_a_selftest_on_opening_passes(bundle: Path, int8_bundle: Path) -> None:
    for folder in (bundle, int8_bundle):
        with Encoder.open(folder, device="cpu", selftest=True) as opened:
            assert opened.encode_text("a").any()


@pytest.mark.parametrize("graph", ["text", "vision"])
@pytest.mark.parametrize(
    ("scale", "offset", "told"),
    [
        (np.zeros(64), np.full(64, np.nan), "answered with NaN"),
        (np.zeros(64), np.full(64, 0.125), "one constant vector"),
        (*np.random.default_rng(0).normal(size=(2, 64)) * [[1e-2], [1]], "differs from the checkpoint"),
    ],
    ids=["NaN", "constant", "wrong"],
)
def test_a_graph_that_answers_wrongly_does_not_open(
    copied_bundle: Path, graph: str, scale: Any, offset: Any, told: str
) -> None:
    """When it is asked; on a CPU only then, and never when it is switched off."""
    replace_graph(copied_bundle, graph, scale=scale, offset=offset, is_unit=told.startswith("differs"))
    with pytest.raises(EdgeclipError, match=told):
        Encoder.open(copied_bundle, device="cpu", selftest=True)
    for quiet in (None, False):
        Encoder.open(copied_bundle, device="cpu", selftest=quiet).close()


@pytest.mark.parametrize("selftest", [0, 1, "yes"])
def test_a_selftest_that_is_no_answer(bundle: Path, selftest: Any) -> None:
    with pytest.raises(InputError, match=f"^selftest is {selftest!r}, wanted True, False or None$"):
        Encoder.open(bundle, selftest=selftest)


@pytest.mark.parametrize("call", ["encode_text", "encode_image"])
def test_who_encodes_nothing_loads_nothing(bundle: Path, call: str) -> None:
    with Encoder.open(bundle, device="cpu") as opened:
        encode: Callable[[list[Any]], Any] = getattr(opened, call)
        assert encode([]).shape == (0, 64)
        assert not opened._graphs.sessions
