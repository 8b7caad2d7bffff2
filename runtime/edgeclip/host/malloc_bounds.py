"""Bound how much freed memory a process keeps. A program calls this at its start, before it has threads:

    import os
    from edgeclip.host.malloc_bounds import bound_memory

    bound_memory(os.environ)

glibc gives threads that allocate at the same time a heap each, up to eight per core. After a block of 20 MB was
freed, it takes blocks of that size from these heaps too, instead of mapping them apart. So the memory of a decoded
image stays resident in each heap: a small model held 370 MB under images of many sizes, 170 MB of them free, and more
by the minute. With two heaps and a fixed size it holds 190 MB.

Memory that is mapped apart comes as fresh pages, each a page fault: 11 ms more for the 41 ms of a JPEG of 2000 x
1500. So Pillow is set to build images of blocks of 1 MB and to keep 32 free ones: 2 ms more, and 20 MB.

`edgeclip embed`, `eval` and `serve` set these bounds. Importing edgeclip does not, because malloc belongs to the
program. Smaller changes were tried and are not enough: two long-lived threads that decode alone reach 340 MB,
Pillow's blocks alone 400 MB, and malloc_trim leaves 70 MB at the upper ends of other threads' heaps.

What is not there is done without: musl, macOS and Windows have no mallopt(3), and bionic's knows other parameters.
jemalloc, where it is preloaded, has settings of its own.
"""

import ctypes
import gc
import sys
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

_WORTH_COLLECTING = 1 << 28  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """An environment variable and its value; for glibc also the equivalent tunable and the parameter number for
    mallopt(3).
    """

    variable: str
    value: int
    tunable: str | None = None
    parameter: int | None = None


BOUNDS = (
    Bound(variable="MALLOC_ARENA_MAX", value=2, tunable="glibc.malloc.arena_max", parameter=-8),
    # Whatever is larger is mapped apart and unmapped when it is freed. Setting it stops its growth. With 1 MB images
    # take 5 % less time, and 30 MB more are held.
    Bound(variable="MALLOC_MMAP_THRESHOLD_", value=256 << 10, tunable="glibc.malloc.mmap_threshold", parameter=-3),
    Bound(variable="PILLOW_BLOCK_SIZE", value=1 << 20),
    Bound(variable="PILLOW_BLOCKS_MAX", value=32),
)


def wanted_bounds(environment: Mapping[str, str]) -> tuple[Bound, ...]:
    """The bounds that the environment does not set already."""
    tunables = {entry.partition("=")[0] for entry in environment.get("GLIBC_TUNABLES", "").split(":")}
    return tuple(bound for bound in BOUNDS if bound.variable not in environment and bound.tunable not in tunables)


def has_mallopt() -> bool:
    """Whether this process's C library has mallopt(3), as glibc has.

    Its name is not asked for: `os.confstr_names` on musl names glibc too.
    """
    return _libc_function("mallopt") is not None


def bound_memory(environment: MutableMapping[str, str]) -> tuple[Bound, ...]:
    """Set the bounds for this process, before it has threads, and return those that were set. Does nothing without
    mallopt(3).

    Values that `environment` (os.environ) sets already stay. Pillow's are written there, because Pillow reads them
    when it is imported, and so child processes inherit them.
    """
    if not has_mallopt():
        return ()
    return tuple(bound for bound in wanted_bounds(environment) if _set(bound, environment))


def trim() -> None:
    """Return the free pages of all heaps to the system, where the C library can (malloc_trim(3) of glibc)."""
    if release := _libc_function("malloc_trim"):
        release(0)


def give_back(size_bytes: int) -> None:
    """Return the memory of a step that is done with weights of this size: what lies in cycles, and free pages.

    Nothing for less than 0.25 GB: looking through all objects takes half a second where torch is loaded.
    """
    if size_bytes >= _WORTH_COLLECTING:
        gc.collect()
        trim()


def _libc_function(name: str) -> Callable[..., int] | None:
    try:
        function: Callable[..., int] | None = getattr(ctypes.CDLL(None), name, None)
    except (OSError, TypeError):  # Windows finds no library without a name
        return None
    return function


def _set(bound: Bound, environment: MutableMapping[str, str]) -> bool:
    if bound.parameter is not None:
        set_parameter = _libc_function("mallopt")
        return bool(set_parameter and set_parameter(bound.parameter, bound.value))
    environment[bound.variable] = str(bound.value)
    if pillow := sys.modules.get("PIL.Image"):  # has looked
        setting = bound.variable.removeprefix("PILLOW_").lower()
        getattr(pillow.core, f"set_{setting}")(bound.value)
    return True
