"""The seconds that a request spent in each stage: reading, decoding, each graph, writing."""

import time


class Stages:
    """The seconds by stage. Stages that ran side by side each count in full, but what ran side by side in one stage,
    as the pages of a request, counts once. Nobody asks for the seconds of a request that failed.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: dict[str, int] = {}
        self._began_s: dict[str, float] = {}

    def enter(self, stage: str) -> None:
        """Note that a block of a stage begins."""
        running = self._running.get(stage, 0)
        if not running:
            self._began_s[stage] = time.perf_counter()
        self._running[stage] = running + 1

    def leave(self, stage: str) -> None:
        """Note that a block of a stage ends; the last of those that run side by side adds their time."""
        self._running[stage] -= 1
        if not self._running[stage]:
            spent_s = time.perf_counter() - self._began_s[stage]
            self.seconds[stage] = self.seconds.get(stage, 0.0) + spent_s
