"""Measure what quantising cost a bundle, and write the inputs with which `edgeclip check` measures it again
elsewhere.

Three kinds of inputs are run: the self-test's, compared with the checkpoint's answers; made-up ones, which the bundle
keeps with the source's answers (proof.npz), so that another device can be compared too; and the user's own. The
user's are measured and never stored, because a bundle is passed on and may not be allowed to hold them.
"""

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.engine.devices import usable_cpus
from edgeclip.engine.paired_timing import take_turns
from edgeclip.errors import BuildError
from edgeclip.host.processor import processor_name
from edgeclip.manifest import (
    PROOF_DATA,
    SELFTEST_DATA,
    TOWERS,
    Manifest,
    Measurement,
    Precision,
    Reference,
    RetrievalChange,
    TowerName,
)
from edgeclip_quant.emulation import emulating_session
from edgeclip_quant.graph_runner import Run, answers, open_tower, run_of
from edgeclip_quant.inputs.made_up import Samples, made_up_samples
from edgeclip_quant.proof.retrieval import Vectors, retrieval_changes

Progress = Callable[[str, int, int], None]

PROOF = "proof.npz"
_TEXTS, _IMAGES, _SEED = 32, 8, 1
_CELLS = (2, 4, 8, 16)
_TILE_PX = 16

_SHORT_TOKENS = 16
# A pair of runs at full size takes 3.5 s for an image on two cores, and 70 ms for a short text.
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 30, 5, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Time of the narrowed tower divided by the source's: the median of `samples` pairs of runs, on `machine`."""

    ratio: float
    samples: int
    input: str
    machine: str


def prove(
    bundle: Path,
    manifest: Manifest,
    stage: Path,
    own: Samples | None,
    progress: Progress,
    *,
    precisions: Mapping[TowerName, Precision],
) -> list[Measurement]:
    """Compare the graphs in `stage` with those of `bundle`, whose manifest is `manifest`, and write
    `stage`/proof.npz.

    Returns two entries, text and vision, for the self-test, then for the made-up inputs, then for `own` where given.
    Nothing is judged. One tower is in memory at a time, with its source. fp16 is emulated (`emulation`); only what
    was made for the CPU is timed, because elsewhere its time means nothing. Raises BuildError for a graph that cannot
    run and a self-test that cannot be read.
    """
    selftest, of_checkpoint = read_selftest(bundle / manifest.selftest)
    made_up = proof_samples(bundle, manifest)
    sets = [made_up] if own is None else [made_up, own]
    wanted: dict[TowerName, list[NDArray[np.float32]]] = {}
    found: dict[TowerName, list[NDArray[np.float32]]] = {}
    timings: dict[TowerName, Timing] = {}
    sizes: dict[TowerName, list[int]] = {}
    for name in TOWERS:
        graphs = [folder / manifest.tower(name).file for folder in (bundle, stage)]
        sizes[name] = [_size(graph) for graph in graphs]
        source = open_tower(graphs[0])
        with _opened(graphs[1], precisions[name]) as narrowed:
            wanted[name] = [answers(source, one.of(name), f"asking the {name} tower", progress) for one in sets]
            found[name] = [
                answers(narrowed, one.of(name), f"proving the {name} tower", progress) for one in (selftest, *sets)
            ]
            if manifest.target == "cpu":
                progress(f"timing the {name} tower", 0, 1)
                timings[name] = time_tower(name, source, narrowed, made_up)
        del source, narrowed
        gc.collect()
    measured = [
        measure(
            name,
            against="fp32 checkpoint",
            data=selftest.name,
            wanted=of_checkpoint.of(name),
            found=found[name][0],
            weight_bytes=sizes[name][1],
        )
        for name in TOWERS
    ]
    for number, one in enumerate(sets):
        before, after = (
            Vectors(text=answers["text"][at], vision=answers["vision"][at])
            for answers, at in ((wanted, number), (found, number + 1))
        )
        changes = retrieval_changes(before, after, one.pairs)
        for name, change in zip(TOWERS, changes, strict=True):
            measured.append(
                measure(
                    name,
                    against="fp32 bundle",
                    data=one.name,
                    wanted=before.of(name),
                    found=after.of(name),
                    weight_bytes=sizes[name][1],
                    source_bytes=sizes[name][0] if one is made_up else None,
                    timing=timings.get(name) if one is made_up else None,
                    retrieval=change,
                )
            )
        if one is made_up:
            save_proof(stage / PROOF, made_up, before)
    return measured


def measure(
    tower: TowerName,
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
    """The figures of a tower that answered `found` (N, D) where `against` answered `wanted` (N, D).

    Cosines are of the vectors as they are, whatever their lengths; a row of zeros or NaN makes the worst one NaN.
    """
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    with np.errstate(invalid="ignore"):
        cosines = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    power, noise = float((b**2).sum()), float(((a - b) ** 2).sum())
    return Measurement(
        tower=tower,
        against=against,
        data=data,
        samples=len(cosines),
        worst_cosine=float(cosines.min()),
        p1_cosine=float(np.percentile(cosines, 1)),
        mean_cosine=float(cosines.mean()),
        largest_difference=float(np.abs(a - b).max()),
        sqnr_db=10 * math.log10(power / noise) if noise else None,
        weight_bytes=weight_bytes,
        size_ratio=weight_bytes / source_bytes if source_bytes else None,
        latency_ratio=timing.ratio if timing else None,
        latency_input=timing.input if timing else None,
        latency_samples=timing.samples if timing else None,
        machine=timing.machine if timing else None,
        retrieval=retrieval,
    )


def time_ratio(
    source: Run, narrowed: Run, batch: NDArray[Any], *, rounds: int = _ROUNDS, seconds: float = _SECONDS
) -> tuple[float, int]:
    """The median of time(narrowed) / time(source), pair by pair, and the number of pairs.

    They take turns in going first, so other work of the machine meets both. The threads of a session spin for a while
    after a run, and would take the processor from the other: before each there is a pause and a run that does not
    count. At most `rounds` pairs, and after 5 no more than fit into `seconds`.
    """
    works = {"narrowed": lambda: narrowed(batch), "source": lambda: source(batch)}
    times = take_turns(works, rounds, seconds=seconds, least=_LEAST_ROUNDS)
    ratios = times["narrowed"] / times["source"]
    return float(np.median(ratios)), len(ratios)


def time_tower(tower: TowerName, source: Run, narrowed: Run, samples: Samples) -> Timing:
    """`time_ratio` on an image of the samples, or on a text of 16 of their tokens."""
    if tower == "text":
        inner = np.concatenate([row[0, 1:-1] for row in samples.text])
        opening, closing = samples.text[0][0, [0, -1]]
        batch = np.concatenate(([opening], np.resize(inner, _SHORT_TOKENS - 2), [closing]))[None]  # (1, T)
    else:
        batch = samples.vision[0][:1]
    ratio, pairs = time_ratio(source, narrowed, batch)
    what = f"{_SHORT_TOKENS} tokens" if tower == "text" else "1 image"
    return Timing(ratio=ratio, samples=pairs, input=what, machine=f"{processor_name()}, {usable_cpus()} threads")


@contextmanager
def _opened(path: Path, precision: Precision) -> Iterator[Run]:
    if precision != "fp16":
        yield open_tower(path)
        return
    with emulating_session(path, path.parent) as session:
        yield run_of(session, path)


def proof_samples(bundle: Path, manifest: Manifest) -> Samples:
    """The made-up inputs of a proof: the same for every bundle of one checkpoint, and small when compressed.

    Texts of random tokens, and pictures of flat cells under a slope of light, some with a grain that repeats:
    8 of 512 px take 0.5 MB.
    """
    draw = np.random.default_rng(_SEED)
    texts = made_up_samples(bundle, manifest, texts=_TEXTS, images=0, seed=_SEED).text
    pictures = tuple(_picture(manifest.image.size_px, draw)[None] for _ in range(_IMAGES))
    return Samples(name=PROOF_DATA, text=texts, vision=pictures)


def save_proof(path: Path, samples: Samples, wanted: Vectors) -> None:
    """Write the inputs that `edgeclip check` runs, in batches of one, and the source's answers to them."""
    arrays: dict[str, Any] = {f"input_ids_{index}": row for index, row in enumerate(samples.text)}
    pixels = np.concatenate(samples.vision)
    np.savez_compressed(path, text_embeds=wanted.text, image_embeds=wanted.vision, pixel_values=pixels, **arrays)


def read_selftest(path: Path) -> tuple[Samples, Vectors]:
    """A bundle's self-test in the graphs' form, with the checkpoint's answers.

    Raises BuildError when it cannot be read.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            wanted = Vectors(text=arrays["text_embeds"], vision=arrays["image_embeds"])
            texts = tuple(arrays[f"input_ids_{index}"] for index in range(len(wanted.text)))
            return Samples(name=SELFTEST_DATA, text=texts, vision=tuple(arrays["pixel_values"][:, None])), wanted
    except Exception as error:  # zip, numpy and key errors: whatever a damaged file gives
        raise BuildError(f"{path}: cannot be read ({error}); export the bundle again") from error


def _size(graph: Path) -> int:
    """The size of a graph with its weights, which lie beside it."""
    return sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))


def _picture(size_px: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """A made-up picture. Some have a tile of noise that repeats: it compresses well, and a tower must process all of
    it.
    """
    cells = int(draw.choice(_CELLS))
    side = -(-size_px // cells)
    flat = np.kron(draw.uniform(0, 255, (cells, cells, 3)), np.ones((side, side, 1)))[:size_px, :size_px]
    slope = np.linspace(-60, 60, size_px)[:, None, None] * draw.uniform(-1, 1)
    tile = draw.normal(0, 1, (_TILE_PX, _TILE_PX, 3)) * draw.choice([0, 24])
    times = -(-size_px // _TILE_PX)
    grain = np.tile(tile, (times, times, 1))[:size_px, :size_px]
    picture: NDArray[np.uint8] = (flat + slope + grain).clip(0, 255).astype(np.uint8)
    return picture
