"""How much of freed memory the C library keeps, bounded: what large requests took goes back to the system.

glibc gives threads that allocate at the same time a heap each, up to eight a core, and after a freed block of 20 MB
takes blocks of that size from these heaps too, instead of mapping them apart. So what decoding and parsing took once
stays resident in each heap: a tiny model's service held 630 MB after 150 s of `edgeclip_bench.service_soak`, 490 of
them free. With two heaps and a fixed size they hold less than 60.

What is small comes from the heaps all the same: of the 26 MB that a text of 262,144 letters takes while it is
tokenised, whatever is allocated above them and stays keeps all. So free pages are given back from time to time, which
took 1 ms.

musl and macOS have no such settings; jemalloc, where it is preloaded, has its own.
"""

import asyncio
import ctypes
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

_WORK_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """One of mallopt(3)'s parameters, what it is set to, and the two names by which a user sets it."""

    parameter: int
    value: int
    variable: str
    tunable: str


BOUNDS = (
    Bound(parameter=-8, value=2, variable="MALLOC_ARENA_MAX", tunable="glibc.malloc.arena_max"),
    # Whatever is larger is mapped apart and unmapped when it is freed. Setting it stops its growth.
    Bound(parameter=-3, value=256 << 10, variable="MALLOC_MMAP_THRESHOLD_", tunable="glibc.malloc.mmap_threshold"),
)


def wanted_bounds(environment: Mapping[str, str]) -> tuple[Bound, ...]:
    """The bounds that the environment does not set itself."""
    tunables = {entry.partition("=")[0] for entry in environment.get("GLIBC_TUNABLES", "").split(":")}
    return tuple(bound for bound in BOUNDS if bound.variable not in environment and bound.tunable not in tunables)


def is_glibc() -> bool:
    """Whether this process' C library is GNU's."""
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", {})


def bound_memory(environment: Mapping[str, str]) -> tuple[Bound, ...]:
    """Set the bounds for this process, before it has threads: those that were taken. None but on glibc."""
    if not is_glibc():
        return ()
    mallopt = ctypes.CDLL(None).mallopt
    return tuple(bound for bound in wanted_bounds(environment) if mallopt(bound.parameter, bound.value))


def trim() -> None:
    """Give the free pages of all heaps back. Nothing but on glibc."""
    if is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


async def keep_trimmed(every_s: float = 2.0, *, give_back: Callable[[], None] = trim) -> None:
    """Call `give_back` in a thread, `every_s` where the process has worked since; until it is cancelled."""
    before_s = 0.0
    while True:
        await asyncio.sleep(every_s)
        if is_worth_it(before_s, now_s := time.process_time()):
            await asyncio.to_thread(give_back)
        before_s = now_s


def is_worth_it(before_s: float, now_s: float) -> bool:
    """Whether a process has worked since it had used so much of the processors; an idle service uses a few ms."""
    return now_s - before_s > _WORK_S
