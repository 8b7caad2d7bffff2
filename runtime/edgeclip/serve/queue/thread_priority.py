"""Lower the priority of threads, so that images and long texts leave the cores to short texts.

Both lanes' threads together outnumber the cores, and the scheduler shares those out evenly, which a short text pays
with a multiple of its time. A nicer thread gets what the others leave, and a share by weight where they leave
nothing: it is slowed, never starved. On Linux each thread has a niceness of its own (setpriority(2), "C
library/kernel differences") and passes it to the threads that it starts: a lane lowers its thread before it loads its
graph, so onnxruntime's pool is lowered too.
"""

import logging
import math
import os
import sys
import threading

# The kernel's weight of one step of niceness over that of the next: sched_prio_to_weight in kernel/sched/core.c.
_WEIGHT_RATIO = 1.25
LEAST_SHARE, MOST_SHARE = 0.02, 0.5

_log = logging.getLogger(__name__)


def niceness_for(share: float) -> int:
    """The niceness that leaves a thread this share of a core which another thread wants without a pause.

    `share` is from LEAST_SHARE to MOST_SHARE, and is met to a tenth of itself: 0.5 is 0, 0.25 is 5, 0.1 is 10.
    """
    return round(math.log((1 - share) / share, _WEIGHT_RATIO))


def lower_this_thread(niceness: int) -> bool:
    """Raise the niceness of the calling thread, and of threads it starts later, by 0 to 19; it cannot be undone.

    Returns whether it was done. Only on Linux: elsewhere niceness belongs to the whole process, and nothing is done.
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
