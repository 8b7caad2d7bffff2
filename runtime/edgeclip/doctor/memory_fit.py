"""Compare the memory that a bundle needs, each modality alone and all together, with the limits of this process."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgeclip.doctor.diagnosis import Finding
from edgeclip.engine.memory_check import Load, advise, find_load, judge
from edgeclip.host.memory_limits import MemoryLimit, read_limits
from edgeclip.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The bytes that some graphs of a bundle need in a process of their own, as they are and with packed weights.

    `finding` says why they do not fit, None where they do.
    """

    bundle: str
    need_bytes: int
    packed_bytes: int
    words: str
    finding: Finding | None


def fit_modalities(folder: Path, manifest: Manifest, limits: Sequence[MemoryLimit] | None = None) -> list[Fit]:
    """How each modality alone and all together fit into the limits: without `limits` into those of this process."""
    limits = read_limits() if limits is None else limits
    choices = {f"{folder.name}: {modality}s": manifest.graphs_of(modality) for modality in manifest.modalities}
    if len(choices) > 1:
        choices[f"{folder.name}: both"] = tuple(manifest.graphs)
    choices[f"{folder.name}: served"] = tuple(manifest.graphs)
    return [
        _fit(name, folder, manifest, graphs, limits, is_service=name.endswith(": served"))
        for name, graphs in choices.items()
    ]


def _fit(
    name: str,
    folder: Path,
    manifest: Manifest,
    graphs: Sequence[str],
    limits: Sequence[MemoryLimit],
    *,
    is_service: bool,
) -> Fit:
    load = find_load(folder, manifest, graphs, is_service=is_service)
    verdict = judge(load, limits)
    words, finding = "fits", None
    if verdict is not None:
        words = "does not fit" if verdict.is_sure else "tight"
        finding = Finding(
            level="error" if verdict.is_sure else "note",
            problem=f"{name}: {words} into {verdict.limit.name}",
            command=advise(folder, manifest, load, verdict.limit),
        )
    return Fit(bundle=name, need_bytes=load.wanted(), packed_bytes=_when_packed(load), words=words, finding=finding)


def _when_packed(load: Load) -> int:
    needs = {
        graph: replace(need, copied_bytes=0) if need.is_worth_packing else need for graph, need in load.needs.items()
    }
    return replace(load, needs=needs).wanted()
