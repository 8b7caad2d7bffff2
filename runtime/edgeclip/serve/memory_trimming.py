"""Give memory back to the system while the service works.

malloc keeps a bounded amount of memory (`edgeclip.host.malloc_bounds`), but small allocations come from its heaps:
one of them that stays can keep all of the 26 MB that a text of 262,144 characters takes while it is tokenised. So
free pages are given back from time to time, which took 1 ms.
"""

import asyncio
import time
from collections.abc import Callable

from edgeclip.host.malloc_bounds import trim

_WORK_S = 0.1


async def keep_trimmed(every_s: float = 2.0, *, give_back: Callable[[], None] = trim) -> None:
    """Call `give_back` in a thread, `every_s` where the process has worked since; until it is cancelled."""
    before_s = 0.0
    while True:
        await asyncio.sleep(every_s)
        if is_worth_it(before_s, now_s := time.process_time()):
            await asyncio.to_thread(give_back)
        before_s = now_s


def is_worth_it(before_s: float, now_s: float) -> bool:
    """Whether a process has worked since it had used this much processor time; an idle service uses a few ms."""
    return now_s - before_s > _WORK_S
