"""Ctrl-C in the process of a command: a KeyboardInterrupt at any moment at which one can be handled.

Python raises it wherever the main thread happens to be, and there it may be lost: C extensions that import modules
while they are loaded turn it into an ImportError and print a traceback (numpy's do), and an exception in a
`__del__` or a weakref's callback is printed and dropped. So it is raised again a moment later.
"""

import signal
import sys
import threading
from types import FrameType

_AGAIN_S = 0.05
_IMPORTING = "<frozen importlib._bootstrap>"


def guard_interrupts() -> None:
    """Handle SIGINT so in this process from now on, unless it is ignored. For the main thread of a command."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _again_if_dropped


def _interrupt(number: int, frame: FrameType | None) -> None:
    here = frame
    while here is not None:
        if here.f_code.co_filename == _IMPORTING:
            _interrupt_again()
            return
        here = here.f_back
    signal.default_int_handler(number, frame)


def _again_if_dropped(dropped: "sys.UnraisableHookArgs") -> None:
    if issubclass(dropped.exc_type, KeyboardInterrupt):
        _interrupt_again()
    else:
        sys.__unraisablehook__(dropped)


def _interrupt_again() -> None:
    again = threading.Timer(_AGAIN_S, _send)
    again.daemon = True
    again.start()


def _send() -> None:
    if hasattr(signal, "pthread_kill"):
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)  # a system call of the main thread ends, too
    else:
        import _thread

        _thread.interrupt_main()
