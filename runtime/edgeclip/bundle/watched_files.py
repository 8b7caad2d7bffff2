"""Files of a bundle while a process uses them: whether they are still what was opened.

onnxruntime maps weights into memory. A file that is overwritten in place (`cp`, `rsync --inplace`) changes them under
the process: vectors of another model, zeros or NaN, and a SIGBUS where the file became shorter. A file that another
takes the place of (`mv`, `rsync`) stays in memory as it was, and can be overwritten under its new name, or under
another link to it. So a descriptor of each mapped file is kept open: it is of the file that is mapped, whatever its
path names later. It is asked before and after every batch, which takes 4 to 8 µs (measured on two busy x86 cores, an
fstat alone 2 µs). A file that was only touched, linked or renamed is hashed once, through its descriptor, and then
counts as opened.
"""

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from edgeclip.bundle.files import verify_hash, verify_stream
from edgeclip.errors import BundleError
from edgeclip.manifest import FileFacts

_ADVICE = "replace bundles by rename, never in place (docs/bundles.md); copy this one again and restart"


class _State(NamedTuple):
    """What a stat says of a file. Any write moves `changed_ns`, also one that sets the old times again."""

    device: int
    inode: int
    size_bytes: int
    modified_ns: int
    changed_ns: int
    links: int

    def __str__(self) -> str:
        latest_s = max(self.modified_ns, self.changed_ns) / 1e9
        return f"{self.size_bytes} bytes of {datetime.fromtimestamp(latest_s).isoformat(' ', 'milliseconds')}"


class FilesAtOpening:
    """States of a bundle's files when it was opened. What is loaded from them later must be the same bundle's."""

    def __init__(self, folder: Path, files: Sequence[FileFacts]) -> None:
        self._folder, self._files = folder, {file.name: file for file in files}
        self._states = {name: _state(folder / name) for name in self._files}

    def verify(self, name: str) -> None:
        """BundleError when a file that is to be opened now is another than at first, and not what was exported."""
        if not self.is_same(name, _state(self._folder / name)):
            try:
                verify_hash(self._folder, self._files[name])
            except BundleError as error:
                raise self.replaced(name) from error

    def is_same(self, name: str, state: _State | None) -> bool:
        """Whether a file of the folder had this state when the bundle was opened."""
        return state is not None and self._states.get(name) == state

    def replaced(self, name: str) -> BundleError:
        """The error for a file that is another bundle's."""
        return BundleError(f"{self._folder}: {name} was replaced after the bundle was opened; open the bundle again")


class WatchedFiles:
    """Files of a folder, each held open by a descriptor. Make it before they are mapped. For use by many threads.

    Raises BundleError for a file that cannot be opened.
    """

    def __init__(self, folder: Path, files: Sequence[FileFacts]) -> None:
        self._folder, self._files = folder, {file.name: file for file in files}
        self._descriptors: dict[str, int] = {}
        self._opened: dict[str, _State | None] = {}
        closing = weakref.finalize(self, _close, self._descriptors, self._opened)
        closing.atexit = False  # a batch may still run in a thread that does not end
        try:
            for name in self._files:
                self._descriptors[name] = os.open(folder / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
                self._opened[name] = _state(self._descriptors[name])
        except OSError as error:
            raise BundleError(f"{folder}: {name} cannot be read ({error.strerror})") from error
        self._right: dict[str, _State | None] = dict(self._opened)  # what counts as opened: that, or hashed since
        self._hashed: dict[str, _State] = {}  # in this state the bytes were found right
        self._wrong: dict[str, tuple[_State, BundleError]] = {}
        self._lock = threading.Lock()

    @property
    def overwritten(self) -> tuple[str, ...]:
        """Names of the files that were changed in place since they were last found right; nothing is read.

        Renaming, linking and unlinking a file is none of that.
        """
        changed = (name for name, right in self._right.items() if _state(self._descriptors[name]) != right)
        return tuple(name for name in changed if not self._is_renamed(name))

    def check(self) -> tuple[object, ...]:
        """BundleError for a file that was overwritten in place and is not what was exported any more.

        An fstat for each file, which is read only where that differs. Returns what they said: what was computed
        between two checks is of right files if both return the same.
        """
        found = tuple(map(_state, self._descriptors.values()))
        for (name, right), state in zip(self._right.items(), found, strict=True):
            if state != right:
                self._verify(name)
        return found

    def verify(self) -> None:
        """BundleError for a file whose bytes are not what was exported, read unless they were in this state."""
        for name in self._files:
            self._verify(name)

    def verify_since(self, opening: FilesAtOpening) -> None:
        """BundleError for a file that is not the one that the bundle was opened with, nor has its bytes."""
        for name, opened in self._opened.items():
            if not opening.is_same(name, opened):
                try:
                    self._verify(name)
                except BundleError as error:
                    raise opening.replaced(name) from error

    def verify_mapped(self) -> None:
        """To be called when the files have been mapped: BundleError unless what was mapped is what is watched."""
        for name, opened in self._opened.items():
            if not _is_same_file(_state(self._folder / name), opened):
                raise BundleError(f"{self._folder}: {name} was replaced while it was opened; open the bundle again")

    def _is_renamed(self, name: str) -> bool:
        """Whether it is the place of a file that changed: its size and its time are as they were."""
        right, now = self._right[name], _state(self._descriptors[name])
        if right is None or now is None or now[:4] != right[:4]:
            return False
        return now.links != right.links or not _is_same_file(_state(self._folder / name), now)

    def _verify(self, name: str) -> None:
        """Hash a file, once in every state that it is found in."""
        with self._lock:
            state, opened = _state(self._descriptors[name]), self._opened[name]
            if state is None or opened is None or not _is_same_file(state, opened):
                raise BundleError(
                    f"{self._folder}: {name} is in use and can be watched no more (its descriptor was closed, or its "
                    "disk is gone); open the bundle again"
                )
            if self._hashed.get(name) == state:
                return
            known, error = self._wrong.get(name, (None, None))
            if error is None or known != state:
                error = self._hash(name, state, opened)
            if error is not None:
                raise BundleError(str(error)) from error

    def _hash(self, name: str, state: _State, opened: _State) -> BundleError | None:
        try:
            if state.size_bytes == self._files[name].size_bytes:
                with open(self._descriptors[name], "rb", buffering=0, closefd=False) as stream:
                    stream.seek(0)
                    verify_stream(stream, self._folder, self._files[name])
                self._right[name] = self._hashed[name] = state
                return None
            error = BundleError(f"{self._folder}: {name} has another size")
        except BundleError as caught:
            error = caught
        if state != opened:
            error = BundleError(
                f"{self._folder}: {name} was overwritten in place while it was used: {opened} when it was opened, "
                f"{state} now; {_ADVICE}"
            )
        self._wrong[name] = state, error
        return error


def _state(file: Path | int) -> _State | None:
    """The state of a file, by path or descriptor; None where it is not there, or the descriptor was closed."""
    try:
        found = os.stat(file)
    except OSError:
        return None
    return _State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_nlink)


def _close(descriptors: Mapping[str, int], opened: Mapping[str, _State | None]) -> None:
    """Close what is still of the file that it was opened of: a number that something closed may be another's now."""
    for name, descriptor in descriptors.items():
        if _is_same_file(_state(descriptor), opened.get(name)):
            os.close(descriptor)


def _is_same_file(one: _State | None, other: _State | None) -> bool:
    return one is not None and other is not None and one[:2] == other[:2]
