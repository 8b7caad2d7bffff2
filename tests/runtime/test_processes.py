"""An Encoder works in forked and spawned children, pickled and copied, and after the process changes its folder."""

import copy
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.devices import Device
from edgeclip.engine.graphs import _after_fork
from edgeclip.errors import DeviceError, InputError

# The same work in another process. Measured: 0.
SAME = 5e-6
PIXELS = np.random.default_rng(5).integers(0, 256, (2, 40, 30, 3), dtype=np.uint8)
TEXTS = ["a red bicycle", "海滩上美丽的日落"]
_WITHIN_S = 60
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
# A user's process: opens, encodes, forks. Run apart, for the tests' own process holds threads of torch and others.
_FORKS = """if True:
    import os, sys, threading
    import numpy as np
    from edgeclip import Encoder
    pixels = np.zeros((2, 40, 30, 3), np.uint8)
    texts = ["a red bicycle", "ein rotes Fahrrad"] * 200
    encoder = Encoder.open(sys.argv[1], device="cpu", threads=2)
    wanted = encoder.encode_text(texts), encoder.encode_image(pixels)
    {before}
    child = os.fork()
    if child == 0:
        {inside}
        sys.exit(0)  # the whole end of an interpreter, with everything freed
    _, status = os.waitpid(child, 0)
    {after}
    assert np.array_equal(encoder.encode_text(texts), wanted[0])  # the parent goes on as before
    sys.exit(os.waitstatus_to_exitcode(status))
"""
# An image stream that was begun: it has threads and buffers.
_BEGUN = "images = encoder.iter_images([pixels[0]] * 60); next(images)"
_GOES_ON = """from edgeclip import DeviceError
        try:
            next(images)
        except DeviceError as error:
            assert "begun before the process was forked" in str(error), error
        else:
            sys.exit(3)
        assert len(list(encoder.iter_images([pixels[0]] * 3))) == 3"""
_SAME = """found = encoder.encode_text(texts), encoder.encode_image(pixels)
        assert all(np.array_equal(a, b) for a, b in zip(found, wanted))"""


def encode(encoder: Encoder) -> NDArray[np.float32]:
    return np.concatenate([encoder.encode_text(TEXTS), encoder.encode_image(PIXELS)])  # (4, D)


@needs_fork
@pytest.mark.parametrize(
    ("before", "inside", "after"),
    [
        ("pass", _SAME, "pass"),
        ("pass", "pass", "pass"),
        ("pass", "encoder.close()", "pass"),
        ("pass", "del encoder", "pass"),
        ("pass", "with encoder: pass", "pass"),
        (
            "work = threading.Thread(target=encoder.encode_text, args=(texts,)); work.start()",
            _SAME,
            "work.join()",
        ),
        ("encoder._graphs._locks['text'].acquire()", _SAME, "encoder._graphs._locks['text'].release()"),
        ("encoder._graphs._parsing.acquire()", _SAME, "encoder._graphs._parsing.release()"),
        (_BEGUN, _GOES_ON, "assert len(list(images)) == 59"),
        (_BEGUN, "images.close()", "assert len(list(images)) == 59"),
        (_BEGUN, "pass", "assert len(list(images)) == 59"),
    ],
    ids=[
        "encodes",
        "ends",
        "closes",
        "frees",
        "leaves",
        "while it encodes",
        "while it loads",
        "while it parses",
        "goes on with images",
        "closes images",
        "leaves images",
    ],
)
def test_a_forked_child_never_hangs(bundle: Path, before: str, inside: str, after: str) -> None:
    """It encodes to the same bits, and ends, whatever the parent's threads were doing."""
    program = _FORKS.format(before=before, inside=inside, after=after)
    command = [sys.executable, "-c", program, str(bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_WITHIN_S)
    assert done.returncode == 0, done.stderr


@needs_fork
@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_pool_of_processes_shares_an_encoder(bundle: Path, tmp_path: Path, start: str) -> None:
    """By inheriting a global of the parent, and by pickle as an argument."""
    program = """if True:
        import multiprocessing, sys
        import numpy as np
        from edgeclip import Encoder

        ENCODER = None

        def by_global(text):
            return ENCODER.encode_text(text)

        def by_pickle(pair):
            return pair[0].encode_text(pair[1])

        if __name__ == "__main__":
            with Encoder.open(sys.argv[1], device="cpu", threads=1) as encoder:
                texts = ["a", "b c", "d"]
                wanted = [encoder.encode_text(text) for text in texts]
                ENCODER = encoder
                with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
                    found = pool.map(by_pickle, [(encoder, text) for text in texts])
                    if sys.argv[2] == "fork":
                        found += pool.map(by_global, texts)
                        wanted += wanted
                assert np.array_equal(found, wanted)
    """
    script = tmp_path / "pool.py"
    script.write_text(dedent(program.removeprefix("if True:\n")))
    done = subprocess.run(
        [sys.executable, str(script), str(bundle), start], capture_output=True, text=True, timeout=_WITHIN_S
    )
    assert done.returncode == 0, done.stderr


def test_a_device_that_does_not_survive_a_fork_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and with what to do. The GPU's session is not needed for that."""
    with Encoder.open(bundle, device="cpu") as encoder:
        monkeypatch.setattr(encoder._graphs, "_device", Device(kind="cuda"))
        _after_fork()
        with pytest.raises(DeviceError, match=r"opened on cuda:0 before the process was forked.*spawn"):
            encoder.encode_text("a")


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_is_an_encoder_of_its_own(bundle: Path, copied: Any) -> None:
    """On the same folder, device and threads; closing one leaves the other open."""
    with Encoder.open(bundle, device="cpu", threads=2) as encoder:
        other = copied(encoder)
        wanted = encode(encoder)
    with other:
        assert np.abs(encode(other) - wanted).max() <= SAME
        assert (other.threads, other.device, other.manifest) == (2, "cpu", encoder.manifest)
    with pytest.raises(InputError, match="the encoder is closed"):
        copied(encoder)


def test_the_process_may_change_its_folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a daemon does, before the tokenizer or a graph is loaded."""
    shutil.copytree(bundle, tmp_path / "there" / "bundle")
    monkeypatch.chdir(tmp_path / "there")
    with Encoder.open("bundle", device="cpu") as encoder:
        monkeypatch.chdir("/")
        assert encode(encoder).shape == (4, encoder.manifest.embedding_dim)
        assert encode(pickle.loads(pickle.dumps(encoder))).shape == (4, encoder.manifest.embedding_dim)
        assert encoder.folder == tmp_path.resolve() / "there" / "bundle"


def test_a_link_to_the_bundle_may_be_turned_to_another(bundle: Path, trained_int8: Path, tmp_path: Path) -> None:
    """What is opened stays: the graph that is loaded later is of the same bundle as the first."""
    link = tmp_path / "current"
    link.symlink_to(bundle)
    with Encoder.open(bundle, device="cpu") as encoder:
        wanted = encode(encoder)
    with Encoder.open(link, device="cpu") as encoder:
        encoder.encode_text("a")
        link.unlink()
        link.symlink_to(trained_int8)
        assert np.abs(encode(encoder) - wanted).max() <= SAME
