"""Keep the last outputs of a graph that another one follows, so that they are not computed again for another task.

An image's features cost seconds on a CPU, and they are the same for every task, for single vectors and for multi
vectors. Those of the last few images are kept: a page of 768 tokens of 2,048 floats takes 6.3 MB. Programs that want
more of each image ask for one image after the other, everything about it.
"""

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]

# Ten pages.
MOST_BYTES = 64 << 20


class KeptOutputs:
    """Outputs by key, the least recently used given up first. For use by many threads."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self.clear()
        _made.add(self)

    def bound(self, most_bytes: int) -> None:
        """Keep at most so many bytes from now on, beginning with none."""
        self._most_bytes = most_bytes
        self.clear()

    def clear(self) -> None:
        """Give up all outputs."""
        self._kept: OrderedDict[bytes, Arrays] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes | None) -> Arrays | None:
        """The outputs of a key; None where there are none, and for no key."""
        with self._lock:
            if key is None or key not in self._kept:
                return None
            self._kept.move_to_end(key)
            return self._kept[key]

    def keep(self, key: bytes, outputs: Arrays) -> Arrays:
        """Copies of the outputs, which are kept unless they are larger than all that may be."""
        copies = {name: np.array(array) for name, array in outputs.items()}
        size = _size(copies)
        with self._lock:
            if size <= self._most_bytes and key not in self._kept:
                self._kept[key] = copies
                self._bytes += size
                while self._bytes > self._most_bytes:
                    self._bytes -= _size(self._kept.popitem(last=False)[1])
        return copies


_made: "weakref.WeakSet[KeptOutputs]" = weakref.WeakSet()


def _after_fork() -> None:
    """In a forked child no thread will release a lock that one of the parent's held."""
    for kept in list(_made):
        kept.clear()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_after_fork)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())
