"""Tests of files that may not be read or written, in a way that runs as root too, which may do both.

Root's right to pass over a file's permissions is Linux's capabilities DAC_OVERRIDE and DAC_READ_SEARCH, which each
thread has for itself: a test gives them up in a thread of its own.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec

import pytest

P = ParamSpec("P")

_VERSION = 0x20080522  # two words of 32 capabilities each (man 2 capset)
_DAC_OVERRIDE, _DAC_READ_SEARCH = 1, 2


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Data(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def bound_by_permissions(test: Callable[P, None]) -> Callable[P, None]:
    """The test, run as a user whom a file's permissions bind; skipped where that cannot be had."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        if not hasattr(os, "geteuid"):
            pytest.skip("no permissions as on Unix")
        if os.geteuid() != 0:
            test(*args, **kwargs)
            return
        if sys.platform != "linux":
            pytest.skip("root may read and write everything")
        with ThreadPoolExecutor(1, initializer=_give_up_rights) as thread:
            thread.submit(test, *args, **kwargs).result()

    return run


def _give_up_rights() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header, data = _Header(_VERSION, 0), (_Data * 2)()
    if libc.capget(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capget")
    kept = ~(1 << _DAC_OVERRIDE | 1 << _DAC_READ_SEARCH)
    for field in ("effective", "permitted", "inheritable"):
        setattr(data[0], field, getattr(data[0], field) & kept)
    if libc.capset(ctypes.byref(header), data):
        raise OSError(ctypes.get_errno(), "capset")
