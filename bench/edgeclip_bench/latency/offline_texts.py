"""Many short texts of mixed length: batches of one length beside padded batches of 32, on one session.

    edgeclip bench offline-texts BUNDLE [--texts 2000] [--rounds 3] [--budgets 512,1024] [--out
    F.json]

Padded batches of 32 in the order of the input are the usual method of calling a model with a list of texts. Both
methods give the bundle's graph the same ids, on the same session, in turn; padded batches have the mask that the
graph derives from the padding token. Lengths are drawn evenly from 4 to 60 tokens. Tokenising is left out, being the
same for both. The vectors of the two are compared.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder
from edgeclip.engine.batch_policy import CPU_TOKENS, BatchPolicy, TextBatch
from edgeclip.engine.paired_timing import take_turns
from edgeclip.tables import format_table
from edgeclip_bench.measure.machine_facts import machine

BENCHMARK = "edgeclip_bench.latency.offline_texts"
TOKENS = (4, 60)
PADDED = 32

Rows = Sequence[NDArray[np.int64]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budgets", type=_numbers, default=(CPU_TOKENS,), help="token budgets to try, as 512,1024")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path, help="write the JSON here")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table, write the JSON."""
    with Encoder.open(options.bundle, device=options.device, threads=options.threads) as encoder:
        report = measure(encoder, texts=options.texts, rounds=options.rounds, budgets=options.budgets)
    report["bundle"] = options.bundle.name
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    rows = [
        (way, f"{found['texts_per_s']:.1f}", f"{found['ratio_median']:.2f}", str(found["batches"]))
        for way, found in report["ways"].items()
    ]
    print(format_table(("way", "texts/s", "times padded", "batches"), rows))
    return 0


def measure(encoder: Encoder, *, texts: int, rounds: int, budgets: Sequence[int]) -> dict[str, Any]:
    """The JSON document of every method on the same ids; the ratio is the median over the rounds."""
    pad_id = encoder.manifest.tokenizer.pad_id
    rows = draw_rows(texts, pad_id)
    ways: dict[str, int | None] = {
        f"padded, {PADDED} at once": None,
        **{f"one length, {budget} tokens at once": budget for budget in budgets},
    }
    vectors: dict[str, NDArray[np.float32]] = {}

    def encode(way: str) -> None:
        vectors[way] = _encode(encoder, plan(rows, pad_id, ways[way]), texts)

    encoder.run_tower("text", rows[0][None])
    seconds = take_turns({way: partial(encode, way) for way in ways}, rounds, is_alone=False)
    padded = next(iter(ways))
    return {
        "benchmark": BENCHMARK,
        "machine": machine(),
        "device": encoder.device,
        "precision": encoder.manifest.text.precision,
        "texts": texts,
        "tokens": TOKENS,
        "rounds": rounds,
        "ways": {
            way: {
                "seconds": times.tolist(),
                "texts_per_s": texts / float(np.median(times)),
                "ratio_median": float(np.median(np.divide(seconds[padded], times))),
                "batches": len(plan(rows, pad_id, ways[way])),
                "largest_difference": float(np.abs(vectors[way] - vectors[padded]).max()),
            }
            for way, times in seconds.items()
        },
    }


def draw_rows(count: int, pad_id: int, seed: int = 0) -> Rows:
    """Ids of made-up texts, (T,) int64 each, none of them the padding token."""
    random = np.random.default_rng(seed)
    low = pad_id + 4  # behind the special tokens, which stand together
    return [random.integers(low, low + 90, random.integers(TOKENS[0], TOKENS[1] + 1)) for _ in range(count)]


def plan(rows: Rows, pad_id: int, budget: int | None) -> list[TextBatch]:
    """Batches of one length with at most so many tokens; padded batches for None."""
    if budget is None:
        return list(plan_padded(rows, pad_id))
    return list(BatchPolicy(tokens=budget, images=1, pad_id=pad_id).plan_texts(rows))


def plan_padded(rows: Rows, pad_id: int) -> Iterator[TextBatch]:
    """Batches of PADDED rows in order, each filled up to its longest row."""
    for start in range(0, len(rows), PADDED):
        batch = rows[start : start + PADDED]
        ids = np.full((len(batch), max(map(len, batch))), pad_id, dtype=np.int64)
        for index, row in enumerate(batch):
            ids[index, : len(row)] = row
        yield TextBatch(indices=tuple(range(start, start + len(batch))), input_ids=ids)


def _encode(encoder: Encoder, batches: Sequence[TextBatch], count: int) -> NDArray[np.float32]:
    vectors = np.empty((count, encoder.manifest.embedding_dim), dtype=np.float32)
    for batch in batches:
        vectors[list(batch.indices)] = encoder.run_tower("text", batch.input_ids)
    return vectors


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))
