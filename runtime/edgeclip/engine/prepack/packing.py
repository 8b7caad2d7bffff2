"""Pack a bundle's weights for this machine's processor: write them, open them, compare vectors, keep them.

`edgeclip.engine.prepack.packed_weights` says what packed weights are.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.files import open_manifest, verify_hashes
from edgeclip.engine.devices import Device
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
from edgeclip.engine.providers import plan_session
from edgeclip.engine.session import TowerSession, adds_in_16_bits, packed_facts
from edgeclip.errors import BuildError, BundleError, DeviceError
from edgeclip.manifest import TOWERS, Manifest, TowerName

_CPU = Device(kind="cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerPacking:
    """The packed weights of one tower: bytes on disk, bytes of shared copies, and the folder (None where nothing was
    packed).
    """

    tower: TowerName
    folder: Path | None
    size_bytes: int = 0
    shared_bytes: int = 0


class _NotWorthItError(Exception):
    """Raised where packing would change next to nothing of the tower."""


def pack_bundle(bundle: Path, threads: int) -> list[TowerPacking]:
    """Pack each tower for the CPU unless it is packed already; every byte of the bundle is read and compared first.

    A tower whose weights onnxruntime reads in place, or packs in a layout that it cannot write, is left out. Raises
    BundleError for a damaged bundle, BuildError for a folder that cannot be written, and when the packed graph's
    vectors differ from the bundle's in any bit.
    """
    manifest = open_manifest(bundle)
    verify_hashes(bundle, manifest)
    return [_pack(bundle, tower, manifest, threads) for tower in TOWERS]


def find_packings(bundle: Path) -> list[tuple[TowerName, Packed]]:
    """The packed weights of each tower of the bundle on this machine."""
    manifest, root = open_manifest(bundle), packed_root(os.environ)
    found = ((tower, find_packed(root, _facts(tower, manifest))) for tower in TOWERS if root)
    return [(tower, packed) for tower, packed in found if packed]


def remove_packings(bundle: Path) -> int:
    """Remove all packed weights of the bundle; returns the bytes that were freed."""
    manifest, root = open_manifest(bundle), packed_root(os.environ)
    return sum(remove_packed(root, _facts(tower, manifest)) for tower in TOWERS) if root else 0


def _pack(bundle: Path, tower: TowerName, manifest: Manifest, threads: int) -> TowerPacking:
    root = packed_root(os.environ)
    if root is None:
        raise BuildError("this user has no home; set XDG_CACHE_HOME to a folder that may be written")
    facts = _facts(tower, manifest)
    if kept := _kept(root, facts):
        return _told(tower, kept)
    path = bundle / manifest.tower(tower).file
    probe = _probe(tower, manifest)
    wanted = TowerSession(path, tower, _CPU, threads, manifest, is_packed=False).run(probe)
    weight_bytes = sum(file.size_bytes for file in manifest.files if file.name.startswith(path.name))
    try:
        with keep_packed(root, facts, path.name, weight_bytes) as stage:
            try:
                TowerSession(path, tower, _CPU, threads, manifest, save_to=stage)
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
        return TowerPacking(tower=tower, folder=None)
    packed = find_packed(root, facts)
    try:
        found = TowerSession(path, tower, _CPU, threads, manifest, packed=packed).run(probe) if packed else None
    except (BundleError, DeviceError) as error:
        remove_packed(root, facts)
        raise BuildError(f"the {tower} tower's packed weights do not run ({error}); nothing was kept") from error
    if packed is None or found is None or not np.array_equal(wanted, found):
        remove_packed(root, facts)
        raise BuildError(f"the {tower} tower's packed weights do not give the bundle's vectors; nothing was kept")
    return _told(tower, packed)


def _kept(root: Path, facts: PackedFacts) -> Packed | None:
    """The packed weights that exist and are undamaged to the last byte."""
    if packed := find_packed(root, facts):
        try:
            packed.verify()
        except BundleError:
            return None
    return packed


def _told(tower: TowerName, packed: Packed) -> TowerPacking:
    return TowerPacking(
        tower=tower,
        folder=packed.graph.parent,
        size_bytes=packed.size_bytes,
        shared_bytes=count_packed(packed.graph.read_bytes()),
    )


def _facts(tower: TowerName, manifest: Manifest) -> PackedFacts:
    found = manifest.tower(tower)
    plan = plan_session(_CPU, found.precision, threads=1, adds_in_16_bits=adds_in_16_bits())
    return packed_facts(found.file, plan, manifest)


def _probe(tower: TowerName, manifest: Manifest) -> NDArray[Any]:
    """An input that passes through every weight."""
    random = np.random.default_rng(0)
    if tower == "text":
        facts = manifest.tokenizer
        return np.array([[facts.bos_id, *random.integers(4, 100, 14), facts.eos_id]], dtype=np.int64)  # (1, 16)
    size = manifest.image.size_px
    return random.integers(0, 256, (1, size, size, 3), dtype=np.uint8)  # (1, S, S, 3)
