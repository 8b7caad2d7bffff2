"""Starting and ending the service: the encoder, the sockets, signals, lines of the log.

SIGTERM and Ctrl-C close the socket, finish what was accepted (`shutdown_timeout_s` at most) and end with status 0.
"""

import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Self

from edgeclip.bundle.files import verify_hash
from edgeclip.encoder import Encoder
from edgeclip.errors import InputError, MissingExtraError
from edgeclip.host.import_errors import explain_import
from edgeclip.host.installation import install_command
from edgeclip.host.malloc_bounds import bound_memory
from edgeclip.serve.http.access_log import LOGGER as ACCESS_LOGGER
from edgeclip.serve.http.api_keys import read_keys
from edgeclip.serve.http.connections import Bounds
from edgeclip.serve.http.open_files import ConnectionRoom, raise_limit, room_for_connections
from edgeclip.serve.http.server import Application, Server
from edgeclip.serve.packing_first import packed_first
from edgeclip.serve.settings import Settings

_log = logging.getLogger("edgeclip.serve")
# Longer than clients and proxies keep a connection, so they close it and not we, under a request.
_KEEP_ALIVE_S = 75


def serve(settings: Settings) -> None:
    """Serve until a signal comes.

    Raises what `Encoder.open` raises, BundleError for a damaged graph, InputError for an address that cannot be had,
    MissingExtraError without the packages.
    """
    try:
        from edgeclip.serve.app import create_app
    except ImportError as error:
        raise _missing(error) from error
    bound_memory(os.environ)
    raise_limit(settings.max_connections)
    with (
        _logging(settings.log_level),
        _listening(settings) as listeners,
        _Signals() as signals,
        packed_first(settings),
        Encoder.open(
            settings.bundle, device=settings.device, threads=settings.threads, modality=settings.modality
        ) as encoder,
    ):
        if words := encoder.check_memory(is_service=True):
            _log.warning("%s", words)
        for graph in encoder.manifest.graphs.values():  # else a damaged one would show in readiness alone
            verify_hash(settings.bundle, encoder.manifest.file(graph.file))
        app = create_app(settings, encoder)
        host, port = listeners[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        _log.info("serving on http://%s:%d, graphs on %s", shown, port, encoder.device)
        if settings.metrics_port:
            _log.info("metrics on http://%s:%d/metrics alone", shown, settings.metrics_port)
        if not settings.is_loopback and not settings.api_keys:
            _log.warning("anybody who reaches this address may use the service: no API keys are set")
        room = room_for_connections(settings, encoder.manifest)
        server = configure(settings, app, room)
        with signals.left_to(server):
            server.run(listeners)
        _log.info("ended")


def configure(settings: Settings, app: Application, room: ConnectionRoom | None = None) -> Server:
    """The server of an application that `create_app` has made, as the settings want it.

    Without `room` the settings alone say how many connections are taken.
    """
    room = room or ConnectionRoom(served=settings.max_connections)
    bounds = Bounds(
        max_connections=room.served,
        max_refused=room.refused,
        head_s=settings.head_timeout_s,
        body_s=settings.body_timeout_s,
        idle_s=_KEEP_ALIVE_S,
        allow_origin=_sole_origin(settings.cors_origins),
    )
    return Server(app, bounds, backlog=room.queued, shutdown_s=settings.shutdown_timeout_s)


def _sole_origin(origins: tuple[str, ...]) -> str | None:
    """The origin that a refusal may name without a request: any origin, or the only one."""
    if "*" in origins:
        return "*"
    return origins[0] if len(origins) == 1 else None


def with_key_file(settings: Settings) -> Settings:
    """The settings, with the keys of the file among the keys."""
    import dataclasses

    if settings.api_keys_file is None:
        return settings
    keys = (*settings.api_keys, *read_keys(settings.api_keys_file))
    return dataclasses.replace(settings, api_keys=keys)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; InputError for an address that is taken, not ours, or no address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "no address"
        raise InputError(f"cannot listen on {host} port {port} ({reason}); give --host or --port") from error


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[list[socket.socket]]:
    ports = (settings.port, *([settings.metrics_port] if settings.metrics_port else []))
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(contextlib.closing(listen(settings.host, port))) for port in ports]


# What asks a service to end. On Windows SIGTERM ends a process at once; there Ctrl-Break asks, which a parent process
# sends as CTRL_BREAK_EVENT, and so does closing the console.
_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name))


class _Signals:
    """SIGINT, SIGTERM and Windows' SIGBREAK, from the start to the end: none is lost, and none prints a traceback.

    Before there is a server they end the start: KeyboardInterrupt, or SystemExit with status 0, for a supervisor.
    The server is asked to end; the second Ctrl-C does not wait for answers. One that comes when the server has ended
    ends the process at once.
    """

    def __init__(self) -> None:
        self._server: Server | None = None
        self._is_over = False

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in _ENDING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def left_to(self, server: Server) -> Iterator[None]:
        """Leave signals to the server while the block runs."""
        self._server = server
        yield
        self._is_over = True

    def _handle(self, number: int, _: object) -> None:
        if self._is_over:
            os._exit(128 + number)
        if self._server is not None:
            if number == signal.SIGINT or not self._server.is_ending:
                self._server.end()
            return
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(0)


@contextlib.contextmanager
def _logging(level: str) -> Iterator[None]:
    """Write this service's lines to stderr until the block ends."""
    words, lines = logging.StreamHandler(sys.stderr), logging.StreamHandler(sys.stderr)
    words.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    chosen = {  # of each logger its least level and its handler; a line of the access log has its own time
        "edgeclip.serve": (level, words),
        ACCESS_LOGGER: ("info", lines),
    }
    before = {name: logging.getLogger(name).level for name in chosen}
    for name, (least, handler) in chosen.items():
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).setLevel(least.upper())
    try:
        yield
    finally:
        for name, (_, handler) in chosen.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(before[name])


def _missing(error: ImportError) -> ImportError:
    if not isinstance(error, ModuleNotFoundError) or "." in (error.name or ""):
        return explain_import(error, "serve") or error
    return MissingExtraError(f"the service needs {error.name or 'a package'}; `{install_command('serve')}`")
