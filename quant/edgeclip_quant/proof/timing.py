"""Time a narrowed bundle beside its source, run for run."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from edgeclip.engine.devices import choose_threads, usable_cpus
from edgeclip.engine.paired_timing import take_turns
from edgeclip.families.token_texts import INPUT_IDS
from edgeclip.host.processor import processor_name
from edgeclip.manifest import Modality
from edgeclip_quant.graph_runner import Graphs
from edgeclip_quant.inputs.feeder import Feeder
from edgeclip_quant.inputs.made_up import Samples, text_item

_SHORT_TOKENS = 16
# A pair of runs at full size takes 3.5 to 7 s for an image on two cores, and 70 ms for a short text.
_ROUNDS, _LEAST_ROUNDS, _SECONDS = 30, 5, 10.0
# A run so long is changed neither by a pause nor by a run before it, and three of them are alike.
_LONG_S, _LEAST_LONG_ROUNDS = 1.0, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Time of the narrowed graphs divided by the source's: the median of `samples` pairs of runs, on `machine`."""

    ratio: float
    samples: int
    input: str
    machine: str


def time_ratio(
    source: Callable[[], None],
    narrowed: Callable[[], None],
    *,
    rounds: int = _ROUNDS,
    seconds: float = _SECONDS,
    is_long: bool = False,
) -> tuple[float, int]:
    """The median of time(narrowed) / time(source), pair by pair, and the number of pairs.

    They take turns in going first, so other work of the machine meets both. The threads of a session spin for a while
    after a run, and would take the processor from the other: before each there is a pause and a run that does not
    count, but for runs that are long (`is_long`). At most `rounds` pairs, and after 5 (3 of long runs) no more than
    fit into `seconds`.
    """
    works = {"narrowed": narrowed, "source": source}
    least = _LEAST_LONG_ROUNDS if is_long else _LEAST_ROUNDS
    times = take_turns(works, rounds, seconds=seconds, least=least, is_alone=not is_long)
    ratios = times["narrowed"] / times["source"]
    return float(np.median(ratios)), len(ratios)


def time_modality(modality: Modality, feeder: Feeder, source: Graphs, narrowed: Graphs, samples: Samples) -> Timing:
    """`time_ratio` on an image of the samples, or on a text of 16 of their tokens."""
    if modality == "text":
        ids = [item.arrays[INPUT_IDS] for item in samples.text]
        inner = np.resize(np.concatenate([row[1:-1] for row in ids]), _SHORT_TOKENS - 2)
        short = np.concatenate((ids[0][:1], inner, ids[0][-1:]))
        item = text_item(feeder, short, samples.text[0].adapter)
    else:
        item = samples.image[0]
    steps = source.steps(item)

    def run(graphs: Graphs) -> None:
        for step in steps:
            graphs.run(step.graph, step.feed)

    for step in steps:
        narrowed.open(step.graph)
    start = time.perf_counter()
    run(narrowed)
    is_long = time.perf_counter() - start > _LONG_S
    ratio, pairs = time_ratio(lambda: run(source), lambda: run(narrowed), is_long=is_long)
    what = f"{_SHORT_TOKENS} tokens" if modality == "text" else "1 image"
    threads = choose_threads(feeder.manifest, usable_cpus())
    return Timing(ratio=ratio, samples=pairs, input=what, machine=f"{processor_name()}, {threads} threads")
