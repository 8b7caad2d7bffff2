"""A gate that keeps other work on a GPU out while a CUDA graph is captured."""

import contextlib
import threading
from collections.abc import Iterator


class CaptureGate:
    """Lets any number of runs pass together, and a capture only alone.

    CUDA captures in its global mode: any thread that allocates meanwhile breaks the capture, also a thread of another
    session. So every call that allocates on the GPU or page-locks memory passes this gate.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running, self._is_closed = 0, False

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Wait for a capture in progress, then pass."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Close the gate, wait for all that are inside, then pass."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._running == 0)
            yield
        finally:
            with self._changed:
                self._is_closed = False
                self._changed.notify_all()


GATE = CaptureGate()
