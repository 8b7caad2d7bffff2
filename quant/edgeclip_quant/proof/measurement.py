"""Measure what quantising cost a bundle, and write the inputs with which `edgeclip check` measures it again
elsewhere.

Three kinds of inputs are run: the self-test's, compared with the checkpoint's answers; made-up ones, which the bundle
keeps with the source's answers (proof.npz), so that another device can be compared too; and the user's own. The
user's are measured and never stored, because a bundle is passed on and may not be allowed to hold them. Where a
bundle takes texts alone, the made-up texts are documents and queries, and a query is a piece of its document.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle import selftest
from edgeclip.bundle.closeness import compare_vectors
from edgeclip.bundle.selftest import ANSWERS
from edgeclip.host.malloc_bounds import give_back
from edgeclip.manifest import (
    PROOF_DATA,
    SELFTEST_DATA,
    Manifest,
    Measurement,
    Modality,
    Precision,
    Reference,
    RetrievalChange,
    Space,
)
from edgeclip.multi_vectors import MultiVectors
from edgeclip_quant.graph_runner import Graphs, Progress
from edgeclip_quant.inputs.feeder import Feeder
from edgeclip_quant.inputs.made_up import (
    Samples,
    flat_cells,
    made_up_samples,
    picture_items,
    picture_sides,
    queries_and_documents,
)
from edgeclip_quant.proof.retrieval import Vectors, page_changes, retrieval_changes
from edgeclip_quant.proof.timing import Timing, time_modality

PROOF = "proof.npz"
_TEXTS, _IMAGES, _SEED = 32, 8, 1
_TILE_PX = 16

# The vectors of each modality in each space: for each item its rows (T, D), one of them in `single`.
Answers = Mapping[Modality, Mapping[Space, Sequence[NDArray[np.float32]]]]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SourceAnswers:
    """What a narrowed bundle is held against: the self-test with the checkpoint's answers, and samples, the made-up
    ones first, with the source's.
    """

    own_test: Samples
    of_checkpoint: Mapping[Modality, Mapping[Space, NDArray[np.float32]]]
    sets: Sequence[Samples]
    wanted: Sequence[Answers]


def ask_source(feeder: Feeder, own: Samples | None, progress: Progress) -> SourceAnswers:
    """Run the source's graphs on the made-up inputs and on `own`, where given.

    The graphs of one modality are in memory at a time. Raises BuildError for a graph that cannot run, BundleError for
    a self-test that cannot be read.
    """
    own_test, of_checkpoint = read_selftest(feeder)
    sets = [proof_samples(feeder)] if own is None else [proof_samples(feeder), own]
    graphs = Graphs(feeder, graph_files(feeder.folder, feeder.manifest))
    wanted = _answer(feeder, sets, graphs, "asking the source for", progress, feeder.manifest.modalities)
    return SourceAnswers(own_test=own_test, of_checkpoint=of_checkpoint, sets=sets, wanted=wanted)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Proof:
    """`measured` has an entry for each modality and space for the self-test, then for the made-up inputs, then for a
    user's own where given. `found` are the answers to the self-test and to each set of samples, `sizes` each
    modality's bytes in the source and now.
    """

    measured: Sequence[Measurement]
    found: Sequence[Answers]
    sizes: Mapping[Modality, tuple[int, int]]


def prove(
    feeder: Feeder,
    stage: Path,
    source: SourceAnswers,
    progress: Progress,
    *,
    precisions: Mapping[str, Precision],
    kernels: Mapping[str, Mapping[str, int]] | None = None,
    before: Proof | None = None,
    changed: Collection[str] = (),
) -> Proof:
    """Compare the graphs in `stage` with those of the source, and write `stage`/proof.npz.

    `precisions` and `kernels` are those of the graphs in `stage`, as in `Graphs`. Where they were proved `before`,
    only modalities are asked again that lead through a graph that `changed` since.

    Nothing is judged, and nothing timed (`add_times`). The graphs of one modality are in memory at a time. fp16 is
    emulated (`emulation`). Raises BuildError for a graph that cannot run.
    """
    manifest = feeder.manifest
    files, narrow_files = graph_files(feeder.folder, manifest), graph_files(stage, manifest)
    ours = Feeder(stage, manifest)  # whose adapters may be others
    sets = (source.own_test, *source.sets)
    graphs = {modality: manifest.graphs_of(modality) for modality in manifest.modalities}
    asked = [one for one, some in graphs.items() if before is None or not set(changed).isdisjoint(some)]
    runs = Graphs(ours, narrow_files, precisions, kernels)
    answers = _answer(ours, sets, runs, "proving", progress, asked)
    if before is not None:
        answers = [{**old, **new} for old, new in zip(before.found, answers, strict=True)]
    of_test, *found = answers
    sizes = {modality: (bytes_of(files, some), bytes_of(narrow_files, some)) for modality, some in graphs.items()}
    measured = [
        measure(
            modality,
            space,
            against="fp32 checkpoint",
            data=source.own_test.name,
            wanted=source.of_checkpoint[modality][space],
            found=joined(of_test[modality][space]),
            weight_bytes=sizes[modality][1],
        )
        for modality in manifest.modalities
        for space in source.of_checkpoint[modality]
    ]
    for one, wanted, some in zip(source.sets, source.wanted, found, strict=True):
        measured += _measure_samples(one, wanted, some, sizes, is_sized=one is source.sets[0])
    save_proof(stage / PROOF, source.sets[0], source.wanted[0])
    return Proof(measured=measured, found=answers, sizes=sizes)


def alone(source: SourceAnswers, proof: Proof) -> Mapping[Modality, list[Measurement]]:
    """For each modality what the last set of samples would show if its vectors alone had been narrowed."""
    samples, before, after = source.sets[-1], source.wanted[-1], proof.found[-1]
    changes = {modality: {**before, modality: after[modality]} for modality in after}
    return {
        modality: _measure_samples(samples, before, change, proof.sizes, is_sized=False)
        for modality, change in changes.items()
    }


def add_times(
    measured: Sequence[Measurement],
    feeder: Feeder,
    stage: Path,
    progress: Progress,
    kernels: Mapping[str, Mapping[str, int]],
) -> list[Measurement]:
    """The figures of the made-up inputs with the time of the graphs in `stage` beside the source's.

    Only what was made for the CPU is timed: elsewhere its time means nothing.
    """
    manifest = feeder.manifest
    if manifest.target != "cpu":
        return list(measured)
    made_up, ours = proof_samples(feeder), Feeder(stage, manifest)
    files, narrow_files = graph_files(feeder.folder, manifest), graph_files(stage, manifest)
    timings: dict[Modality, Timing] = {}
    for modality in manifest.modalities:
        progress(f"timing {modality} vectors", 0, 1)
        with Graphs(feeder, files) as source, Graphs(ours, narrow_files, kernels=kernels) as narrowed:
            timings[modality] = time_modality(modality, feeder, source, narrowed, made_up)
        give_back(manifest.weight_bytes)
    return [one if one.size_ratio is None else _timed(one, timings[one.modality]) for one in measured]


def _timed(measured: Measurement, timing: Timing) -> Measurement:
    return replace(
        measured,
        latency_ratio=timing.ratio,
        latency_input=timing.input,
        latency_samples=timing.samples,
        machine=timing.machine,
    )


def _answer(
    feeder: Feeder,
    sets: Sequence[Samples],
    graphs: Graphs,
    what: str,
    progress: Progress,
    modalities: Sequence[Modality],
) -> list[dict[Modality, Mapping[Space, Sequence[NDArray[np.float32]]]]]:
    """The answers to each of the sets, one modality after the other."""
    found: list[dict[Modality, Mapping[Space, Sequence[NDArray[np.float32]]]]] = [{} for _ in sets]
    for modality in modalities:
        with graphs:
            for answers, one in zip(found, sets, strict=True):
                said = f"{what} {modality} vectors"
                answers[modality] = graphs.matrices(one.of(modality), feeder.manifest.space_names, said, progress)
        give_back(feeder.manifest.weight_bytes)
    return found


def _measure_samples(
    samples: Samples,
    before: Answers,
    after: Answers,
    sizes: Mapping[Modality, tuple[int, int]],
    *,
    is_sized: bool,
) -> list[Measurement]:
    """What samples show, from the answers of the source and of the smaller bundle, of each modality and space.

    `sizes` are the bytes of both, which are compared where it `is_sized`.
    """
    changes: dict[Space, Mapping[Modality, RetrievalChange | None]] = {
        "single": retrieval_changes(single(before), single(after), samples.pairs)
    }
    if any("multi" in spaces for spaces in before.values()):
        changes["multi"] = page_changes(multi(before), multi(after))
    return [
        measure(
            modality,
            space,
            against="fp32 bundle",
            data=samples.name,
            wanted=joined(before[modality][space]),
            found=joined(after[modality][space]),
            weight_bytes=sizes[modality][1],
            source_bytes=sizes[modality][0] if is_sized else None,
            retrieval=changes[space].get(modality),
        )
        for modality in before
        for space in before[modality]
    ]


def single(answers: Answers) -> Vectors:
    """The single vectors (N, D) of each modality."""
    return {modality: joined(spaces["single"]) for modality, spaces in answers.items()}


def multi(answers: Answers) -> Mapping[Modality, MultiVectors]:
    """The multi vectors of each modality."""
    return {modality: MultiVectors.of(spaces["multi"]) for modality, spaces in answers.items()}


def joined(rows: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """The rows of all items, (N, D)."""
    return np.concatenate(rows)


def graph_files(folder: Path, manifest: Manifest) -> Mapping[str, Path]:
    """The graphs' files in a folder, by graph."""
    return {name: folder / facts.file for name, facts in manifest.graphs.items()}


def bytes_of(files: Mapping[str, Path], graphs: tuple[str, ...]) -> int:
    """The size of graphs with their weights, which lie beside them."""
    paths = [path for name in graphs for path in files[name].parent.glob(f"{files[name].name}*")]
    return sum(path.stat().st_size for path in paths)


def measure(
    modality: Modality,
    space: Space,
    *,
    against: Reference,
    data: str,
    wanted: NDArray[np.float32],
    found: NDArray[np.float32],
    weight_bytes: int,
    source_bytes: int | None = None,
    timing: Timing | None = None,
    retrieval: RetrievalChange | None = None,
) -> Measurement:
    """The figures of vectors of one modality and space, `found` (N, D), where `against` answered `wanted` (N, D).

    Cosines are of the vectors as they are, whatever their lengths; a row of zeros or NaN makes the worst one NaN.
    """
    measured = Measurement(
        modality=modality,
        space=space,
        against=against,
        data=data,
        **asdict(compare_vectors(found, wanted)),
        weight_bytes=weight_bytes,
        size_ratio=weight_bytes / source_bytes if source_bytes else None,
        retrieval=retrieval,
    )
    return measured if timing is None else _timed(measured, timing)


def proof_samples(feeder: Feeder) -> Samples:
    """The made-up inputs of a proof: the same for every bundle of one checkpoint, and small when compressed.

    Texts of random tokens, and pictures of flat cells under a slope of light, some with a grain that repeats:
    8 of 512 px take 0.5 MB. Without images, the texts are documents, and pieces of them as queries.
    """
    draw = np.random.default_rng(_SEED)
    manifest = feeder.manifest
    if manifest.image is None:
        return queries_and_documents(feeder, draw, _TEXTS)
    texts = made_up_samples(feeder, texts=_TEXTS, images=0, seed=_SEED).text
    sides = picture_sides(manifest, draw, _IMAGES)
    pictures = picture_items(feeder, (_picture(max(one), draw)[: one[0], : one[1]] for one in sides))
    return Samples(name=PROOF_DATA, text=texts, image=pictures)


def save_proof(path: Path, samples: Samples, wanted: Answers) -> None:
    """Write the inputs that `edgeclip check` runs, and the source's answers to them, for
    `edgeclip.bundle.selftest.repeat_proof`.
    """
    arrays: dict[str, Any] = {}
    for modality, spaces in wanted.items():
        items = samples.of(modality)
        for name in items[0].arrays if items else ():
            inputs = [item.arrays[name] for item in items]
            if modality == "image" and len(items[0].arrays) == 1:  # pictures of one size
                arrays[name] = np.stack(inputs)
            else:
                arrays |= {f"{name}_{index}": array[None] for index, array in enumerate(inputs)}
        adapters = [item.adapter or item.next_adapter or "" for item in items]
        if modality == "text" or any(adapters):
            arrays[f"{modality}_adapters"] = np.array(adapters)
        arrays |= {ANSWERS[space][modality]: joined(rows) for space, rows in spaces.items()}
    np.savez_compressed(path, **arrays)


def read_selftest(feeder: Feeder) -> tuple[Samples, Mapping[Modality, Mapping[Space, NDArray[np.float32]]]]:
    """A bundle's self-test as items, with the checkpoint's answers (N, D); BundleError when it cannot be read."""
    test = selftest.read_selftest(feeder.manifest, feeder.folder)
    family = feeder.family
    text = [family.texts([one], task, None).items[0] for one, task in zip(test.texts, test.tasks, strict=True)]
    image = [
        family.image(one, task, max_pixels=None, label="the self-test's image")
        for one, task in zip(test.images, test.image_tasks, strict=True)
    ]
    return Samples(name=SELFTEST_DATA, text=tuple(text), image=tuple(image)), test.wanted


def _picture(size_px: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """A made-up picture. Some have a tile of noise that repeats: it compresses well, and a graph must process all of
    it.
    """
    flat = flat_cells(size_px, draw)
    slope = np.linspace(-60, 60, size_px)[:, None, None] * draw.uniform(-1, 1)
    tile = draw.normal(0, 1, (_TILE_PX, _TILE_PX, 3)) * draw.choice([0, 24])
    times = -(-size_px // _TILE_PX)
    grain = np.tile(tile, (times, times, 1))[:size_px, :size_px]
    picture: NDArray[np.uint8] = (flat + slope + grain).clip(0, 255).astype(np.uint8)
    return picture
