"""An Encoder on one core, two at once in processes and threads, quantising onto a full disk, no right to read."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder

# The same work beside other work. Measured: 0.
SAME = 5e-6
TEXTS = ["a red bicycle", "海滩上美丽的日落", "ein rotes Fahrrad im Regen"]
PIXELS = np.random.default_rng(5).integers(0, 256, (2, 90, 70, 3), dtype=np.uint8)
_PROGRAM = """if True:
    import os, sys
    import numpy as np
    from edgeclip import Encoder
    from edgeclip.engine.ort import import_onnxruntime
    if sys.argv[3] == "one core":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import_onnxruntime()
    before = len(os.listdir("/proc/self/task")) if os.path.isdir("/proc/self/task") else 0
    with Encoder.open(sys.argv[1], device="cpu") as encoder:
        size = encoder.manifest.need_image().size_px
        encoder.run_graph("text", {"input_ids": np.array([[0, 5, 2]])})
        encoder.run_graph("vision", {"pixel_values": np.zeros((1, size, size, 3), np.uint8)})
        threads = len(os.listdir("/proc/self/task")) - before if before else 0
        pixels = np.random.default_rng(5).integers(0, 256, (2, 90, 70, 3), dtype=np.uint8)
        texts = ["a red bicycle", "海滩上美丽的日落", "ein rotes Fahrrad im Regen"]
        for _ in range(int(sys.argv[4])):
            found = np.concatenate([encoder.encode_text(texts), encoder.encode_image(pixels)])
    np.save(sys.argv[2], found)
    print(threads)
"""


def wanted(bundle: Path) -> NDArray[np.float32]:
    with Encoder.open(bundle, device="cpu", threads=1) as encoder:
        return encode(encoder)


def encode(encoder: Encoder) -> NDArray[np.float32]:
    return np.concatenate([encoder.encode_text(TEXTS), encoder.encode_image(PIXELS)])  # (5, D)


def start(bundle: Path, out: Path, how: str, times: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-X", "utf8", "-c", _PROGRAM, str(bundle), str(out), how, str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs affinity")
def test_on_one_core_no_thread_is_added(bundle: Path, tmp_path: Path) -> None:
    """Neither graph has a pool beside its caller: more threads than cores only take turns."""
    process = start(bundle, tmp_path / "found.npy", "one core", 1)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "0\n"), err
    assert np.abs(np.load(tmp_path / "found.npy") - wanted(bundle)).max() <= SAME


def test_two_processes_at_once(bundle: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.npy" for number in range(2)]
    processes = [start(bundle, file, "all cores", 5) for file in files]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in processes]
    assert ends == [("", 0)] * 2
    assert max(np.abs(np.load(file) - wanted(bundle)).max() for file in files) <= SAME


def test_two_encoders_in_two_threads(bundle: Path) -> None:
    """Each with pools of its own, opened and closed while the other works."""

    def work(_: int) -> float:
        worst = 0.0
        for _ in range(3):
            with Encoder.open(bundle, device="cpu", threads=2) as encoder:
                worst = max(worst, float(np.abs(encode(encoder) - expected).max()))
        return worst

    expected = wanted(bundle)
    with ThreadPoolExecutor(2) as pool:
        assert max(pool.map(work, range(2))) <= SAME


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root can become another")
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "text.onnx", "text.onnx_data"])
def test_a_file_that_must_not_be_read_is_one_line(copied_bundle: Path, name: str) -> None:
    """By somebody without rights: the process becomes `nobody` when everything is imported."""
    for folder in (copied_bundle, *copied_bundle.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    program = """if True:
        import os, sys
        from edgeclip.cli import main
        assert main(["embed", sys.argv[1], "--text", "a"]) == 0
        os.chmod(os.path.join(sys.argv[1], sys.argv[2]), 0o600)
        os.setgid(65534), os.setuid(65534)
        sys.exit(main(["embed", sys.argv[1], "--text", "a"]))
    """
    command = [sys.executable, "-c", program, str(copied_bundle), name]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.count("\n")) == (1, 1), done.stderr
    assert done.stderr.startswith("edgeclip: ") and done.stderr.count("\n") == 1
    assert name in done.stderr
