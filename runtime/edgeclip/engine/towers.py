"""The towers of an open bundle: load each on first use, watch their files, and load them again after a fork.

A forked child has onnxruntime's sessions without their threads: running or freeing one would wait for ever. So in a
child every session that was open is kept untouched, and towers are loaded anew when they are used. CUDA, TensorRT and
OpenVINO do not work after a fork at all; there it is an error.
"""

import contextlib
import ctypes
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.files import verify_hash
from edgeclip.bundle.watched_files import FilesAtOpening
from edgeclip.engine.devices import Device
from edgeclip.engine.session import TowerSession
from edgeclip.engine.unit_vectors import Vectors, find_fault, shorten
from edgeclip.errors import BundleError, DeviceError, InputError, WrongVectorsError
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import TOWERS, Manifest, TowerName

# Loading a tower holds Python's lock for a few milliseconds at its beginning, parsing 250,000 pieces for 200 on end:
# without this start the tower would wait for the pieces, with it the two go on side by side.
_HEAD_START_S = 0.02


class Towers:
    """The sessions and the tokenizer of a bundle in `folder`, an absolute path. Any number of threads may use it."""

    def __init__(self, folder: Path, manifest: Manifest, device: Device, threads: int) -> None:
        self._folder, self._manifest, self._device, self._threads = folder, manifest, device, threads
        self._files = FilesAtOpening(folder, manifest.files)
        verify_hash(folder, manifest.file(manifest.tokenizer.file))  # a damaged one makes tokenizers panic
        self.sessions: dict[TowerName, TowerSession] = {}
        self.tokenizer: TextTokenizer | None = None
        self._is_closed = self._is_forked = False
        self._make_locks()
        _open.add(self)

    def check_open(self) -> None:
        """InputError after `close`, DeviceError for a device that a fork has broken."""
        if self._is_closed:
            raise InputError("the encoder is closed; open the bundle again")
        if self._is_forked and self._device.kind != "cpu":
            raise DeviceError(
                f"this encoder was opened on {self._device} before the process was forked, and {self._device.kind} "
                "does not work after a fork; open the bundle in the child, or start it by multiprocessing's spawn"
            )

    def session(self, tower: TowerName) -> TowerSession:
        """The session of a tower. The first caller loads it; loading one does not delay work on the other."""
        if session := self.sessions.get(tower):
            return session
        with self._locks[tower]:
            self.check_open()
            if session := self.sessions.get(tower):
                return session
            graph = self._manifest.tower(tower).file
            verify_hash(self._folder, self._manifest.file(graph))
            path = self._folder / graph
            session = TowerSession(path, tower, self._device, self._threads, self._manifest, since=self._files)
            if tower == "text":
                # Mapped weights (`edgeclip_graph.passes.gemm`) let the first text wait for the disk; this reads all.
                facts = self._manifest.tokenizer
                session.run(np.array([[facts.bos_id, facts.eos_id]], dtype=np.int64))
            self.sessions[tower] = session
            if self._is_closed:  # meanwhile: `close` says so first and frees then
                self.sessions.clear()
            return session

    def load_ahead(self, tower: TowerName) -> None:
        """Begin to load a tower in a thread of its own. Errors are raised when the tower is used."""

        def load() -> None:
            with contextlib.suppress(Exception):
                self.session(tower)

        thread = threading.Thread(target=load, name=f"edgeclip-load-{tower}")
        thread.start()
        thread.join(_HEAD_START_S)

    def parse_tokenizer(self) -> TextTokenizer:
        """The tokenizer. The first caller parses it."""
        with self._parsing:
            self.check_open()
            if (parsed := self.tokenizer) is None:
                facts = self._manifest.tokenizer
                self._files.verify(facts.file)
                self.tokenizer = parsed = TextTokenizer(self._folder / facts.file, facts)
            if self._is_closed:  # meanwhile, as in `session`
                self.tokenizer = None
            return parsed

    def run(self, tower: TowerName, batch: NDArray[Any], dim: int) -> Vectors:
        """Unit vectors (B, dim) of a batch in the graph's own form, cut and then normalised.

        Raises BundleError for files that changed since the export, WrongVectorsError for other vectors that hold NaN
        or whose length is not 1, DeviceError for inputs that the graph cannot take.
        """
        session = self.session(tower)
        vectors = session.run(batch)
        full = self._manifest.embedding_dim
        if vectors.shape != (len(batch), full):
            raise BundleError(
                f"{self._folder}: the {tower} graph gives {vectors.shape} for {len(batch)} inputs of "
                f"{full} dimensions; export it again"
            )
        if fault := find_fault(vectors, dim):
            session.files.verify()
            raise WrongVectorsError(
                f"the {tower} graph answered with {fault}; its files are as exported, so it does not run right on "
                f"{self._device}"
            )
        return shorten(vectors, dim)

    @property
    def overwritten(self) -> tuple[str, ...]:
        """Names of loaded towers' files that were changed in place since they were last verified; reads nothing."""
        return tuple(name for session in list(self.sessions.values()) for name in session.files.overwritten)

    def verify_files(self) -> None:
        """BundleError for a loaded tower's file whose bytes are not those of the export; a file is read again only if
        it changed.
        """
        for session in list(self.sessions.values()):
            session.files.verify()

    def close(self) -> None:
        """Free the sessions and the tokenizer. Closing twice is harmless."""
        self._is_closed = True
        self.sessions.clear()
        self.tokenizer = None

    def _make_locks(self) -> None:
        self._parsing = threading.Lock()
        self._locks = {tower: threading.Lock() for tower in TOWERS}

    def _leave_behind(self) -> None:
        """Prepare a forked child: free no session, and replace locks that a thread of the parent may hold."""
        for session in self.sessions.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self.sessions = {}
        self._is_forked = True
        self._make_locks()


_open: "weakref.WeakSet[Towers]" = weakref.WeakSet()


def _after_fork() -> None:
    for towers in list(_open):
        towers._leave_behind()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
