"""The bundle's own tests, on this device: what was measured when it was written, measured again.

The self-test goes the user's way, from str and array to vector, so it also sees a tokenizer, a resize or a crop that
is not what it was; its answers are the checkpoint's. The proof of a narrowed bundle gives the graphs the ids and
pixels that they were proved on; its answers are the fp32 bundle's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.closeness import compare_vectors
from edgeclip.errors import BundleError, DeviceError
from edgeclip.families import open_family
from edgeclip.families.family import Family, Item
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import (
    FIRST_GRAPH,
    PROOF_DATA,
    SELFTEST_DATA,
    Manifest,
    Modality,
    Precision,
    Reference,
    Space,
)

# Largest difference of a unit vector's elements. fp32: measured 4e-7, and other processors sum in
# other orders; the smallest known mistake (tanh for erf in GELU) moves them by 1e-4.
TOLERANCE: dict[Precision, float] = {"fp32": 5e-6}
# The same for vectors of tokens, which are no means and have fewer, larger elements. Measured at full size: 2.2e-6
# (bench/results/v4_export_full_size.json); a forgotten adapter or another prompt moves them by more than 1e-2.
TOKEN_TOLERANCE: dict[Precision, float] = {"fp32": 2e-5}
# A precision that rounds may lose (1 - cosine) so many times what was recorded. Other kernels sum in another order,
# which moves single values over the edge between two levels: the same rounding, drawn anew. With every constant moved
# by 1e-7 to 1e-5 of itself, the small trained model's worst loss as int8 was 0.8 to 1.3 times the recorded one.
LOSS_RATIO = 2.0
# A loss that is allowed whatever was recorded: a fiftieth of fp16's budget, where sums alone may double a loss.
HARMLESS_LOSS = 1e-5
# Vectors of different inputs that differ by less than this are one constant vector.
_DISTINCT = 1e-4

# The array of the wanted vectors of each space and modality, in the files of the self-test and of the proof. In
# "multi" its rows are those of all tokens of all inputs.
ANSWERS: Mapping[Space, Mapping[Modality, str]] = {
    "single": {"text": "text_embeds", "image": "image_embeds"},
    "multi": {"text": "text_multi", "image": "image_multi"},
}

Vectors = NDArray[np.float32]
_Arrays = Mapping[str, NDArray[Any]]
_Answers = Mapping[Modality, Mapping[Space, Vectors]]
_Taken = TypeVar("_Taken")


class Ask(Protocol):
    """Encode texts or images (H, W, 3), each with its own task, None for none, in every space that is named."""

    def __call__(
        self, modality: Modality, inputs: Sequence[Any], tasks: Sequence[str | None], spaces: Sequence[Space]
    ) -> Mapping[Space, Vectors]:
        """Unit vectors (N, D) in the order of the inputs: one for each, in "multi" one for each of its tokens."""


class RunGraph(Protocol):
    """Run a batch through a graph: `edgeclip.encoder.Encoder.run_graph`."""

    def __call__(self, graph: str, feed: _Arrays, *, adapter: str | None) -> Mapping[str, NDArray[Any]]:
        """Every output of the graph, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeated:
    """A modality's vectors here beside the wanted ones; `recorded_cosine` is the manifest's worst, None without.

    `samples` counts vectors: in the space "multi" those of all tokens.
    """

    modality: Modality
    against: Reference
    data: str
    samples: int
    recorded_cosine: float | None
    worst_cosine: float
    largest_difference: float
    space: Space = "single"


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """A bundle's self-test: texts and images (H, W, 3) uint8 with the task of each, and the checkpoint's vectors
    (N, D) of each modality that the bundle takes, in each space.

    Bundles that older versions wrote hold no multi vectors.
    """

    texts: Sequence[str]
    tasks: Sequence[str | None]
    images: Sequence[NDArray[np.uint8]]
    image_tasks: Sequence[str | None]
    wanted: _Answers

    def inputs(self, modality: Modality) -> tuple[Sequence[Any], Sequence[str | None]]:
        """The inputs of a modality, and the task of each."""
        if modality == "text":
            return self.texts, self.tasks
        return self.images, self.image_tasks


def read_selftest(manifest: Manifest, folder: Path) -> SelfTest:
    """The self-test of the bundle in a folder; BundleError when it cannot be read."""

    def take(arrays: _Arrays) -> SelfTest:
        texts = arrays["texts"].tolist() if manifest.text else []
        count = len(arrays["image_embeds"]) if manifest.image else 0
        return SelfTest(
            texts=[str(text) for text in texts],
            tasks=[str(task) or None for task in arrays["tasks"]] if manifest.text else [],
            images=[arrays[f"image_{index}"] for index in range(count)],
            image_tasks=[str(task) or None for task in arrays.get("image_tasks", [""] * count)],
            wanted=_answers(manifest, arrays, _spaces_in(manifest, arrays)),
        )

    path = folder / manifest.selftest
    test = _read(path, take)
    counts = {modality: len(test.inputs(modality)[0]) for modality in manifest.modalities}
    _check_answers(path, manifest, test.wanted, counts)
    for modality in manifest.modalities:
        inputs, tasks = test.inputs(modality)
        if len(tasks) != len(inputs):
            raise BundleError(f"{path}: {len(tasks)} tasks for {len(inputs)} {modality}s")
    return test


def run_selftest(
    manifest: Manifest,
    ask: Ask,
    test: Path | SelfTest,
    *,
    device: str,
    passed: Callable[[Modality], None] = lambda modality: None,
) -> tuple[Repeated, ...]:
    """Ask for the vectors of a self-test, or of that of the bundle in a folder, and judge them in every space.

    Texts come first, because their graph is needed by more requests, and `passed` is called with each modality as
    soon as its vectors are judged, before the next one is asked for.

    DeviceError, which names the `device`, for NaN, a constant or a wrong vector: fp32 is wrong beyond TOLERANCE, a
    precision that rounds below `least_cosine` of what was recorded. Raises BundleError when the self-test cannot be
    read, or the record of such a modality is missing.
    """
    if isinstance(test, Path):
        test = read_selftest(manifest, test)
    results: list[Repeated] = []
    for modality, wanted in test.wanted.items():
        found = ask(modality, *test.inputs(modality), tuple(wanted))
        for space, answers in wanted.items():
            judged = _judge(
                manifest, device, modality, space, "fp32 checkpoint", SELFTEST_DATA, found[space], answers
            )
            results.append(judged)
        passed(modality)
    return tuple(results)


def repeat_proof(manifest: Manifest, run_graph: RunGraph, folder: Path, *, device: str) -> tuple[Repeated, ...]:
    """Run the narrowed graphs on what they were proved on; none in a bundle without a proof.

    DeviceError for vectors that are worse than `least_cosine` of what was recorded, BundleError for a proof that
    cannot be read or has no record.
    """
    if manifest.proof is None:
        return ()
    spaces = manifest.space_names

    def take(arrays: _Arrays) -> tuple[dict[Modality, list[Item]], _Answers]:
        items = {modality: _proof_items(manifest, modality, arrays) for modality in manifest.modalities}
        return items, _answers(manifest, arrays, spaces)

    path = folder / manifest.proof
    items, wanted = _read(path, take)
    _check_answers(path, manifest, wanted, {name: len(some) for name, some in items.items()})
    family = open_family(manifest, _no_tokenizer)
    results = []
    for modality in manifest.modalities:
        if manifest.precision(modality) in TOLERANCE:
            continue
        rows: dict[Space, list[Vectors]] = {space: [] for space in spaces}
        for item in items[modality]:
            graph, outputs = _run(family, item, run_graph)
            for space in spaces:
                rows[space].append(outputs[family.output(graph, space)].reshape(-1, manifest.dim(space)))
        for space in spaces:
            found, answers = np.concatenate(rows[space]), wanted[modality][space]
            judged = _judge(manifest, device, modality, space, "fp32 bundle", PROOF_DATA, found, answers)
            results.append(judged)
    return tuple(results)


def _run(family: Family, item: Item, run_graph: RunGraph) -> tuple[str, _Arrays]:
    """The last graph on an item's way, and its outputs."""
    waiting: Item | None = item
    while waiting is not None:
        item = waiting
        outputs = run_graph(item.graph, family.feed([item]), adapter=item.adapter)
        waiting = family.follow(item, {name: array[0] for name, array in outputs.items()})
    return item.graph, outputs


def least_cosine(recorded: float) -> float:
    """The least worst cosine that may be found where `recorded` was."""
    return 1 - max(LOSS_RATIO * (1 - recorded), HARMLESS_LOSS)


def _judge(
    manifest: Manifest,
    device: str,
    modality: Modality,
    space: Space,
    against: Reference,
    data: str,
    found: Vectors,
    wanted: Vectors,
) -> Repeated:
    test = "self-test" if against == "fp32 checkpoint" else "proof"
    where = f"{test}: the {FIRST_GRAPH[modality]} graph on {device}"
    if space == "multi":
        where += f" (multi vectors of {modality}s)"
    if found.shape != wanted.shape:
        raise BundleError(f"{where} gives {found.shape} vectors, recorded were {wanted.shape}; export it again")
    if np.abs(found - found[:1]).max() < _DISTINCT <= np.abs(wanted - wanted[:1]).max():
        raise DeviceError(f"{where} gives one constant vector for different inputs")
    precision = manifest.precision(modality)
    record = manifest.measurement(modality, space, against, data)
    closeness = compare_vectors(found, wanted)
    difference, worst = closeness.largest_difference, closeness.worst_cosine
    advice = "another device or onnxruntime version may do better"
    tolerance = TOLERANCE if space == "single" else TOKEN_TOLERANCE
    if precision in tolerance:
        if not difference <= tolerance[precision]:
            raise DeviceError(
                f"{where} differs from the checkpoint by {difference:.1e}, allowed at {precision} is "
                f"{tolerance[precision]:.0e}; {advice}"
            )
    elif record is None:
        raise BundleError(
            f"{where} is {precision}, and the manifest does not say what it gave when written; quantise it again"
        )
    elif not worst >= (least := least_cosine(record.worst_cosine)):  # NaN fails too
        raise DeviceError(
            f"{where} has a worst cosine of {worst:.6f} to the {against}, wanted {least:.6f} or more: "
            f"{record.worst_cosine:.6f} was measured when it was written; {advice}"
        )
    return Repeated(
        modality=modality,
        against=against,
        data=data,
        samples=len(found),
        recorded_cosine=None if record is None else record.worst_cosine,
        worst_cosine=worst,
        largest_difference=difference,
        space=space,
    )


def _read(path: Path, take: Callable[[_Arrays], _Taken]) -> _Taken:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return take(arrays)
    except Exception as error:  # zip, numpy and key errors: whatever a damaged file gives
        raise BundleError(f"{path}: cannot be read ({error})") from error


def _answers(manifest: Manifest, arrays: _Arrays, spaces: Sequence[Space]) -> _Answers:
    return {
        modality: {space: arrays[ANSWERS[space][modality]] for space in spaces} for modality in manifest.modalities
    }


def _spaces_in(manifest: Manifest, arrays: _Arrays) -> tuple[Space, ...]:
    """The spaces that a self-test has answers in; those of single vectors must be there."""
    names = {space: ANSWERS[space].values() for space in manifest.space_names}
    return tuple(space for space in names if space == "single" or any(name in arrays for name in names[space]))


def _proof_items(manifest: Manifest, modality: Modality, arrays: _Arrays) -> list[Item]:
    """The inputs that the graphs were proved on, as items.

    Each array of an item lies under its name and the item's number, with one row more; pictures that all have one
    size lie in one array.
    """
    names = [array.name for array in manifest.first_graph(modality).inputs]
    stacked = [name for name in names if name in arrays]
    adapters = [str(adapter) or None for adapter in arrays.get(f"{modality}_adapters", [])]
    count = len(adapters) or len(arrays[stacked[0] if stacked else names[0]])
    is_first = len(manifest.way(modality)) == 1
    return [
        Item(
            graph=FIRST_GRAPH[modality],
            arrays={name: arrays[name][index] if name in stacked else arrays[f"{name}_{index}"][0] for name in names},
            tokens=1,
            alike=index,
            adapter=adapters[index] if adapters and is_first else None,
            next_adapter=adapters[index] if adapters and not is_first else None,
        )
        for index in range(count)
    ]


def _no_tokenizer() -> TextTokenizer:
    raise AssertionError("a proof holds ids")


def _check_answers(path: Path, manifest: Manifest, wanted: _Answers, counts: Mapping[Modality, int]) -> None:
    """BundleError for answers that cannot be those of so many inputs: each has one, in "multi" one or more."""
    for name, count in counts.items():
        for space, answers in wanted[name].items():
            rows = count if space == "single" else max((count, *answers.shape[:1]))
            if not count or answers.shape != (rows, manifest.dim(space)):
                raise BundleError(f"{path}: {answers.shape} answers of {name}s for {count} inputs")
