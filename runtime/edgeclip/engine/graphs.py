"""The graphs of an open bundle: load each on first use, watch their files, and load them again after a fork.

A forked child has onnxruntime's sessions without their threads: running or freeing one would wait for ever. So in a
child every session that was open is kept untouched, and graphs are loaded anew when they are used. CUDA, TensorRT and
OpenVINO do not work after a fork at all; there it is an error.
"""

import contextlib
import ctypes
import os
import threading
import warnings
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.files import verify_hash
from edgeclip.bundle.watched_files import FilesAtOpening
from edgeclip.engine.devices import Device
from edgeclip.engine.memory_check import check_memory
from edgeclip.engine.memory_need import tokenizer_bytes
from edgeclip.engine.opening import GraphToOpen, open_graph
from edgeclip.engine.ort import require_memory
from edgeclip.engine.session import GraphSession
from edgeclip.errors import DeviceError, InputError, TightMemoryWarning
from edgeclip.host.out_of_memory import naming_out_of_memory
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import FIRST_GRAPH, GraphFacts, Manifest

# Loading a graph holds Python's lock for a few milliseconds at its beginning, parsing 250,000 pieces for 200 on end:
# without this start the graph would wait for the pieces, with it the two go on side by side.
_HEAD_START_S = 0.02
# The shortest text, the special tokens alone.
_SOME = 2


class Graphs:
    """The sessions and the tokenizer of a bundle in `folder`, an absolute path. Any number of threads may use it."""

    def __init__(self, folder: Path, manifest: Manifest, device: Device, threads: int) -> None:
        self._folder, self._manifest, self._device, self._threads = folder, manifest, device, threads
        self._files = FilesAtOpening(folder, manifest.files)
        if manifest.text:
            verify_hash(folder, manifest.file(manifest.text.file))  # a damaged one makes tokenizers panic
        self.sessions: dict[str, GraphSession] = {}
        self.tokenizer: TextTokenizer | None = None
        self._is_closed = self._is_forked = False
        self.is_warned = False  # that memory is tight
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

    def session(self, graph: str) -> GraphSession:
        """The session of a graph. The first caller loads it; loading one does not delay work on another."""
        if session := self.sessions.get(graph):
            return session
        with self._locks[graph]:
            self.check_open()
            if session := self.sessions.get(graph):
                return session
            self._check_memory(graph)
            with naming_out_of_memory(f"the {graph} graph was loaded"):
                session = self._load(graph)
            self.sessions[graph] = session
            if self._is_closed:  # meanwhile: `close` says so first and frees then
                self.sessions.clear()
            return session

    def _check_memory(self, graph: str) -> None:
        """Warn once where memory is tight; OutOfMemoryError where it surely does not suffice."""
        if self._device.kind != "cpu":
            return
        words = check_memory(self._folder, self._manifest, (graph,), has_tokenizer=self.tokenizer is not None)
        if words and not self.is_warned:
            self.is_warned = True
            warnings.warn(TightMemoryWarning(words), stacklevel=2)

    def _load(self, graph: str) -> GraphSession:
        file = self._manifest.graphs[graph].file
        verify_hash(self._folder, self._manifest.file(file))
        session = open_graph(
            GraphToOpen(
                path=self._folder / file,
                graph=graph,
                device=self._device,
                threads=self._threads,
                manifest=self._manifest,
                since=self._files,
            )
        )
        if graph == FIRST_GRAPH["text"] and self.tokenizer is None:
            # Mapped weights (`edgeclip_graph.passes.gemm`) let the first text wait for the disk. While the tokenizer
            # is still parsed, this reads them all; later the text itself is no slower.
            session.run(_small_feed(self._manifest.graphs[graph]))
        return session

    def load_ahead(self, graph: str) -> None:
        """Begin to load a graph in a thread of its own. Errors are raised when the graph is used."""

        def load() -> None:
            with contextlib.suppress(Exception):
                self.session(graph)

        thread = threading.Thread(target=load, name=f"edgeclip-load-{graph}")
        with contextlib.suppress(RuntimeError):  # no memory for its stack: then it is loaded when it is used
            thread.start()
            thread.join(_HEAD_START_S)

    def parse_tokenizer(self) -> TextTokenizer:
        """The tokenizer. The first caller parses it."""
        with self._parsing:
            self.check_open()
            if (parsed := self.tokenizer) is None:
                facts = self._manifest.need_text()
                self._files.verify(facts.file)
                require_memory(tokenizer_bytes(self._manifest), "the tokenizer")
                with naming_out_of_memory("the tokenizer was parsed"):
                    self.tokenizer = parsed = TextTokenizer(self._folder / facts.file, facts)
            if self._is_closed:  # meanwhile, as in `session`
                self.tokenizer = None
            return parsed

    @property
    def overwritten(self) -> tuple[str, ...]:
        """Names of loaded graphs' files that were changed in place since they were last verified; reads nothing."""
        return tuple(name for session in list(self.sessions.values()) for name in session.files.overwritten)

    def verify_files(self) -> None:
        """BundleError for a loaded graph's file whose bytes are not those of the export; a file is read again only if
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
        self._locks = {graph: threading.Lock() for graph in self._manifest.graphs}

    def _leave_behind(self) -> None:
        """Prepare a forked child: free no session, and replace locks that a thread of the parent may hold."""
        for session in self.sessions.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(session))
        self.sessions = {}
        self._is_forked = True
        self._make_locks()


def _small_feed(facts: GraphFacts) -> dict[str, NDArray[Any]]:
    """Zeros for a graph's inputs: a batch of one, and two of whatever else varies in length."""
    shapes = [(1, *(_SOME if isinstance(axis, str) else axis for axis in array.axes[1:])) for array in facts.inputs]
    return {array.name: np.zeros(shape, array.dtype) for array, shape in zip(facts.inputs, shapes, strict=True)}


_open: "weakref.WeakSet[Graphs]" = weakref.WeakSet()


def _after_fork() -> None:
    for graphs in list(_open):
        graphs._leave_behind()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)
