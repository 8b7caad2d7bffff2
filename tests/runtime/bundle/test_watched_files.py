"""Weights that are overwritten under a process give an error that names the file, no vector; renaming is safe."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.engine.unit_vectors import LENGTH_TOLERANCE
from edgeclip.errors import BundleError

TEXTS = ["a red bicycle", "海滩上美丽的日落", "ein rotes Fahrrad im Regen"]
PIXELS = np.random.default_rng(5).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
WEIGHTS = "text_model.onnx_data"


def in_place(path: Path, content: bytes) -> None:
    """As `cp` does: the same file, first cut to nothing."""
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(content)


def inside(path: Path, content: bytes) -> None:
    """As `rsync --inplace --times` does: block by block, the length stays; with the old time set again."""
    before = path.stat()
    with path.open("r+b") as file:
        file.write(content[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def zeros(old: bytes) -> bytes:
    return bytes(len(old))


def nans(old: bytes) -> bytes:
    return b"\xff" * len(old)


def other_model(old: bytes) -> bytes:
    """Weights of the same layout that give vectors of length 1: each halved."""
    return (np.frombuffer(old, np.float32) * 0.5).tobytes()


def half_written(old: bytes) -> bytes:
    return other_model(old)[: len(old) // 2] + old[len(old) // 2 :]


def half_as_long(old: bytes) -> bytes:
    return old[: len(old) // 2]


@pytest.mark.parametrize("write", [in_place, inside])
@pytest.mark.parametrize("content", [zeros, nans, other_model, half_written, half_as_long])
def test_no_vector_of_overwritten_weights_leaves(
    copied_bundle: Path, content: Callable[[bytes], bytes], write: Callable[[Path, bytes], None]
) -> None:
    """Nor does a SIGBUS end the process. The right bytes again, and it goes on."""
    path = copied_bundle / WEIGHTS
    right = path.read_bytes()
    if content is half_as_long and write is inside:
        pytest.skip("would be the right bytes")
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text(TEXTS)
        images = encoder.encode_image(PIXELS)
        write(path, content(right))
        calls: list[Callable[[], Any]] = [
            lambda: encoder.encode_text("a"),
            lambda: encoder.encode_text(TEXTS, truncate_dim=8),
            lambda: encoder.run_tower("text", np.array([[0, 5, 2]])),
        ]
        for call in [*calls, *calls]:  # again: what is known to be wrong is not read once more
            with pytest.raises(BundleError) as caught:
                call()
            told = str(caught.value)
            assert re.search(
                rf"{WEIGHTS} was overwritten in place while it was used: {len(right)} bytes of .* when it was "
                r"opened, \d+ bytes of .* now; replace bundles by rename.* restart$",
                told,
            ), told
            assert len(told.splitlines()) == 1
        assert np.array_equal(encoder.encode_image(PIXELS), images)  # the other tower's files are as they were
        write(path, right)
        assert np.array_equal(encoder.encode_text(TEXTS), wanted)


@pytest.mark.parametrize("name", [WEIGHTS, "vision_model.onnx_data"])
def test_weights_that_change_while_a_batch_runs(
    copied_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed meanwhile is not returned."""
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        encoder.encode_text("a"), encoder.encode_image(PIXELS)
        tower: Any = "text" if name == WEIGHTS else "vision"
        session = encoder._session(tower)
        run = session._run

        def overwriting(batch: Any) -> Any:
            found = run(batch)
            inside(copied_bundle / name, b"\x00" * 100)
            return found

        monkeypatch.setattr(session, "_run", overwriting)
        with pytest.raises(BundleError, match=f"{name} was overwritten in place"):
            encoder.encode_text("a") if tower == "text" else encoder.encode_image(PIXELS)


def test_a_process_of_its_own_ends_in_one_line(copied_bundle: Path) -> None:
    """`cp` of an empty file over mapped weights: an error and not signal 7."""
    program = """if True:
        import shutil, sys
        from edgeclip import BundleError, Encoder
        with Encoder.open(sys.argv[1], device="cpu") as encoder:
            encoder.encode_text("a")
            open(sys.argv[1] + "/text_model.onnx_data", "w").close()
            try:
                encoder.encode_text("a")
            except BundleError:
                sys.exit(3)
    """
    done = subprocess.run([sys.executable, "-c", program, str(copied_bundle)], capture_output=True, timeout=60)
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("replace", ["rename", "remove", "folder"])
def test_replacing_by_rename_is_safe(copied_bundle: Path, trained_int8: Path, tmp_path: Path, replace: str) -> None:
    """The old files stay in memory: vectors stay, to the last bit."""
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text(TEXTS), encoder.encode_image(PIXELS)
        if replace == "folder":
            copied_bundle.rename(tmp_path / "old")
            shutil.copytree(trained_int8, copied_bundle)
        for name in (WEIGHTS, "vision_model.onnx_data") if replace != "folder" else ():
            new = copied_bundle / f"{name}.new"
            new.write_bytes(b"\x00" * 1000)
            new.replace(copied_bundle / name) if replace == "rename" else (copied_bundle / name).unlink()
        found = encoder.encode_text(TEXTS), encoder.encode_image(PIXELS)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))


def test_what_was_only_touched_or_linked_is_read_once_and_goes_on(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    from edgeclip.bundle import watched_files

    verify = watched_files.verify_hash
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text(TEXTS)
        monkeypatch.setattr(watched_files, "verify_hash", lambda *args: read.append(args[1].name) or verify(*args))
        for change in (Path.touch, lambda path: path.chmod(0o640), lambda path: os.link(path, f"{path}.link")):
            change(copied_bundle / WEIGHTS)
            for _ in range(3):
                assert np.array_equal(encoder.encode_text(TEXTS), wanted)
    assert read == [WEIGHTS] * 3


@pytest.mark.parametrize("name", [WEIGHTS, "text_model.onnx", "tokenizer.json"])
def test_a_tower_that_is_loaded_later_is_of_the_bundle_that_was_opened(copied_bundle: Path, name: str) -> None:
    """A file of the same size that took the old one's place meanwhile is not opened in silence."""
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        content = bytearray((copied_bundle / name).read_bytes())
        content[len(content) // 2] ^= 0x55
        (copied_bundle / "new").write_bytes(content)
        (copied_bundle / "new").replace(copied_bundle / name)
        with pytest.raises(BundleError, match=f"{name} (was replaced after the bundle was opened|is not what was)"):
            encoder.encode_text("a")


def test_the_tolerance_is_wider_than_what_was_measured(encoder: Encoder) -> None:
    """By far: its comment says what lengths were."""
    vectors = np.concatenate([encoder.encode_text(TEXTS), encoder.encode_image(PIXELS)])
    assert np.abs(np.linalg.norm(vectors.astype(np.float64), axis=1) - 1).max() < LENGTH_TOLERANCE / 100
