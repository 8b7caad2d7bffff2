"""Files of a bundle while a process uses them: whether they are still what was opened.

onnxruntime maps weights into memory. A file that is overwritten in place (`cp`, `rsync --inplace`) changes them under
the process: vectors of another model, zeros or NaN, and a SIGBUS where the file became shorter. A file that another
takes the place of (`mv`, `rsync`) stays in memory as it was. The inode tells the two apart, and a stat of a local
file takes 2 to 15 µs (measured on two busy x86 cores): so it is asked before and after every batch. What was only
touched or linked is hashed once and then counts as opened.
"""

import os
import threading
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from edgeclip.bundle.files import verify_hash
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

    def __str__(self) -> str:
        latest_s = max(self.modified_ns, self.changed_ns) / 1e9
        return f"{self.size_bytes} bytes of {datetime.fromtimestamp(latest_s).isoformat(' ', 'milliseconds')}"


class WatchedFiles:
    """The named files of a folder, as they are when this is made: before they are opened. For use by many threads."""

    def __init__(self, folder: Path, files: Sequence[FileFacts]) -> None:
        self._folder, self._files = folder, {file.name: file for file in files}
        self._paths = {name: str(folder / name) for name in self._files}
        self._opened = {name: _state(path) for name, path in self._paths.items()}
        self._right: dict[str, _State | None] = dict(self._opened)  # what counts as opened: that, or hashed since
        self._hashed: dict[str, _State] = {}  # in this state the bytes were found right
        self._wrong: dict[str, tuple[_State, BundleError]] = {}
        self._lock = threading.Lock()

    @property
    def overwritten(self) -> tuple[str, ...]:
        """Names of the files that were changed in place since they were last found right; nothing is read."""
        return tuple(name for name, right in self._right.items() if _is_overwritten(right, _state(self._paths[name])))

    def check(self) -> None:
        """BundleError for a file that was overwritten in place and is not what was exported any more.

        A stat for each file, which is read only where that differs.
        """
        for name in self.overwritten:
            self._verify(name)

    def verify(self) -> None:
        """BundleError for a file whose bytes are not what was exported, read unless they were in this state.

        A file that another has taken the place of cannot be read any more, and is left out.
        """
        for name, opened in self._opened.items():
            state = _state(self._paths[name])
            if opened and state and state[:2] == opened[:2]:
                self._verify(name)

    def verify_replaced(self, name: str) -> None:
        """BundleError when a file that is to be opened now is another than at first, and not what was exported."""
        if _state(self._paths[name]) == self._opened[name]:
            return
        try:
            verify_hash(self._folder, self._files[name])
        except BundleError as error:
            raise BundleError(
                f"{self._folder}: {name} was replaced after the bundle was opened; open the bundle again"
            ) from error

    def _verify(self, name: str) -> None:
        """Hash a file, once in every state that it is found in."""
        with self._lock:
            state = _state(self._paths[name])
            if state is None or self._hashed.get(name) == state:
                return
            known, error = self._wrong.get(name, (None, None))
            if error is None or known != state:
                error = self._hash(name, state)
            if error is not None:
                raise BundleError(str(error)) from error

    def _hash(self, name: str, state: _State) -> BundleError | None:
        was = self._opened[name]
        try:
            if state.size_bytes == self._files[name].size_bytes:
                verify_hash(self._folder, self._files[name])
                self._right[name] = self._hashed[name] = state
                return None
            error = BundleError(f"{self._folder}: {name} has another size")
        except BundleError as caught:
            error = caught
        if was is not None and state != was:
            error = BundleError(
                f"{self._folder}: {name} was overwritten in place while it was used: {was} when it was opened, "
                f"{state} now; {_ADVICE}"
            )
        self._wrong[name] = state, error
        return error


def _state(path: str) -> _State | None:
    """None for a file that is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return _State(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def _is_overwritten(before: _State | None, now: _State | None) -> bool:
    return before is not None and now is not None and now != before and now[:2] == before[:2]
