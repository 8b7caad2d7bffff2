"""The seconds that a request spent in each stage: reading, decoding, each graph, writing."""

import time
from collections import Counter


class Stages:
    """The seconds by stage. Stages that ran side by side each count in full, but what ran side by side in one stage,
    as the pages of a request, counts once.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: Counter[str] = Counter()
        self._began_s: dict[str, float] = {}

    def measure(self, stage: str) -> "_Measured":
        """A context that adds the time of its block to a stage."""
        return _Measured(self, stage)

    def enter(self, stage: str) -> None:
        """Note that a block of a stage begins."""
        if not self._running[stage]:
            self._began_s[stage] = time.perf_counter()
        self._running[stage] += 1

    def leave(self, stage: str) -> None:
        """Note that a block of a stage ends; the last of those that run side by side adds their time."""
        self._running[stage] -= 1
        if not self._running[stage]:
            spent_s = time.perf_counter() - self._began_s[stage]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent_s


class _Measured:
    __slots__ = ("_stage", "_stages")

    def __init__(self, stages: Stages, stage: str) -> None:
        self._stages, self._stage = stages, stage

    def __enter__(self) -> None:
        self._stages.enter(self._stage)

    def __exit__(self, *_: object) -> None:
        self._stages.leave(self._stage)
