"""Images as a stream: in order, a few ahead, told by their number in the whole list, and closed without a trace."""

import contextlib
import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgeclip import Encoder, InputError
from edgeclip.engine.cuda.bound_runs import BoundGraph
from edgeclip.engine.cuda.memory import HostMemory
from edgeclip.engine.devices import Device
from edgeclip.manifest import Manifest
from tests.conftest import DATA
from tests.scenes.command import run_process

# The same work in other company; measured 3e-7.
SAME = 5e-6
FILES = [*sorted((DATA / "images").glob("rgb_*.png"))[:4], DATA / "images" / "gray.jpg"]


def image_threads() -> int:
    return sum(thread.name.startswith("edgeclip-images") for thread in threading.enumerate())


@pytest.mark.parametrize("batch_size", [None, 1, 3, 5, 10**9])
def test_every_vector_comes_in_its_place(encoder: Encoder, batch_size: int | None) -> None:
    wanted = encoder.encode_image(FILES, truncate_dim=32)
    found = list(encoder.iter_images(FILES, truncate_dim=32, batch_size=batch_size))
    size = min(batch_size or 1, len(FILES))
    assert [batch for batch, _ in found] == [
        range(start, min(start + size, len(FILES))) for start in range(0, len(FILES), size)
    ]
    vectors = np.concatenate([vectors for _, vectors in found])
    assert vectors.shape == (len(FILES), 32) and vectors.dtype == np.float32
    assert np.abs(vectors - wanted).max() <= SAME


def test_vectors_stay_what_they_were(encoder: Encoder) -> None:
    """Though the pixels' buffers are filled anew."""
    stream = encoder.iter_images(FILES * 4)
    _, first = next(stream)
    before = first.copy()
    assert len(list(stream)) == 4 * len(FILES) - 1
    assert (first == before).all()


@pytest.mark.parametrize("taken", [0, 1, 7])
def test_whoever_stops_early_leaves_no_thread(encoder: Encoder, taken: int) -> None:
    with contextlib.closing(encoder.iter_images(FILES * 200)) as stream:
        assert len(list(itertools.islice(stream, taken))) == taken
    assert image_threads() == 0


def test_an_image_is_told_by_its_number_in_the_list(encoder: Encoder, tmp_path: Path) -> None:
    """A file that disappears in the middle; what came before it came."""
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for file in files:
        file.write_bytes(FILES[0].read_bytes())
    came: list[int] = []

    def consume() -> None:
        for batch, _ in encoder.iter_images(files, batch_size=4):
            came.extend(batch)
            files[33].unlink(missing_ok=True)

    with pytest.raises(InputError, match=r"^image 33 \(.*33.png\): no such file$"):
        consume()
    assert came == list(range(32)) and image_threads() == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"truncate_dim": 65}, "truncate_dim is 65"),
        ({"batch_size": 2.0}, "2.0"),
    ],
)
def test_a_wrong_option_is_told_before_the_first_is_asked_for(encoder: Encoder, options: Any, told: str) -> None:
    with pytest.raises(InputError, match=told):
        encoder.iter_images(FILES, **options)


def test_what_is_taken_for_images(encoder: Encoder) -> None:
    """What encode_image takes: one image too, an array of several, an iterator."""
    pixels = np.zeros((3, 8, 9, 3), np.uint8)
    for images, count in ((str(FILES[0]), 1), (pixels, 3), (pixels[0], 1), (iter(FILES), len(FILES)), ([], 0)):
        assert [batch.start for batch, _ in encoder.iter_images(images)] == list(range(count))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="^image 0: found None"):
        next(encoder.iter_images(None))  # type: ignore[arg-type]


def test_an_encoder_closed_in_the_middle_says_so(bundle: Path) -> None:
    opened = Encoder.open(bundle, device="cpu")
    stream = opened.iter_images(FILES * 10)
    next(stream)
    opened.close()
    with pytest.raises(InputError, match="the encoder is closed"):
        next(stream)
    assert image_threads() == 0


def test_a_process_ends_with_a_stream_half_consumed(bundle: Path) -> None:
    program = """if True:
        import sys
        from edgeclip import Encoder
        stream = Encoder.open(sys.argv[1], device="cpu").iter_images([sys.argv[2]] * 10_000)
        print(next(stream)[0])
    """
    command = [sys.executable, "-c", program, str(bundle), str(FILES[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "range(0, 1)\n", "")


class Lane:
    """The vision graph as on CUDA, over ordinary memory; counts the buffers that were made."""

    def __init__(self, folder: Path) -> None:
        self.made = 0
        outer = self

        class Counting(HostMemory):
            def host(self, size_bytes: int) -> Any:
                outer.made += 1
                return super().host(size_bytes)

        self.session = onnxruntime.InferenceSession(folder / "vision.onnx", providers=["CPUExecutionProvider"])
        size = int(np.prod(self.session.get_inputs()[0].shape[1:]))
        self.bound = BoundGraph(
            self.session, Counting(), most_items=32 * size, most_rows=32, is_captured=lambda shape: False
        )
        self.allocate, self.recycle, self.run = self.bound.allocate, self.bound.recycle, self.bound.run


@pytest.fixture
def on_lane(bundle: Path) -> Iterator[tuple[Encoder, Lane]]:
    opened, lane = Encoder(bundle, Manifest.read(bundle), Device(kind="cuda"), 2), Lane(bundle)
    opened._graphs.sessions["vision"] = lane  # type: ignore[assignment]
    yield opened, lane
    lane.bound.close()


def test_on_cuda_the_buffers_are_the_lanes_own_and_kept(encoder: Encoder, on_lane: tuple[Encoder, Lane]) -> None:
    """Two for images, and a slot's answers; nothing for a second call."""
    opened, lane = on_lane
    wanted = encoder.encode_image(FILES)
    counts = []
    for _ in range(3):
        assert np.abs(opened.encode_image(FILES, batch_size=2) - wanted).max() <= SAME
        counts.append(lane.made)
    assert counts == [3, 3, 3]


def test_embed_tells_the_number_in_the_folder(bundle: Path, tmp_path: Path) -> None:
    """Beyond the first block of anything, and the lines before it are out already."""
    for number in range(300):
        (tmp_path / f"{number:03}.png").write_bytes(FILES[0].read_bytes() if number != 270 else b"no image")
    done = run_process("embed", bundle, "--images", tmp_path, "--truncate-dim", 2)
    assert done.returncode == 1
    assert done.stderr.startswith(f"edgeclip: image 270 ({tmp_path / '270.png'}): ") and done.stderr.count("\n") == 1
    assert done.stdout.count("\n") == 270
