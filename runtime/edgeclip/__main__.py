"""The command line as a process: the command `edgeclip`, and `python -m edgeclip`.

Ctrl-C ends it with one line and status 130 from here on, while modules are imported too. So little is imported before
it has its handler.
"""

import os
import signal
import sys

from edgeclip.host.interrupts import guard_interrupts


def main() -> int:
    """Run the command line on the process's own arguments; returns the exit status."""
    guard_interrupts()
    try:
        try:
            from edgeclip.cli import main

            return main()
        finally:
            # What is left is the interpreter's end, which waits for threads: Ctrl-C ends it, unless it is ignored.
            if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, lambda number, _: os._exit(128 + number))
    except KeyboardInterrupt:  # before the command line was loaded, or once more while it handled one
        print("edgeclip: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


if __name__ == "__main__":
    raise SystemExit(main())
