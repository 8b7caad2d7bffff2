"""The threads of torch while a checkpoint is exported: one.

Weights are read and folded as fast as memory is, which one thread nearly reaches. Where other work keeps a second
thread waiting, the first one spins until it comes: the small tensors of an adapter then took 5 ms each instead of 0.1
(two busy cores). What the towers compute of the self-test takes seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
