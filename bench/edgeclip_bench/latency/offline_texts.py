"""Many short texts of mixed length: batches of one length beside padded batches of 32, on one session.

Padded batches of 32 in the order of the input are the usual method of calling a model with a list of texts. Both
methods give the graph the same ids, in turn; padded batches have the mask that the graph derives from the padding
token. Lengths are drawn evenly from 4 to 60 tokens; tokenising is left out. The vectors of the two are compared.
"""

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.batch_policy import CPU_TOKENS, BatchPolicy
from edgeclip.engine.paired_timing import take_turns
from edgeclip.families.family import Item
from edgeclip.manifest import FIRST_GRAPH
from edgeclip.tables import format_table
from edgeclip_bench.latency.cases import parse_numbers
from edgeclip_bench.measure.documents import add_out, make_document, save

TOKENS = (4, 60)
PADDED = 32
_GRAPH = FIRST_GRAPH["text"]


class Batch(NamedTuple):
    """Token ids (B, T), and the indices of the texts that they are."""

    indices: tuple[int, ...]
    input_ids: NDArray[np.int64]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budgets", default=str(CPU_TOKENS), help="token budgets to try, as 512,1024")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON."""
    budgets = parse_numbers("--budgets", options.budgets)
    with Encoder.open(options.bundle, device=options.device, threads=options.threads) as encoder:
        figures = measure(encoder, texts=options.texts, rounds=options.rounds, budgets=budgets)
    report = make_document(__name__, {"bundle": options.bundle.name, **figures})
    save(report, options.out)
    rows = [
        (way, f"{found['texts_per_s']:.1f}", f"{found['ratio_median']:.2f}", str(found["batches"]))
        for way, found in report["ways"].items()
    ]
    print(format_table(("way", "texts/s", "times padded", "batches"), rows))
    return 0


def measure(encoder: Encoder, *, texts: int, rounds: int, budgets: Sequence[int]) -> dict[str, Any]:
    """The figures of every method on the same ids; the ratio is the median over the rounds."""
    facts = encoder.manifest.need_text()
    items = encoder.family.token_ids(draw_ids(texts, facts.pad_id), None, None).items
    plans = {f"padded, {PADDED} at once": list(plan_padded(items, facts.pad_id))}
    plans |= {f"one length, {budget} tokens at once": plan(items, budget) for budget in budgets}
    vectors: dict[str, NDArray[np.float32]] = {}

    def encode(way: str) -> None:
        vectors[way] = _encode(encoder, plans[way], texts)

    _encode(encoder, plan(items[:1], TOKENS[1]), 1)
    seconds = take_turns({way: partial(encode, way) for way in plans}, rounds, is_alone=False)
    padded = next(iter(plans))
    return {
        "device": encoder.device,
        "precision": encoder.manifest.graphs[_GRAPH].precision,
        "texts": texts,
        "tokens": TOKENS,
        "rounds": rounds,
        "ways": {
            way: {
                "seconds": times.tolist(),
                "texts_per_s": texts / float(np.median(times)),
                "ratio_median": float(np.median(np.divide(seconds[padded], times))),
                "batches": len(plans[way]),
                "largest_difference": float(np.abs(vectors[way] - vectors[padded]).max()),
            }
            for way, times in seconds.items()
        },
    }


def draw_ids(count: int, pad_id: int, seed: int = 0) -> list[list[int]]:
    """Ids of made-up texts, without the opening and the closing token; none is the padding token."""
    random = np.random.default_rng(seed)
    low = pad_id + 4  # behind the special tokens, which stand together
    lengths = random.integers(TOKENS[0] - 2, TOKENS[1] - 1, count)
    return [random.integers(low, low + 90, length).tolist() for length in lengths]


def plan(items: Sequence[Item], budget: int) -> list[Batch]:
    """Batches of texts of one length, with at most `budget` tokens each."""
    policy = BatchPolicy(tokens=budget, images=1)
    batches = (tuple(indices) for indices in policy.plan(items, None))
    return [Batch(indices, np.stack([items[index].arrays["input_ids"] for index in indices])) for indices in batches]


def plan_padded(items: Sequence[Item], pad_id: int) -> Iterator[Batch]:
    """Batches of PADDED texts in order, each filled up to its longest text."""
    for start in range(0, len(items), PADDED):
        rows = [item.arrays["input_ids"] for item in items[start : start + PADDED]]
        ids = np.full((len(rows), max(map(len, rows))), pad_id, dtype=np.int64)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = row
        yield Batch(tuple(range(start, start + len(rows))), ids)


def _encode(encoder: Encoder, batches: Sequence[Batch], count: int) -> NDArray[np.float32]:
    vectors = np.empty((count, encoder.manifest.embedding_dim), dtype=np.float32)
    output = encoder.family.output(_GRAPH, "single")
    for batch in batches:
        vectors[list(batch.indices)] = encoder.run_graph(_GRAPH, {"input_ids": batch.input_ids})[output]
    return vectors
