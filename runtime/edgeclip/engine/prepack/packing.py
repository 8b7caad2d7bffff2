"""Pack a bundle's weights for this machine's processor: write them, open them, compare vectors, keep them.

`edgeclip.engine.prepack.packed_weights` says what packed weights are.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgeclip.bundle.files import open_manifest, verify_hashes
from edgeclip.engine.devices import Device
from edgeclip.engine.opening import GraphToOpen, open_graph, packed_facts, plan_graph
from edgeclip.engine.prepack.packed_weights import (
    WORTH_SHARE,
    Packed,
    PackedFacts,
    count_packed,
    find_packed,
    keep_packed,
    packed_root,
    remove_packed,
)
from edgeclip.engine.prepack.page_alignment import align_weights
from edgeclip.errors import BuildError, BundleError, DeviceError, OutOfMemoryError
from edgeclip.families import open_family
from edgeclip.families.family import Arrays
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import FIRST_GRAPH, Manifest, Modality

_CPU = Device(kind="cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPacking:
    """The packed weights of one graph: bytes on disk, bytes of shared copies, and the folder (None where nothing was
    packed).
    """

    graph: str
    folder: Path | None
    size_bytes: int = 0
    shared_bytes: int = 0


class _NotWorthItError(Exception):
    """Raised where packing would change next to nothing of the graph."""


def pack_bundle(bundle: Path, threads: int, modality: Modality | None = None) -> list[GraphPacking]:
    """Pack each graph for the CPU unless it is packed already; every byte of the bundle is read and compared first.

    `modality` packs the graphs of one modality alone.

    A graph whose weights onnxruntime reads in place, or packs in a layout that it cannot write, is left out. Raises
    BundleError for a damaged bundle, BuildError for a folder that cannot be written, and when the packed graph's
    vectors differ from the bundle's in any bit.
    """
    manifest = open_manifest(bundle)
    if modality is not None:
        manifest = manifest.only(modality)
    verify_hashes(bundle, manifest)
    return [_pack(bundle, graph, manifest, threads) for graph in manifest.graphs]


def find_packings(bundle: Path) -> list[tuple[str, Packed]]:
    """The packed weights of each graph of the bundle on this machine."""
    manifest, root = open_manifest(bundle), packed_root(os.environ)
    found = ((graph, find_packed(root, _facts(graph, manifest))) for graph in manifest.graphs if root)
    return [(graph, packed) for graph, packed in found if packed]


def remove_packings(bundle: Path) -> int:
    """Remove all packed weights of the bundle; returns the bytes that were freed."""
    manifest, root = open_manifest(bundle), packed_root(os.environ)
    return sum(remove_packed(root, _facts(graph, manifest)) for graph in manifest.graphs) if root else 0


def _pack(bundle: Path, graph: str, manifest: Manifest, threads: int) -> GraphPacking:
    root = packed_root(os.environ)
    if root is None:
        raise BuildError("this user has no home; set XDG_CACHE_HOME to a folder that may be written")
    facts = _facts(graph, manifest)
    if kept := _kept(root, facts):
        return _told(graph, kept)
    path = bundle / manifest.graphs[graph].file
    probe = _probe(bundle, graph, manifest)
    opening = GraphToOpen(path=path, graph=graph, device=_CPU, threads=threads, manifest=manifest, uses_packed=False)
    wanted = open_graph(opening).run(probe)
    weight_bytes = sum(file.size_bytes for file in manifest.files if file.name.startswith(path.name))
    try:
        with keep_packed(root, facts, path.name, weight_bytes) as stage:
            try:
                open_graph(replace(opening, save_to=stage))
            except OutOfMemoryError:
                raise
            except (BundleError, DeviceError) as error:  # the graph is sound: it ran just now
                raise BuildError(f"{root}: packed weights cannot be written there ({error})") from error
            shared = count_packed((stage / path.name).read_bytes())
            if shared < WORTH_SHARE * sum(file.stat().st_size for file in stage.iterdir()):
                raise _NotWorthItError
            try:
                align_weights(stage / path.name, stage / f"{path.name}_data")
            except ValueError as error:
                raise BuildError(f"onnxruntime wrote packed weights that cannot be read ({error})") from error
    except _NotWorthItError:
        return GraphPacking(graph=graph, folder=None)
    packed = find_packed(root, facts)
    try:
        found = open_graph(replace(opening, packed=packed)).run(probe) if packed else None
    except OutOfMemoryError:
        raise
    except (BundleError, DeviceError) as error:
        remove_packed(root, facts)
        raise BuildError(f"the {graph} graph's packed weights do not run ({error}); nothing was kept") from error
    if packed is None or found is None or any(not np.array_equal(wanted[name], found[name]) for name in wanted):
        remove_packed(root, facts)
        raise BuildError(f"the {graph} graph's packed weights do not give the bundle's vectors; nothing was kept")
    return _told(graph, packed)


def _kept(root: Path, facts: PackedFacts) -> Packed | None:
    """The packed weights that exist and are undamaged to the last byte."""
    if packed := find_packed(root, facts):
        try:
            packed.verify()
        except BundleError:
            return None
    return packed


def _told(graph: str, packed: Packed) -> GraphPacking:
    return GraphPacking(
        graph=graph,
        folder=packed.graph.parent,
        size_bytes=packed.size_bytes,
        shared_bytes=count_packed(packed.graph.read_bytes()),
    )


def _facts(graph: str, manifest: Manifest) -> PackedFacts:
    found = manifest.graphs[graph]
    return packed_facts(found.file, plan_graph(graph, _CPU, 1, manifest), manifest)


def _probe(bundle: Path, graph: str, manifest: Manifest) -> Arrays:
    """A batch that passes through every weight."""
    modality = next(modality for modality in manifest.modalities if FIRST_GRAPH[modality] == graph)
    family = open_family(manifest, lambda: TextTokenizer(bundle / manifest.need_text().file, manifest.need_text()))
    return family.feed([family.made_up(np.random.default_rng(0), modality, 16)])
