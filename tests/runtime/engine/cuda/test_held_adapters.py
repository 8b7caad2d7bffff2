"""Adapters that are bound in every run give what onnxruntime's own call gives, and are read once. Run on the CPU."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.engine.adapters import Adapters
from edgeclip.engine.cuda.held_adapters import HeldAdapters
from edgeclip.engine.devices import Device
from edgeclip.engine.session import GraphSession
from edgeclip.errors import InputError
from tests.scenes.page_bundle import ADAPTERS, SHIFTS, make_page_bundle


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Encoder]:
    with Encoder.open(make_page_bundle(tmp_path / "bundle"), device="cpu") as encoder:
        yield encoder


def held(opened: Encoder) -> tuple[GraphSession, HeldAdapters]:
    session = opened._graphs.session("text")
    wanted = {"adapter_shift": SHIFTS["code"].shape}
    adapters = Adapters(opened.folder, "text", opened.manifest, wanted)
    return session, HeldAdapters(session._session, adapters, ("cpu", 0))


def test_each_adapter_gives_its_own_answer(opened: Encoder) -> None:
    session, bound = held(opened)
    feed = opened.family.feed(opened.prepare_texts(["what is on page 1"], task="code.query").items)
    found = {name: bound.run(feed, session.outputs, name) for name in (*ADAPTERS, *ADAPTERS)}
    for name in ADAPTERS:
        wanted = session.run(feed, adapter=name)
        assert found[name].keys() == wanted.keys()
        assert all(np.array_equal(found[name][output], wanted[output]) for output in wanted)
    assert not np.allclose(found["code"]["single"], found["retrieval"]["single"])
    assert list(bound.run(feed, ["multi"], "code")) == ["multi"]


def test_an_adapter_is_read_once(opened: Encoder) -> None:
    session, bound = held(opened)
    feed = opened.family.feed(opened.prepare_texts(["a"], task="code.query").items)
    first = bound.run(feed, session.outputs, "code")
    (opened.folder / "code.adapter.npz").unlink()
    assert np.array_equal(bound.run(feed, session.outputs, "code")["multi"], first["multi"])
    with pytest.raises(InputError, match="wanted None or one that the graph has"):
        bound.run(feed, session.outputs, "x")


@pytest.mark.parametrize("kind", ["cuda", "tensorrt"])
def test_a_session_on_a_gpu_binds_them(opened: Encoder, kind: str) -> None:
    """Where no lane runs it: on CUDA graphs of several inputs, and on TensorRT."""
    session, bound = held(opened)
    feed = opened.family.feed(opened.prepare_texts(["a"], task="code.query").items)
    wanted = bound.run(feed, session.outputs, "code")
    on_gpu = GraphSession(
        session._session,
        opened.folder / "text.onnx",
        "text",
        Device(kind=kind),
        files=session.files,
        adapters=session._adapters,
    )
    assert session._held is None and on_gpu._held is not None and on_gpu._held._device == ("cuda", 0)
    on_gpu._held = bound  # on the CPU: there is no GPU here
    (opened.folder / "code.adapter.npz").unlink()  # the session itself would read it now
    assert np.array_equal(on_gpu.run(feed, adapter="code")["multi"], wanted["multi"])
