"""Who waits for whom when two towers want the same cores.

Both lanes' threads together outnumber the cores, and the scheduler shares those out evenly, which a short text pays
with a multiple of its time. A nicer thread gets what the others leave, and a share by weight where they leave
nothing: it is slowed, never starved. On Linux niceness is a thread's own (setpriority(2), "C library/kernel
differences") and passes to the threads that it starts: a lane lowers its thread before it opens its tower, and
onnxruntime's pool comes out lowered.
"""

import logging
import math
import os
import sys
import threading

# Of one step of niceness to the next, in the kernel's weights: sched_prio_to_weight in kernel/sched/core.c.
_WEIGHT_RATIO = 1.25
LEAST_SHARE, MOST_SHARE = 0.02, 0.5

_log = logging.getLogger(__name__)


def niceness_for(share: float) -> int:
    """By how much a thread must be nicer than one that never pauses, to keep this share of the core that both want.

    `share` is from LEAST_SHARE to MOST_SHARE, and is met to a tenth of itself: 0.5 is 0, 0.25 is 5, 0.1 is 10.
    """
    return round(math.log((1 - share) / share, _WEIGHT_RATIO))


def lower_this_thread(niceness: int) -> bool:
    """Whether the calling thread, and what it starts from now on, got nicer by `niceness` (0 to 19; no way back).

    Only on Linux: elsewhere niceness is the whole process', and nothing is done.
    """
    if niceness == 0 or sys.platform != "linux":
        return False
    thread = threading.get_native_id()
    try:
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + niceness)
    except OSError as error:  # a sandbox that forbids it; the service works, less evenly
        _log.warning("cannot lower a thread's priority (%s)", error.strerror)
        return False
    return True
