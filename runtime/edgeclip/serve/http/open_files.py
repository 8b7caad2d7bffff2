"""The number of connections that the limit of open files allows, and the answer where it is reached all the same.

A connection is an open file, and so are a loaded graph's weights, a fetched URL's socket and a file that a thread
reads. Connections are taken while enough is left for these, so no request fails for want of a file. Connections that
wait to be accepted are all open for a moment before one can be refused, so their queue is short where the limit is
low.
"""

import asyncio
import contextlib
import errno
import logging
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

from edgeclip.bundle.files import weights_of
from edgeclip.errors import InputError
from edgeclip.manifest import Manifest
from edgeclip.serve.settings import Settings

_log = logging.getLogger("edgeclip.serve")
_BACKLOG = 2048
_MOST_REFUSED = 64
_LEAST_QUEUE = 8
# Files of the event loop (6 on Linux with uvloop), of threads that read, and of the process's metrics.
_RESERVED = 20
# Descriptors of a file of weights: one watches it, another maps it where it is a link.
_PER_WEIGHTS = 2
# Descriptors of a URL in progress: its socket, and the look-up of its name.
_PER_FETCH = 2
_MOST_FETCHES, _LEAST_FETCHES = 64, 8
_OUT_OF_FILES = (errno.EMFILE, errno.ENFILE)
_TELL_AGAIN_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRoom:
    """The most connections that are served, that are refused with an answer, and that wait to be accepted."""

    served: int
    refused: int = _MOST_REFUSED
    queued: int = _BACKLOG


def plan_connections(*, wanted: int, limit: int | None, opened: int, reserved: int) -> ConnectionRoom:
    """The room for connections under a limit of open files; None is no limit.

    `opened` files are open already, and `reserved` more are for other things than connections. InputError when no
    connection is left.
    """
    if limit is None:
        return ConnectionRoom(served=wanted)
    spare = limit - opened - reserved
    queued = min(_BACKLOG, max(_LEAST_QUEUE, limit // 16, (spare - wanted) // 2))
    refused = min(_MOST_REFUSED, queued)
    served = min(wanted, spare - queued - refused)
    if served < 1:
        least = opened + reserved + 2 * _LEAST_QUEUE + 1
        raise InputError(f"{limit} files may be open at once, wanted {least} at least; raise the limit (ulimit -n)")
    return ConnectionRoom(served=served, refused=refused, queued=queued)


def raise_limit(max_connections: int) -> None:
    """Raise the limit of open files to what this number of connections needs, as far as the hard limit allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max_connections + 2 * _BACKLOG + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS allows less than its hard limit says
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def fetches_within_limit() -> int:
    """The number of URLs that may be fetched at once in this process: fewer where few files may be open."""
    limit = _limit()
    return _MOST_FETCHES if limit is None else min(_MOST_FETCHES, max(_LEAST_FETCHES, limit // 16))


def room_for_connections(settings: Settings, manifest: Manifest) -> ConnectionRoom:
    """The room in this process before it loads the bundle's graphs; a warning where the settings say more."""
    weights = sum(len(weights_of(graph.file, manifest.files)) for graph in manifest.graphs.values())
    fetches = fetches_within_limit() if settings.fetches_urls else 0
    reserved = _RESERVED + _PER_WEIGHTS * weights + _PER_FETCH * fetches
    limit = _limit()
    room = plan_connections(wanted=settings.max_connections, limit=limit, opened=_count_open(), reserved=reserved)
    if room.served < settings.max_connections:
        _log.warning(
            "%d files may be open at once: %d connections are taken, %d were wanted (--max-connections); "
            "raise the limit (ulimit -n, LimitNOFILE=, --ulimit nofile=)",
            limit, room.served, settings.max_connections,
        )  # fmt: skip
    return room


def is_out_of_files(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that no more files can be opened."""
    seen = 0
    while error is not None and seen < 16:
        if isinstance(error, OSError) and error.errno in _OUT_OF_FILES:
            return True
        error, seen = error.__cause__ or error.__context__, seen + 1
    return False


class OutOfFiles:
    """Says once a minute that no more files can be opened, however often that happens."""

    def __init__(self) -> None:
        self._said_at = -float("inf")

    def say(self) -> None:
        """Write a line in the log, unless there was one lately."""
        now = time.monotonic()
        if now - self._said_at > _TELL_AGAIN_S:
            self._said_at = now
            _log.warning("no more files can be opened: raise the limit (ulimit -n), or lower --max-connections")

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Say it in place of a traceback for each connection that cannot be accepted; asyncio tries again itself."""

        def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            if is_out_of_files(context.get("exception")):
                self.say()
            else:
                loop.default_exception_handler(context)

        loop.set_exception_handler(handle)


def _limit() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


def _count_open() -> int:
    try:
        return len(os.listdir("/proc/self/fd" if sys.platform == "linux" else "/dev/fd"))
    except OSError:
        return 16
