"""The stages that both demos have: export, draw, quantise to int8, evaluate both bundles, and the tables of that.

Every stage is what a user does with the real model: the checkpoint has the official layout, the inputs are files,
int8 comes from `edgeclip quantize --calibrate` and the quality from `edgeclip eval --against`.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar, get_args

from edgeclip import Encoder, Manifest
from edgeclip.errors import BuildError, InputError
from edgeclip.manifest import MODALITIES, PROOF_DATA, Measurement, Space
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tables import format_bytes, format_table
from edgeclip_bench.quality.against import Comparison, compare
from edgeclip_bench.quality.calibration_folder import read_samples
from edgeclip_bench.quality.datasets import Data
from edgeclip_bench.quality.evaluate import Evaluation, evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_export import export_checkpoint
from edgeclip_quant import quantize_bundle
from edgeclip_quant.budget import Budget

BUNDLE, INT8, CALIBRATION = "bundle", "int8", "calibration"
Progress = Callable[[str, int, int], None]
Row = tuple[str, str, str]
_Drawn = TypeVar("_Drawn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Smaller:
    """The int8 bundle, and its figures beside the fp32 one's on the demo's inputs."""

    manifest: Manifest
    comparison: Comparison


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the bundles are and give, and how long each stage took in seconds.

    `manifest` and `evaluation` are of fp32. `int8` is None where quantisation refused to write a bundle that lost
    more than its budget: then `refusal` says why.
    """

    manifest: Manifest
    evaluation: Evaluation
    int8: Smaller | None
    refusal: BuildError | None
    seconds: dict[str, float]

    @property
    def evaluations(self) -> list[Evaluation]:
        """The evaluations that there are: that of fp32, and that of int8 where there is such a bundle."""
        return [self.evaluation, *([self.int8.comparison.evaluation] if self.int8 else [])]

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions of the bundles in `evaluations`, in their order."""
        return ("fp32", "int8") if self.int8 else ("fp32",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared(Generic[_Drawn]):
    """What the stages left: the open bundles, fp32 first, the inputs, and the folder of their cached vectors."""

    figures: Figures
    encoders: tuple[Encoder, ...]
    drawn: _Drawn
    data: Sequence[Data]
    cache: Path


@contextlib.contextmanager
def compare_bundles(
    folder: Path,
    checkpoint: Path,
    draw: Callable[[Path, Path, Progress], _Drawn],
    *,
    inputs: str,
    drawing: str,
    evaluating: str,
    threads: int | None,
    budget: Budget | None,
    pooled: Sequence[int] = (),
) -> Iterator[Compared[_Drawn]]:
    """Run all stages in `folder`, which keeps the bundles and the inputs; `budget` None is int8's own.

    `draw` writes test inputs into the first folder, `inputs` by name, and others for calibration into the second.
    """
    seconds: dict[str, float] = {}
    bundle, int8, calibration = folder / BUNDLE, folder / INT8, folder / CALIBRATION
    with stage(seconds, "export"), _bar("export") as shown:
        manifest = export_checkpoint(checkpoint, bundle, progress=shown.show)
    with stage(seconds, f"draw {drawing}"), _bar("drawing") as shown:
        drawn = draw(folder / inputs, calibration, shown.show)
    smaller: Manifest | None = None
    refusal: BuildError | None = None
    with stage(seconds, "quantise to int8, calibrated on the others"), _bar("quantise") as shown:
        samples = read_samples(calibration, bundle, manifest)
        try:
            smaller = quantize_bundle(bundle, int8, to="int8", samples=samples, budget=budget, progress=shown.show)
        except BuildError as error:
            refusal = error
    data = open_data(folder / inputs)
    with contextlib.ExitStack() as stack:
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgeclip-demo-vectors-")))
        opened = (bundle, int8) if smaller else (bundle,)
        encoders = tuple(stack.enter_context(Encoder.open(one, threads=threads)) for one in opened)
        compared: Smaller | None = None
        with stage(seconds, f"{evaluating}, of each bundle"):
            if smaller:
                comparison = compare(encoders[1], encoders[0], data, pooled=pooled, cache=cache)
                evaluation, compared = comparison.reference, Smaller(manifest=smaller, comparison=comparison)
            else:
                evaluation = evaluate(encoders[0], data, pooled=pooled, cache=cache)
        figures = Figures(manifest=manifest, evaluation=evaluation, int8=compared, refusal=refusal, seconds=seconds)
        yield Compared(figures=figures, encoders=encoders, drawn=drawn, data=data, cache=cache)


def check_families(count: int, size: int, what: str) -> None:
    """InputError for a number of pictures or pages that is no whole families of this size."""
    if count < 1 or count % size:
        raise InputError(f"{count} {what}: wanted whole families of {size}, so {size}, {2 * size}, ...")


def introduction(found: Figures, kind: str, what: str) -> str:
    """The first lines that are shown: the model, its size and the device, and what it is shown on."""
    parameters = sum(graph.parameters for graph in found.manifest.graphs.values())
    return (
        f"A small model of {kind}'s kind, trained on drawn {what}: {parameters:,} parameters, "
        f"running on {found.evaluation.device}."
    )


def costs_table(found: Figures, int8: Smaller, closeness: Iterable[Row]) -> str:
    """Sizes, rows of closeness, and the ratios of times that quantising measured."""
    rows = [("bundle", format_bytes(found.manifest.weight_bytes), format_bytes(int8.manifest.weight_bytes))]
    times = [
        (f"time of {proof.latency_input}, as a share of fp32's", "1", f"{proof.latency_ratio:.2f}")
        for proof in proofs(int8.manifest)
        if proof.latency_ratio is not None
    ]
    return format_table(("what int8 saves and costs", *found.precisions), [*rows, *closeness, *times])


def proofs(manifest: Manifest) -> list[Measurement]:
    """What quantising measured beside the fp32 bundle, of each space and modality."""
    kinds = ((modality, space) for space in get_args(Space) for modality in MODALITIES)
    found = (manifest.measurement(modality, space, "fp32 bundle", PROOF_DATA) for modality, space in kinds)
    return [one for one in found if one is not None]


def seconds_table(found: Figures) -> str:
    """Where the time went."""
    rows = [(stage, f"{seconds:.1f}") for stage, seconds in found.seconds.items()]
    return format_table(("where the time went", "seconds"), [*rows, ("all", f"{sum(found.seconds.values()):.1f}")])


@contextlib.contextmanager
def stage(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note under the stage's name how long it takes."""
    started = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - started


def _bar(stage: str) -> ProgressBar:
    return ProgressBar(stage, 1, is_shown=is_wanted(None))
