"""Adapters are inputs of a graph: zeros without one, each adapter's own answer; files that do not fit are refused."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine import adapters
from edgeclip.engine.devices import Device
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.engine.session import GraphSession
from edgeclip.errors import BundleError, EdgeclipError, InputError
from edgeclip.manifest import Manifest
from tests.scenes.adapted_graph import ADAPTERS, DIM, RANK, adapt, answer, save_graph
from tests.scenes.damage import flip_byte, reseal

IDS = np.random.default_rng(1).integers(0, 1000, (3, 5))
# float32 beside float64, over the largest value. Measured: 4e-7.
SAME = 5e-6
FILE = "retrieval.adapter.npz"


@pytest.fixture
def folder(copied_bundle: Path) -> Path:
    adapt(copied_bundle)
    return copied_bundle


def open_text(folder: Path) -> GraphSession:
    """The session of a bundle's text graph."""
    return open_graph(
        GraphToOpen(
            path=folder / "text.onnx",
            graph="text",
            device=Device(kind="cpu"),
            threads=1,
            manifest=Manifest.read(folder),
        )
    )


def worst(found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> float:
    """The largest difference of any output, over that output's largest value."""
    assert found.keys() == wanted.keys()
    assert all(found[name].shape == wanted[name].shape for name in wanted)
    return max(float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted)


def refusal(call: Callable[[], object], kind: type[EdgeclipError]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("adapter", [None, "retrieval", "matching"])
def test_every_adapter_gives_its_own_answer(folder: Path, adapter: str | None) -> None:
    """And no adapter that of the base model, whatever was used before it."""
    session, feed = open_text(folder), {"input_ids": IDS}
    for other in ("matching", None, "retrieval"):
        session.run(feed, adapter=other)
    found = session.run(feed, adapter=adapter)
    assert worst(found, answer(feed, adapter)) <= SAME
    others = {None, *ADAPTERS} - {adapter}
    assert all(worst(found, answer(feed, other)) > 1e-2 for other in others)


def test_one_output_may_be_asked_for(folder: Path) -> None:
    session, feed = open_text(folder), {"input_ids": IDS}
    assert session.outputs == ("text_embeds", "token_embeds")
    found = session.run(feed, ["token_embeds"], "matching")
    assert worst(found, {"token_embeds": answer(feed, "matching")["token_embeds"]}) <= SAME


def test_a_graph_without_a_manifest_has_no_adapters(tmp_path: Path) -> None:
    """It is run as the base model: the inputs after its first are zeros."""
    save_graph(tmp_path / "text.onnx")
    session = open_graph(GraphToOpen(path=tmp_path / "text.onnx", graph="text", device=Device(kind="cpu"), threads=1))
    feed = {"input_ids": IDS}
    assert worst(session.run(feed), answer(feed)) <= SAME
    message = refusal(lambda: session.run(feed, adapter="retrieval"), InputError)
    assert message == "adapter is 'retrieval', wanted None or one that the graph has: none"


@pytest.mark.parametrize("name", ["", "Retrieval", "retrieval.query", FILE])
def test_an_unknown_adapter_is_told_the_known_ones(folder: Path, name: str) -> None:
    with Encoder.open(folder, device="cpu") as encoder:
        message = refusal(lambda: encoder.run_graph("text", {"input_ids": IDS}, adapter=name), InputError)
        assert message == f"adapter is {name!r}, wanted None or one that the graph has: 'retrieval', 'matching'"
        pixels = np.zeros((1, 64, 64, 3), np.uint8)
        message = refusal(
            lambda: encoder.run_graph("vision", {"pixel_values": pixels}, adapter="retrieval"), InputError
        )
        assert message == "adapter is 'retrieval', wanted None or one that the graph has: none"


def test_an_adapter_is_read_when_it_is_first_used_and_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By several threads at once, too, each of which gets the answer of its own adapter."""
    read: list[str] = []

    def reading(path: Path) -> Any:
        read.append(path.name)
        return found_in(path)

    found_in = adapters.read_adapter
    monkeypatch.setattr(adapters, "read_adapter", reading)
    session, start = open_text(folder), Barrier(8, timeout=60)
    names: list[str | None] = [None, "retrieval", "matching", "retrieval"]

    def work(number: int) -> float:
        start.wait()
        found = 0.0
        for turn in range(8):
            adapter = names[(number + turn) % len(names)]
            feed = {"input_ids": np.random.default_rng(number).integers(0, 1000, (1 + turn, 3))}
            found = max(found, worst(session.run(feed, adapter=adapter), answer(feed, adapter)))
        return found

    assert read == []
    with ThreadPoolExecutor(8) as pool:
        assert max(pool.map(work, range(8))) <= SAME
    assert sorted(read) == ["matching.adapter.npz", FILE]


def test_an_adapter_that_was_read_stays(folder: Path) -> None:
    """It is no part of the weights that are read in place; another one is not read from a file that changed."""
    session, feed = open_text(folder), {"input_ids": IDS}
    session.run(feed, adapter="retrieval")
    flip_byte(folder / FILE, 300)
    (folder / "matching.adapter.npz").unlink()
    assert worst(session.run(feed, adapter="retrieval"), answer(feed, "retrieval")) <= SAME
    message = refusal(lambda: session.run(feed, adapter="matching"), BundleError)
    assert message == f"{folder}: matching.adapter.npz cannot be read (No such file or directory)"
    assert worst(session.run(feed), answer(feed)) <= SAME


@pytest.mark.parametrize("position", [0, 300, -1])
def test_a_changed_byte_of_an_adapter_is_found(folder: Path, position: int) -> None:
    flip_byte(folder / FILE, position)
    with Encoder.open(folder, device="cpu") as encoder:
        encoder.encode_text("a", task="text-matching")
        message = refusal(lambda: encoder.encode_text("a", task="retrieval.query"), BundleError)
    assert message.startswith(f"{folder}: {FILE} is not what was exported")


class Trap:
    """Unpickling one fails the test: the author of a bundle could run anything."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return pytest.fail, ("it was unpickled",)


def pickled() -> bytes:
    file = io.BytesIO()
    np.savez(file, lora_a=np.array([Trap()], dtype=object), lora_b=ADAPTERS["retrieval"]["lora_b"])
    return file.getvalue()


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(100), pickled()])
def test_a_file_that_is_no_adapter(folder: Path, content: bytes) -> None:
    (folder / FILE).write_bytes(content)
    reseal(folder)
    with Encoder.open(folder, device="cpu") as encoder:
        message = refusal(lambda: encoder.encode_text("a", task="retrieval.query"), BundleError)
    assert message.startswith(f"{folder / FILE}: cannot be read (")


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"lora_a": ADAPTERS["retrieval"]["lora_a"]},
        {**ADAPTERS["retrieval"], "lora_c": np.zeros((2, 2), np.float32)},
        {**ADAPTERS["retrieval"], "lora_a": np.zeros((DIM, RANK + 1), np.float32)},
        {**ADAPTERS["retrieval"], "lora_a": ADAPTERS["retrieval"]["lora_a"].T},
        {**ADAPTERS["retrieval"], "lora_a": ADAPTERS["retrieval"]["lora_a"][0]},
    ],
    ids=["none", "one missing", "one more", "another rank", "turned", "fewer axes"],
)
def test_arrays_that_the_graph_does_not_take(folder: Path, arrays: dict[str, NDArray[Any]]) -> None:
    np.savez(folder / FILE, **arrays)  # type: ignore[arg-type]
    reseal(folder)
    with Encoder.open(folder, device="cpu") as encoder:
        message = refusal(lambda: encoder.encode_text("a", task="retrieval.query"), BundleError)
    assert message == f"{folder}: {FILE} holds other arrays than the graph takes; export the bundle again"


@pytest.mark.parametrize("dtype", [np.float64, ">f4"])
def test_other_numbers_become_float32(folder: Path, dtype: Any) -> None:
    """In the order that the graph wants them in memory."""
    np.savez(folder / FILE, **{name: np.asfortranarray(a.astype(dtype)) for name, a in ADAPTERS["retrieval"].items()})
    reseal(folder)
    feed = {"input_ids": IDS}
    assert worst(open_text(folder).run(feed, adapter="retrieval"), answer(feed, "retrieval")) <= SAME
