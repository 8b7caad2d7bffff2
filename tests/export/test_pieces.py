"""A graph in pieces gives what it gives whole, and no piece holds more weights than allowed."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from edgeclip.engine.ort import start_session
from edgeclip.engine.providers import Plan
from edgeclip.manifest import Target
from edgeclip_export import pieces
from edgeclip_export.families.family import Arrays
from edgeclip_export.pieces import run_in_pieces

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MOST_BYTES = 40_000
# Largest difference of unit vectors: onnxruntime fuses nodes, which it cannot across pieces. Measured: 3e-8.
SAME = 5e-7


@pytest.fixture
def feeds() -> list[Arrays]:
    draw = np.random.default_rng(0)
    return [{"pixel_values": draw.integers(0, 256, (count, 64, 64, 3), dtype=np.uint8)} for count in (1, 3)]


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_pieces_give_what_the_whole_gives(bundles: dict[Target, Path], target: Target, feeds: list[Arrays]) -> None:
    path = bundles[target] / "vision.onnx"
    seen: list[tuple[int, int]] = []
    whole = run_in_pieces(path, feeds, "", lambda what, done, total: None)
    cut = run_in_pieces(path, feeds, "", lambda what, done, total: seen.append((done, total)), most_bytes=MOST_BYTES)
    count = seen[0][1]
    assert seen == [(done, count) for done in range(count)]
    stored = [value.const_value for value in ir.load(path).graph.initializers.values()]
    weights = sum(tensor.nbytes for tensor in stored if tensor is not None)
    assert count > weights / MOST_BYTES > 2
    for one, other, feed in zip(cut, whole, feeds, strict=True):
        assert list(one) == ["image_embeds"]
        assert one["image_embeds"].shape[0] == len(feed["pixel_values"])
        assert np.abs(one["image_embeds"] - other["image_embeds"]).max() <= SAME


def test_nothing_of_the_pieces_is_left(bundles: dict[Target, Path], feeds: list[Arrays]) -> None:
    folder = bundles["cpu"]
    before = sorted(folder.iterdir())
    run_in_pieces(folder / "vision.onnx", feeds, "", lambda what, done, total: None, most_bytes=MOST_BYTES)
    assert sorted(folder.iterdir()) == before


def test_a_graph_with_a_choice_is_run_whole(bundles: dict[Target, Path]) -> None:
    seen: list[int] = []
    feeds = [{"input_ids": np.array([[0, 5, 2]])}]
    run_in_pieces(bundles["cpu"] / "text.onnx", feeds, "", lambda what, done, total: seen.append(total), most_bytes=1)
    assert seen == [1]


@pytest.mark.parametrize("adds_in_16_bits", [True, False])
@pytest.mark.parametrize("most_bytes", [MOST_BYTES, 1 << 30])
def test_integer_products_are_guarded_where_they_overflow(
    bundles: dict[Target, Path],
    feeds: list[Arrays],
    most_bytes: int,
    adds_in_16_bits: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In pieces and whole, as the runtime guards them: else a sound int8 graph is refused on x86 without VNNI."""
    plans: list[Plan] = []

    def start(path: Path, *, plan: Plan) -> "InferenceSession":
        plans.append(plan)
        return start_session(path, plan=plan)

    monkeypatch.setattr(pieces, "start_session", start)
    monkeypatch.setattr(pieces, "adds_in_16_bits", lambda: adds_in_16_bits)
    run_in_pieces(bundles["cpu"] / "vision.onnx", feeds, "", lambda what, done, total: None, most_bytes=most_bytes)
    assert plans and {"session.x64quantprecision" in dict(one.entries) for one in plans} == {adds_in_16_bits}
