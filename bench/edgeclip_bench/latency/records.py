"""The JSON document of `edgeclip bench`, as dataclasses: what stands in it beside what every document has.

Times are milliseconds and end in `_ms`.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeclip.errors import InputError
from edgeclip_bench.latency.cases import Case
from edgeclip_bench.latency.stages import Stages
from edgeclip_bench.measure import documents
from edgeclip_bench.measure.ceiling import Ceiling
from edgeclip_bench.measure.documents import SCHEMA_VERSION
from edgeclip_bench.measure.percentiles import Distribution
from edgeclip_bench.measure.stability import Window

BENCHMARK = "edgeclip_bench.bench"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A bundle: the precision of each graph, and each modality's worst cosine to its fp32 source by its manifest."""

    name: str
    source: str
    target: str
    precision: Mapping[str, str]
    parameters: int
    weight_bytes: int
    worst_cosine: Mapping[str, float | None]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The main figure of a scenario; `why` says what is missing where the value is None."""

    name: str
    unit: str
    value: float | None
    why: str | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProbeFigures:
    """One rate that the server scenario tried: `answered` of `planned` queries, fewer where it was broken off."""

    rate_per_s: float
    planned: int
    answered: int
    is_kept: bool
    latency: Distribution
    wait: Distribution


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerFigures:
    """The highest rate that kept `bound_ms` and the lowest that did not, in queries a second, and every probe."""

    bound_ms: float
    rate_per_s: float
    broken_per_s: float
    probes: tuple[ProbeFigures, ...]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A case that was measured. `device` is the one that really ran it.

    `latency` is that of queries; None in the offline scenario, which has none. `samples_ms` are the latencies in
    order, in the offline scenario the time of each run divided by its samples. `samples` and `per_second` count the
    texts or images in the `queries`. `others_share`: see `edgeclip_bench.measure.other_processes`.
    """

    bundle: str
    case: Case
    device: str
    counts: Metric
    per_second: float
    queries: int
    samples: int
    warm_up: int
    is_steady: bool | None
    windows: tuple[Window, ...]
    latency: Distribution | None
    samples_ms: tuple[float, ...]
    server: ServerFigures | None = None
    stages: Stages | None = None
    ceiling: Ceiling | None = None
    others_share: float | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident memory before the bundle was opened and its peak, and by how much the GPU's used memory rose."""

    bundle: str
    threads: int
    before_bytes: int
    peak_bytes: int
    gpu_bytes: int | None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Absence:
    """A measurement that could not be made, and why."""

    what: str
    why: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One run. `frame` is what every document has: machine, versions, date; `rules` say how figures are defined.

    `rivals` is the document of `edgeclip_bench.rivals.run`, `attached` are others by their "benchmark".
    """

    frame: Mapping[str, Any]
    rules: Mapping[str, str]
    bundles: tuple[Subject, ...]
    results: tuple[Result, ...]
    memory: tuple[Memory, ...]
    left_out: tuple[Absence, ...]
    rivals: Mapping[str, Any] | None = None
    attached: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """The document as JSON values."""
        figures = dataclasses.asdict(self)
        return {**figures.pop("frame"), **figures}

    def to_json(self) -> str:
        """The document as JSON text."""
        return documents.to_json(self.document())


def read_record(path: Path) -> dict[str, Any]:
    """The document of a run of `edgeclip bench`, of schema 2 or 1 (tower for modality); InputError for any other."""
    document = documents.read_document(path, benchmark=BENCHMARK)
    if (version := document.get("schema_version")) not in (1, SCHEMA_VERSION):
        raise InputError(
            f"{path}: schema_version is {version!r}, this edgeclip reads {SCHEMA_VERSION}; measure again"
        )
    if version == 1 and isinstance(document.get("results"), list):
        cases = (result.get("case") for result in document["results"] if isinstance(result, dict))
        for case in (case for case in cases if isinstance(case, dict) and "tower" in case):
            case |= {"modality": "text" if case.pop("tower") == "text" else "image", "task": None}
    if missing := _missing(document):
        raise InputError(f"{path}: the document is not whole ({missing}); measure again")
    return document


def _missing(document: Mapping[str, Any]) -> str | None:
    """The parts that a comparison needs and the document lacks, in words."""
    for part, kind in (("machine", dict), ("versions", dict), ("bundles", list), ("results", list)):
        if not isinstance(document.get(part), kind):
            return f'no "{part}"'
    for number, result in enumerate(document["results"]):
        where = f"result {number}"
        if not isinstance(result, dict) or not {"bundle", "case", "device", "samples_ms", "server"} <= set(result):
            return f'{where} lacks "bundle", "case", "device", "samples_ms" or "server"'
        case, samples, server = result["case"], result["samples_ms"], result["server"]
        if not isinstance(case, dict) or not {field.name for field in dataclasses.fields(Case)} <= set(case):
            return f'{where} has no complete "case"'
        if not isinstance(samples, list) or not samples or not all(map(_is_positive, samples)):
            return f'{where} has no "samples_ms", a list of positive numbers'
        rates = [server.get(name) for name in ("rate_per_s", "broken_per_s")] if isinstance(server, dict) else []
        if server is not None and not (rates and all(map(_is_positive, rates))):
            return f'{where} has no rates in "server"'
    return None


def _is_positive(value: object) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf
