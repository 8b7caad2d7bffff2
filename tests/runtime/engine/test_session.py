"""A graph runs on the device that was asked for, or one line says why not; threads may share its session."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.cuda.capture_gate import GATE
from edgeclip.engine.devices import Device
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.engine.session import GraphSession
from edgeclip.errors import BundleError, DeviceError, MissingExtraError
from edgeclip.host.installation import install_command
from tests.conftest import DATA
from tests.scenes.damage import replace_graph

CPU = Device(kind="cpu")
IDS = np.array([[0, 5, 6, 2], [0, 7, 8, 2]])
# The same work in other company and at another time; measured 0 to 3e-7.
SAME = 5e-6


def open_file(path: Path, *, graph: str = "text", device: Device = CPU, threads: int = 1) -> GraphSession:
    """The session of a graph's file, without a manifest."""
    return open_graph(GraphToOpen(path=path, graph=graph, device=device, threads=threads))


def run(session: GraphSession, ids: NDArray[np.int64] = IDS) -> NDArray[np.float32]:
    """The vectors of token ids."""
    return session.run({"input_ids": ids})["text_embeds"]


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x00" * 100, b"\x08\x0a"])
def test_what_is_no_graph_is_one_line(tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    """onnxruntime neither logs beside it nor, on stdout, says that it tries again."""
    path = tmp_path / "text.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        open_file(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: onnxruntime cannot load the text graph (")
    assert len(message.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_graph_cut_short_is_one_line(bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = (bundle / "text.onnx").read_bytes()
    path = tmp_path / "text.onnx"
    for size in range(1, len(whole), len(whole) // 10):
        path.write_bytes(whole[:size])
        with pytest.raises(BundleError, match="cannot load the text graph"):
            open_file(path)
    assert capfd.readouterr() == ("", "")


def test_a_name_in_the_graph_that_is_no_text_is_one_line(
    bundle: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A ValueError in onnxruntime's Python, which prints on stdout and tries other providers unless told not to."""
    whole = (bundle / "text.onnx").read_bytes()
    path = tmp_path / "text.onnx"
    path.write_bytes(whole.replace(b"com.microsoft", b"com.micros\xffft"))
    with pytest.raises(BundleError) as caught:
        open_file(path)
    assert str(caught.value).startswith(f"{path}: onnxruntime cannot load the text graph (")
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot load the vision graph"):
        open_file(tmp_path / "vision.onnx", graph="vision")


def test_a_graph_that_fails_is_one_line(copied_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """It names the graph, the device and the batch, and nothing is logged beside it."""
    replace_graph(copied_bundle, "text", scale=np.ones(64), offset=np.zeros(64), shape=(7, 64))
    session = open_file(copied_bundle / "text.onnx")
    with pytest.raises(DeviceError) as caught:
        run(session)
    message = str(caught.value)
    assert message.startswith("the text graph failed on cpu with a batch of input_ids (2, 4) (")
    assert len(message.splitlines()) == 1
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "feed",
    [
        {},
        {"ids": IDS},
        {"input_ids": IDS, "attention_mask": IDS},
        {"input_ids": IDS.astype(np.float32)},
        {"input_ids": IDS[0]},
        {"input_ids": IDS + 10**6},
    ],
    ids=["nothing", "another name", "one more", "another type", "without a batch", "no words"],
)
def test_arrays_that_the_graph_does_not_take_are_one_line(
    bundle: Path, feed: dict[str, NDArray[Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_file(bundle / "text.onnx")
    with pytest.raises(DeviceError, match="^the text graph failed on cpu") as caught:
        session.run(feed)
    assert len(str(caught.value).splitlines()) == 1
    assert capfd.readouterr() == ("", "")
    assert run(session).shape == (2, 64)


@pytest.mark.filterwarnings("ignore:Specified provider:UserWarning")
@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
def test_the_cpu_does_not_stand_in_for_a_device_that_cannot_start(bundle: Path) -> None:
    """onnxruntime takes the CPU without an error; what runs is asked of it."""
    with pytest.raises(DeviceError, match="cuda:0 asked for, but onnxruntime could start only CPUExecutionProvider"):
        open_file(bundle / "text.onnx", device=Device(kind="cuda"))


def test_without_onnxruntime_the_extras_are_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError) as caught:
        Encoder.open(bundle)
    assert f"`{install_command('cpu')}`" in str(caught.value)
    assert "[gpu] in place of [cpu]" in str(caught.value)


def test_an_onnxruntime_whose_libraries_are_missing_is_not_called_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('libgomp.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnxruntime")
    with pytest.raises(MissingExtraError, match=r"installed but cannot be loaded \(libgomp\.so\.1: cannot open"):
        import_onnxruntime()


def test_the_empty_folder_that_uninstalling_leaves_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(MissingExtraError, match="both of its wheels were installed"):
        import_onnxruntime()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts the threads that Linux shows")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_session_has_the_threads_it_was_given(bundle: Path, threads: int) -> None:
    """In a process of its own, where nothing else comes and goes; the caller is one of the threads."""
    program = """if True:
        import os, pathlib, sys
        from edgeclip.engine.devices import Device
        from edgeclip.engine.opening import GraphToOpen, open_graph
        from edgeclip.engine.ort import import_onnxruntime
        import_onnxruntime()
        before = len(os.listdir("/proc/self/task"))
        cpu, threads = Device(kind="cpu"), int(sys.argv[2])
        session = open_graph(
            GraphToOpen(path=pathlib.Path(sys.argv[1]), graph="text", device=cpu, threads=threads)
        )
        print(1 + len(os.listdir("/proc/self/task")) - before)
    """
    command = [sys.executable, "-c", program, str(bundle / "text.onnx"), str(threads)]
    found = subprocess.run(command, check=True, capture_output=True, text=True)
    assert found.stdout == f"{threads}\n"


def test_threads_change_no_vector(bundle: Path) -> None:
    one, three = (open_file(bundle / "text.onnx", threads=threads) for threads in (1, 3))
    assert np.abs(run(one) - run(three)).max() <= SAME


def test_several_threads_may_share_an_encoder(bundle: Path) -> None:
    """From the start, when the graphs are not loaded yet."""
    texts = [f"text {number} " * (1 + number % 3) for number in range(12)]
    images = sorted(DATA.glob("images/rgb_*.png"))[:4]
    with Encoder.open(bundle, device="cpu") as alone:
        wanted = [alone.encode_text(text) for text in texts] + [alone.encode_image(image) for image in images]
    with Encoder.open(bundle, device="cpu") as shared, ThreadPoolExecutor(8) as pool:
        work = [pool.submit(shared.encode_text, text) for text in texts]
        work += [pool.submit(shared.encode_image, image) for image in images]
        found = [future.result() for future in work]
        # Once more, with both graphs busy at once.
        again = [future.result() for future in [pool.submit(shared.encode_text, texts) for _ in range(8)]]
    assert np.abs(np.array(found) - np.array(wanted)).max() <= SAME
    assert max(np.abs(vectors - np.array(wanted[:12])).max() for vectors in again) <= SAME


def test_a_gpu_that_is_not_driven_by_a_lane_waits_for_captures(bundle: Path) -> None:
    """What allocates meanwhile breaks them: the session that padded texts take, beside the lane."""
    session = open_file(bundle / "text.onnx")
    session._device = Device(kind="cuda")
    with ThreadPoolExecutor(1) as pool:
        with GATE.alone():
            running = pool.submit(run, session)
            assert wait([running], timeout=0.2).not_done
        assert running.result(timeout=60).shape == (2, 64)


def test_the_vectors_are_float32_of_length_one(bundle: Path) -> None:
    vectors = run(open_file(bundle / "text.onnx", threads=os.cpu_count() or 1))
    assert vectors.shape == (2, 64) and vectors.dtype == np.float32
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() <= SAME
