"""Weights that are overwritten under a process give an error that names the file, no vector; renaming is safe."""

import gc
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
from edgeclip.bundle.watched_files import FilesAtOpening, WatchedFiles
from edgeclip.engine import opening
from edgeclip.engine.devices import Device
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.engine.unit_vectors import LENGTH_TOLERANCE
from edgeclip.errors import BundleError
from edgeclip.manifest import Manifest

TEXTS = ["a red bicycle", "海滩上美丽的日落", "ein rotes Fahrrad im Regen"]
PIXELS = np.random.default_rng(5).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
WEIGHTS = "text.onnx_data"


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
            lambda: encoder.run_graph("text", {"input_ids": np.array([[0, 5, 2]])}),
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
        assert np.array_equal(encoder.encode_image(PIXELS), images)  # the other graph's files are as they were
        write(path, right)
        assert np.array_equal(encoder.encode_text(TEXTS), wanted)


@pytest.mark.parametrize("name", [WEIGHTS, "vision.onnx_data"])
def test_weights_that_change_while_a_batch_runs(
    copied_bundle: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was computed meanwhile is not returned."""
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        encoder.encode_text("a"), encoder.encode_image(PIXELS)
        graph = "text" if name == WEIGHTS else "vision"
        session = encoder._graphs.session(graph)
        run = session._run

        def overwriting(*batch: Any) -> Any:
            found = run(*batch)
            inside(copied_bundle / name, b"\x00" * 100)
            return found

        monkeypatch.setattr(session, "_run", overwriting)
        with pytest.raises(BundleError, match=f"{name} was overwritten in place"):
            encoder.encode_text("a") if graph == "text" else encoder.encode_image(PIXELS)


def test_a_process_of_its_own_ends_in_one_line(copied_bundle: Path) -> None:
    """`cp` of an empty file over mapped weights: an error and not signal 7."""
    program = """if True:
        import shutil, sys
        from edgeclip import BundleError, Encoder
        with Encoder.open(sys.argv[1], device="cpu") as encoder:
            encoder.encode_text("a")
            open(sys.argv[1] + "/text.onnx_data", "w").close()
            try:
                encoder.encode_text("a")
            except BundleError:
                sys.exit(3)
    """
    done = subprocess.run([sys.executable, "-c", program, str(copied_bundle)], capture_output=True, timeout=60)
    assert done.returncode == 3, done.stderr


@pytest.mark.parametrize("times", [1, 2, 9])
def test_weights_that_were_wrong_only_while_a_batch_ran(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """They are right before and after it: the batch is run again, and not for ever."""
    path = copied_bundle / WEIGHTS
    right = path.read_bytes()
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text("a")
        session = encoder._graphs.session("text")
        run, left = session._run, [times]

        def overwritten(*batch: Any) -> Any:
            is_wrong = left[0] > 0
            left[0] -= 1
            if is_wrong:
                inside(path, other_model(right))
            try:
                return run(*batch)
            finally:
                if is_wrong:
                    inside(path, right)

        monkeypatch.setattr(session, "_run", overwritten)
        if times == 9:
            with pytest.raises(BundleError, match="change all the time"):
                encoder.encode_text("a")
        else:
            assert np.array_equal(encoder.encode_text("a"), wanted)
            assert left[0] == -1


@pytest.mark.parametrize("replace", ["rename", "remove", "folder"])
def test_replacing_by_rename_is_safe(copied_bundle: Path, trained_int8: Path, tmp_path: Path, replace: str) -> None:
    """The old files stay in memory: vectors stay, to the last bit."""
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text(TEXTS), encoder.encode_image(PIXELS)
        if replace == "folder":
            copied_bundle.rename(tmp_path / "old")
            shutil.copytree(trained_int8, copied_bundle)
        for name in (WEIGHTS, "vision.onnx_data") if replace != "folder" else ():
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

    verify = watched_files.verify_stream
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text(TEXTS)
        monkeypatch.setattr(watched_files, "verify_stream", lambda *args: read.append(args[2].name) or verify(*args))
        for change in (Path.touch, lambda path: path.chmod(0o640), lambda path: os.link(path, f"{path}.link")):
            change(copied_bundle / WEIGHTS)
            for _ in range(3):
                assert np.array_equal(encoder.encode_text(TEXTS), wanted)
    assert read == [WEIGHTS] * 3


def moved_folder(bundle: Path, new: Path) -> Path:
    """The recipe of docs/bundles.md; gives where the old weights are now."""
    old = bundle.rename(bundle.with_name("old"))
    shutil.copytree(new, bundle)
    return old / WEIGHTS


def moved_file(bundle: Path, new: Path) -> Path:
    old = (bundle / WEIGHTS).rename(bundle / "old_weights")
    shutil.copy(new / WEIGHTS, bundle)
    return old


def unlinked_name(bundle: Path, new: Path) -> Path:
    """Another link to the same file is left."""
    os.link(bundle / WEIGHTS, bundle / "other_name")
    (bundle / WEIGHTS).unlink()
    return bundle / "other_name"


def removed_folder(bundle: Path, new: Path) -> Path:
    os.link(bundle / WEIGHTS, bundle.with_name("other_name"))
    shutil.rmtree(bundle)
    return bundle.with_name("other_name")


PLACES = [moved_folder, moved_file, unlinked_name, removed_folder]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("content", [other_model, nans, half_as_long])
@pytest.mark.parametrize("write", [in_place, inside])
def test_the_file_that_is_mapped_is_watched_whatever_its_path_names_now(
    copied_bundle: Path,
    trained_int8: Path,
    place: Callable[[Path, Path], Path],
    content: Callable[[bytes], bytes],
    write: Callable[[Path, bytes], None],
) -> None:
    """Replaced by rename, it goes on; then overwritten where it is now, no vector leaves, and no device is blamed."""
    if content is half_as_long and write is inside:
        pytest.skip("would be the right bytes")
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text(TEXTS)
        mapped = place(copied_bundle, trained_int8)
        assert encoder.overwritten_files == ()  # no probe of the service is red for it
        assert np.array_equal(encoder.encode_text(TEXTS), wanted)
        encoder.verify_files()
        right = mapped.read_bytes()
        write(mapped, content(right))
        for call in (lambda: encoder.encode_text("a"), encoder.verify_files):
            with pytest.raises(BundleError, match=f"{WEIGHTS} was overwritten in place while it was used"):
                call()
        assert encoder.overwritten_files == (WEIGHTS,) or write is inside
        write(mapped, right)
        assert np.array_equal(encoder.encode_text(TEXTS), wanted)


def test_a_link_that_is_turned_while_its_old_file_is_overwritten(copied_bundle: Path, tmp_path: Path) -> None:
    """As DVC and Nix keep files: in a store."""
    first, second = tmp_path / "first", tmp_path / "second"
    (copied_bundle / WEIGHTS).rename(first)
    second.write_bytes(other_model(first.read_bytes()))
    (copied_bundle / WEIGHTS).symlink_to(first)
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        wanted = encoder.encode_text(TEXTS)
        (copied_bundle / WEIGHTS).unlink()
        (copied_bundle / WEIGHTS).symlink_to(second)
        assert np.array_equal(encoder.encode_text(TEXTS), wanted)
        inside(first, second.read_bytes())
        with pytest.raises(BundleError, match=f"{WEIGHTS} was overwritten in place"):
            encoder.encode_text(TEXTS)


def test_weights_that_are_replaced_while_a_session_opens_are_refused(
    copied_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the descriptor and the mapping: what is watched would be another file than what is read."""
    start = opening._start

    def replacing(*args: Any, **named: Any) -> Any:
        shutil.copy(copied_bundle / WEIGHTS, copied_bundle / "new")
        (copied_bundle / "new").replace(copied_bundle / WEIGHTS)
        return start(*args, **named)

    monkeypatch.setattr(opening, "_start", replacing)
    with (
        Encoder.open(copied_bundle, device="cpu") as encoder,
        pytest.raises(BundleError, match=f"{WEIGHTS} was replaced while it was opened"),
    ):
        encoder.encode_text("a")


def test_a_session_that_is_opened_later_is_of_the_bundle_that_was_opened(copied_bundle: Path) -> None:
    """As CUDA opens one for the first text with padding: by the files' states when the bundle was opened."""
    manifest = Manifest.read(copied_bundle)
    wanted = GraphToOpen(
        path=copied_bundle / "text.onnx",
        graph="text",
        device=Device(kind="cpu"),
        threads=1,
        manifest=manifest,
        since=FilesAtOpening(copied_bundle, manifest.files),
    )
    open_graph(wanted)
    (copied_bundle / "new").write_bytes(other_model((copied_bundle / WEIGHTS).read_bytes()))
    (copied_bundle / "new").replace(copied_bundle / WEIGHTS)
    with pytest.raises(BundleError, match=f"{WEIGHTS} was replaced after the bundle was opened"):
        open_graph(wanted)


def test_a_descriptor_that_something_closed_is_an_error(copied_bundle: Path) -> None:
    """What cannot be watched is not trusted, nor a file that got its number meanwhile."""
    files = WatchedFiles(copied_bundle, [Manifest.read(copied_bundle).file(WEIGHTS)])
    files.check()
    descriptor = files._descriptors[WEIGHTS]
    os.close(descriptor)
    with pytest.raises(BundleError, match="can be watched no more"):
        files.check()
    other = os.open(copied_bundle / "tokenizer.json", os.O_RDONLY)
    if other != descriptor:
        os.dup2(other, descriptor)
        os.close(other)
    with pytest.raises(BundleError, match="can be watched no more"):
        files.check()
    del files
    gc.collect()
    os.close(descriptor)  # it is left to its new owner


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="lists open files by /proc")
def test_a_closed_encoder_holds_no_file(copied_bundle: Path) -> None:
    with Encoder.open(copied_bundle, device="cpu") as encoder:
        encoder.encode_text("a"), encoder.encode_image(PIXELS)
        assert sum(copied_bundle in path.parents for path in open_files()) == 2
    gc.collect()
    assert not any(copied_bundle in path.parents for path in open_files())


def open_files() -> list[Path]:
    return [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]


@pytest.mark.parametrize("name", [WEIGHTS, "text.onnx", "tokenizer.json"])
def test_a_graph_that_is_loaded_later_is_of_the_bundle_that_was_opened(copied_bundle: Path, name: str) -> None:
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
