"""Make this process resemble one on Windows as far as Python can: import it first, in a process of its own.

Modules and functions that Windows lacks are gone, the C library cannot be asked for by no name, /proc is not there,
folders cannot be opened, and a file that is open or mapped can be neither renamed, nor replaced, nor removed.
"""

import builtins
import ctypes
import io
import os
import select
import signal
import sys
from collections.abc import Callable
from typing import Any

_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "syslog", "uvloop")
_OS = (
    "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK", "chown", "confstr", "confstr_names", "fchmod", "fork",
    "geteuid", "getloadavg", "getpgid", "getuid", "killpg", "mkfifo", "posix_fadvise", "pread",
    "register_at_fork", "sched_getaffinity", "sched_setaffinity", "sendfile", "setsid",
    "sysconf", "wait4",
)  # fmt: skip
_SIGNALS = ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGUSR1", "SIGUSR2", "pthread_kill")
_SELECT = ("poll", "epoll")


def _held(folder_or_file: str) -> str | None:
    """The first file that is open or mapped in this process and is that file, or lies in that folder."""
    wanted = os.path.realpath(folder_or_file)
    paths = [line.split(maxsplit=5)[5].strip() for line in _open_really("/proc/self/maps") if line.count("/")]
    for number in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:  # of the listing itself
            continue
    return next((path for path in paths if path == wanted or path.startswith(f"{wanted}/")), None)


def _refuse_held(function: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(*paths: Any, **options: Any) -> Any:
        for path in paths[:2]:
            if isinstance(path, str | os.PathLike) and os.path.lexists(path) and (held := _held(os.fspath(path))):
                raise PermissionError(13, f"in use by this process: {held}", os.fspath(path))
        if function is _rename and os.path.lexists(paths[1]):
            raise FileExistsError(17, "exists already", os.fspath(paths[1]))
        return function(*paths, **options)

    return replacement


def _refuse_folders(function: Callable[..., Any]) -> Callable[..., Any]:
    def replacement(path: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(path, str | os.PathLike):
            if os.fspath(path).startswith(("/proc/", "/sys/")):
                raise FileNotFoundError(2, "No such file or directory", os.fspath(path))
            if os.path.isdir(path):
                raise PermissionError(13, "Permission denied", os.fspath(path))
        return function(path, *arguments, **options)

    return replacement


class _NamedLibrary(ctypes.CDLL):
    def __init__(self, name: str | None, *arguments: Any, **options: Any) -> None:
        if name is None:
            raise TypeError("bad argument type for built-in operation")
        super().__init__(name, *arguments, **options)


_open_really, _rename = open, os.rename
for _name in _MODULES:
    sys.modules[_name] = None  # type: ignore[assignment]
for _module, _names in ((os, _OS), (signal, _SIGNALS), (select, _SELECT)):
    for _name in _names:
        if hasattr(_module, _name):
            delattr(_module, _name)
for _name in ("rename", "replace", "remove", "unlink", "rmdir"):
    setattr(os, _name, _refuse_held(getattr(os, _name)))
for _place in (builtins, io):
    _place.open = _refuse_folders(_open_really)  # type: ignore[attr-defined]
os.open = _refuse_folders(os.open)
ctypes.CDLL = _NamedLibrary  # type: ignore[misc]
signal.SIGBREAK = 21  # type: ignore[attr-defined]
