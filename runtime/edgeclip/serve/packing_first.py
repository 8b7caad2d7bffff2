"""Pack a bundle's weights before they are served, where this has not been done on this machine."""

import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from edgeclip.bundle.files import open_manifest
from edgeclip.engine.devices import choose_device
from edgeclip.engine.memory_check import packed_bytes
from edgeclip.engine.memory_need import read_need
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.errors import BuildError, OutOfMemoryError
from edgeclip.serve.settings import Settings

_log = logging.getLogger("edgeclip.serve")


@contextmanager
def packed_first(settings: Settings) -> Iterator[None]:
    """Run `edgeclip prepack` for graphs of the CPU that are worth it, in a process whose memory is free afterwards.

    Nothing of a graph that is packed is read. Raises BundleError, OutOfMemoryError where the process was killed, and
    BuildError where it failed for the reason that it printed.
    """
    if settings.prepack:
        _pack(settings)
    yield


def _pack(settings: Settings) -> None:
    manifest = open_manifest(settings.bundle)
    if settings.modality is not None:
        manifest = manifest.only(settings.modality)
    device = choose_device(settings.device, import_onnxruntime().get_available_providers(), manifest.target)
    unpacked = [
        graph
        for graph in manifest.graphs
        if packed_bytes(manifest, graph) is None and read_need(settings.bundle, manifest, graph).is_worth_packing
    ]
    if device.kind == "cpu" and unpacked:
        _log.info("packing the weights of %s, once for this machine", " and ".join(unpacked))
        words = [sys.executable, "-m", "edgeclip", "prepack", str(settings.bundle)]
        if settings.modality is not None:
            words += ["--modality", settings.modality]
        status = subprocess.run(words, stdout=sys.stderr, check=False).returncode
        if status < 0:
            raise OutOfMemoryError(
                f"`edgeclip prepack` was ended by signal {-status}, as where memory does not suffice; run it once "
                "with more memory"
            )
        if status:
            raise BuildError("`edgeclip prepack` failed; serve without --prepack, or mend what it said")
