"""Items of any kinds become unit vectors in their order, over one graph or over two, in batches of one kind each.

The family is made up: its images go through "vision" and then, as many tokens, through "text".
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.batch_policy import BatchPolicy, Kind, kind_of
from edgeclip.engine.run import Runner
from edgeclip.errors import BundleError, DeviceError, WrongVectorsError
from edgeclip.families.family import Arrays, Item, stack
from edgeclip.manifest import Manifest, SingleSpace, Space, Spaces

DIM, WIDTH = 6, 4
# The sums of a batch's rows are those of the rows alone; what is left is one rounding. Measured: 1e-7.
SAME = 1e-6
_draw = np.random.default_rng(0)
TO_STATES, TO_VECTOR = (_draw.normal(size=shape).astype(np.float32) for shape in ((3, WIDTH), (WIDTH, DIM)))
TABLE = _draw.normal(size=(50, WIDTH)).astype(np.float32)
SHIFTS: Mapping[str | None, float] = {None: 0, "a": 1, "b": -2}
Outputs = dict[str, NDArray[Any]]


def text(ids: Sequence[int], adapter: str | None = None) -> Item:
    """A text: ids (T,)."""
    array = np.array(ids)
    return Item(graph="text", arrays={"ids": array}, tokens=len(ids), alike=("ids", len(ids)), adapter=adapter)


def image(patches: int, seed: int, adapter: str | None = None) -> Item:
    """An image: patches (P, 3)."""
    pixels = np.random.default_rng(seed).normal(size=(patches, 3)).astype(np.float32)
    return Item(graph="vision", arrays={"pixels": pixels}, tokens=patches, alike=patches, adapter=adapter)


def run_graph(graph: str, feed: Arrays, adapter: str | None) -> Outputs:
    """Both graphs, in numpy: "vision" makes states, "text" a unit vector of ids or states."""
    ((name, batch),) = feed.items()
    if graph == "vision":
        assert name == "pixels"
        return {"states": np.tanh(batch @ TO_STATES)}  # (B, P, W)
    states = TABLE[batch] if name == "ids" else batch
    summed = np.tanh(states + np.float32(SHIFTS[adapter])).sum(axis=1) @ TO_VECTOR  # (B, D)
    unit = summed / np.linalg.norm(summed, axis=1, keepdims=True)
    return {"rows": states, "vectors": unit.astype(np.float32)}


class TwoGraphs:
    """The made-up family, as far as the loop asks it."""

    def feed(self, items: Sequence[Item]) -> Arrays:
        """A batch's only array."""
        (name,) = items[0].arrays
        return {name: stack([item.arrays[name] for item in items])}

    def follow(self, item: Item, outputs: Arrays) -> Item | None:
        """After "vision" comes "text", with the item's adapter."""
        if item.graph == "text":
            return None
        states = outputs["states"]
        return Item(
            graph="text",
            arrays={"states": states},
            tokens=len(states),
            alike=("states", len(states)),
            adapter=item.adapter,
        )

    def output(self, graph: str, space: Space) -> str:
        """The vectors' name."""
        assert (graph, space) == ("text", "single")
        return "vectors"


@pytest.fixture
def manifest(encoder: Encoder) -> Manifest:
    single = SingleSpace(dim=DIM, matryoshka_dims=(2, DIM), is_strict=False)
    return dataclasses.replace(encoder.manifest, spaces=Spaces(single=single, multi=None))


class Recorded:
    """A Runner and the batches that its graphs were run with."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        tokens: int = 40,
        images: int = 4,
        answer: Callable[[str, Arrays, str | None], Outputs] = run_graph,
    ) -> None:
        self.batches: list[tuple[str, str | None, tuple[int, ...]]] = []
        self.verified: list[str] = []

        def run(graph: str, feed: Arrays, adapter: str | None) -> Outputs:
            ((_, batch),) = feed.items()
            self.batches.append((graph, adapter, batch.shape))
            return answer(graph, feed, adapter)

        policy = BatchPolicy(tokens=tokens, images=images)
        self.runner = Runner(manifest, TwoGraphs(), policy, run, self.verified.append)  # type: ignore[arg-type]

    def vectors(self, items: Sequence[Item], dim: int = DIM, batch_size: int | None = None) -> NDArray[np.float32]:
        """The vectors in the order of the items; every index comes once."""
        found = np.full((len(items), dim), np.nan, np.float32)
        for indices, vectors in self.runner.run(items, dim, batch_size):
            assert vectors.shape == (len(indices), dim) and np.isnan(found[indices]).all()
            found[indices] = vectors
        assert not np.isnan(found).any()
        return found


def mixed(count: int, seed: int = 0) -> list[Item]:
    """Texts and images of several lengths, with every adapter and without one."""
    draw = np.random.default_rng(seed)
    names = list(SHIFTS)
    return [
        image(int(draw.integers(2, 5)), number, names[draw.integers(3)])
        if draw.random() < 0.4
        else text(draw.integers(0, 50, draw.integers(2, 9)).tolist(), names[draw.integers(3)])
        for number in range(count)
    ]


def alone(item: Item) -> NDArray[np.float32]:
    """An item's vector, computed without the runner."""
    ((_, array),) = item.arrays.items()
    if item.graph == "vision":
        return run_graph("text", {"states": np.tanh(array @ TO_STATES)[None]}, item.adapter)["vectors"][0]
    return run_graph("text", {"ids": array[None]}, item.adapter)["vectors"][0]


@pytest.mark.parametrize("batch_size", [None, 1, 3, 100])
@pytest.mark.parametrize("seed", range(4))
def test_every_vector_comes_in_its_place(manifest: Manifest, seed: int, batch_size: int | None) -> None:
    items = mixed(120, seed)
    recorded = Recorded(manifest)
    found = recorded.vectors(items, batch_size=batch_size)
    wanted = np.stack([alone(item) for item in items])
    assert np.abs(found - wanted).max() <= SAME
    assert np.abs(wanted[:, None] - wanted[None]).max(axis=2)[~np.eye(120, dtype=bool)].min() > 1e-4
    assert {graph for graph, _, _ in recorded.batches} == {"text", "vision"}


def test_batches_are_of_one_kind_and_as_few_as_the_policy_allows(manifest: Manifest) -> None:
    """Both graphs' batches keep to their limits; the items of a second graph are grouped anew."""
    items = mixed(120)
    recorded = Recorded(manifest, tokens=24, images=4)
    recorded.vectors(items)
    groups: dict[Kind, int] = {}
    for item in items:
        groups[kind_of(item)] = groups.get(kind_of(item), 0) + 1
    wanted = 0
    for kind, count in groups.items():
        most = 4 if kind.graph == "vision" else 24 // kind.cost
        wanted += -(-count // most)
        if kind.graph == "vision":
            wanted += -(-count // (24 // kind.cost))  # as states, through "text"
    assert len(recorded.batches) == wanted
    for graph, _, shape in recorded.batches:
        assert shape[0] <= 4 if graph == "vision" else shape[0] * shape[1] <= 24


def test_the_adapter_of_an_image_is_used_by_both_graphs(manifest: Manifest) -> None:
    recorded = Recorded(manifest)
    found = recorded.vectors([image(3, 7, name) for name in SHIFTS])
    assert sorted(recorded.batches, key=str) == sorted(
        [("vision", name, (1, 3, 3)) for name in SHIFTS] + [("text", name, (1, 3, WIDTH)) for name in SHIFTS], key=str
    )
    assert min(np.abs(found[0] - found[1]).max(), np.abs(found[1] - found[2]).max()) > 1e-2


def test_vectors_come_as_soon_as_they_are_there(manifest: Manifest) -> None:
    """Those of texts before the images went through their second graph."""
    recorded = Recorded(manifest)
    stream = recorded.runner.run([text([1, 2, 3, 4, 5]), image(3, 0), text([6, 7, 8])], DIM)
    seen = [indices for indices, _ in stream if ("text", None, (1, 3, WIDTH)) not in recorded.batches]
    assert seen == [[0], [2]]


def test_no_items_are_no_vectors(manifest: Manifest) -> None:
    recorded = Recorded(manifest)
    assert list(recorded.runner.run([], DIM)) == [] and recorded.batches == []


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_vectors_are_cut_and_then_normalised(manifest: Manifest, dim: int) -> None:
    items = mixed(20)
    head = np.stack([alone(item) for item in items])[:, :dim]
    wanted = head / np.linalg.norm(head, axis=1, keepdims=True)
    assert np.abs(Recorded(manifest).vectors(items, dim) - wanted).max() <= 1e-5


def test_a_batch_is_a_single_step(manifest: Manifest) -> None:
    """What the service queues itself: vectors of a text, the next items of images."""
    runner = Recorded(manifest).runner
    images = [image(3, seed, "b") for seed in range(3)]
    following = runner.run_batch(images, DIM)
    assert isinstance(following, list)
    assert [(item.graph, item.adapter, item.tokens) for item in following] == [("text", "b", 3)] * 3
    vectors = runner.run_batch(following, DIM)
    assert isinstance(vectors, np.ndarray)
    assert np.abs(vectors - np.stack([alone(item) for item in images])).max() <= SAME


def spoiled(change: Callable[[NDArray[Any]], object]) -> Callable[[str, Arrays, str | None], Outputs]:
    """The graphs, with something changed in the vectors."""

    def run(graph: str, feed: Arrays, adapter: str | None) -> Outputs:
        outputs = run_graph(graph, feed, adapter)
        if "vectors" in outputs:
            change(outputs["vectors"])
        return outputs

    return run


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda vectors: vectors.__setitem__((-1, 2), np.nan), "NaN or infinity"),
        (lambda vectors: vectors.__imul__(2), "a vector of length 2, wanted 1"),
        (lambda vectors: vectors.__setitem__(-1, 0), "a vector of length 0, wanted 1"),
    ],
    ids=["NaN", "long", "zero"],
)
def test_wrong_vectors_are_an_error_that_asks_for_the_graphs_files(
    manifest: Manifest, change: Callable[[NDArray[Any]], object], fault: str
) -> None:
    recorded = Recorded(manifest, answer=spoiled(change))
    with pytest.raises(WrongVectorsError) as caught:
        recorded.vectors([image(3, 0), image(3, 1)])
    assert str(caught.value).startswith(f"the text graph answered with {fault}; its files are as exported")
    assert recorded.verified == ["text"]


def test_files_that_changed_are_blamed_first(manifest: Manifest) -> None:
    def verify(graph: str) -> None:
        raise BundleError(f"{graph} was overwritten")

    policy = BatchPolicy(tokens=9, images=1)
    answer = spoiled(lambda vectors: vectors.__imul__(np.nan))
    runner = Runner(manifest, TwoGraphs(), policy, answer, verify)  # type: ignore[arg-type]
    with pytest.raises(BundleError, match="^text was overwritten$"):
        runner.run_batch([text([1, 2])], DIM)


def test_vectors_of_another_dimension_are_the_bundles_fault(manifest: Manifest) -> None:
    single = dataclasses.replace(manifest.spaces.single, dim=7, matryoshka_dims=())
    other = dataclasses.replace(manifest, spaces=Spaces(single=single, multi=None))
    with pytest.raises(BundleError, match=r"^the text graph gives \(2, 6\) for 2 inputs of 7 dimensions"):
        Recorded(other).runner.run_batch([text([1, 2]), text([3, 4])], 7)


def test_an_error_of_a_graph_passes_through(manifest: Manifest) -> None:
    def fail(graph: str, feed: Arrays, adapter: str | None) -> Outputs:
        raise DeviceError(f"{graph} failed")

    with pytest.raises(DeviceError, match="^vision failed$"):
        Recorded(manifest, answer=fail).vectors([image(2, 0)])
