"""A record as tables, CSV and a page: the figures as they were measured, nothing where nothing may be said."""

import csv
import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from edgeclip_bench.latency.cases import Case
from edgeclip_bench.latency.page import pareto_front, render_page
from edgeclip_bench.latency.records import Absence, Memory, Record, Result, Subject
from edgeclip_bench.latency.report import duration, notes, render_csv, render_text
from edgeclip_bench.latency.run import RULES, counted, server_result
from edgeclip_bench.latency.scenarios import VirtualClock, find_server_rate
from edgeclip_bench.latency.stages import Stages
from edgeclip_bench.measure.ceiling import Gemm, Work, make_ceiling
from edgeclip_bench.measure.percentiles import summarize
from edgeclip_bench.measure.stability import Window

NAME = "bundle <1> & \udcff"
WORK = Work(flops=10**9, attention_flops=10**8, weight_bytes=10**6, products=(), operators_ms={"MatMul": 1.0})
GEMM = Gemm(kind="int8", m=16, k=64, n=64, gflop_per_s=1000.0)


def result(case: Case, latencies_ms: list[float]) -> Result:
    """A measured case."""
    latency = summarize(latencies_ms)
    stages = Stages(rounds=3, tokenise_ms=0.5, compute_ms=4.0)
    return Result(
        bundle=NAME,
        case=case,
        device="cpu",
        counts=counted("p90", latency),
        per_second=200.0,
        queries=len(latencies_ms),
        samples=len(latencies_ms) * case.batch,
        warm_up=2,
        is_steady=True,
        windows=(Window(queries=10, samples=10, seconds=0.05, median_ms=5.0),) * 3,
        latency=latency,
        samples_ms=tuple(latencies_ms),
        stages=stages,
        ceiling=make_ceiling(WORK, 4.0, GEMM, 10.0),
    )


@pytest.fixture
def record() -> Record:
    """Every scenario, one case too short for any percentile, one that was left out."""
    short = Case(modality="text", scenario="single-stream", batch=1, threads=2, tokens=16)
    image = Case(modality="image", scenario="single-stream", batch=4, threads=2, image_px=512)
    served = Case(modality="text", scenario="server", batch=1, threads=2, tokens=16)
    offline = Case(modality="text", scenario="offline", batch=1, threads=2, tokens=16)
    many = list(np.random.default_rng(0).normal(5, 0.2, 1000))
    clock = VirtualClock()
    server = server_result(NAME, served, "cpu", find_server_rate(lambda: clock.spend(0.01), [0.01], 40.0, clock))
    assert isinstance(server, Result)
    return Record(
        frame={
            "machine": {"processor": "P", "threads": 2, "memory_bytes": 10**9, "graphics_cards": []},
            "versions": {"onnxruntime": "1.0"},
        },
        rules=RULES,
        bundles=(
            Subject(
                name=NAME,
                source="s",
                target="cpu",
                precision={"text": "int8", "vision": "fp32"},
                parameters=10,
                weight_bytes=1000,
                worst_cosine={"text": 0.99, "image": None},
            ),
        ),
        results=(
            result(short, many),
            result(image, [1300.0, 1310.0, 1290.0]),
            server,
            replace(result(offline, [2.0] * 8), latency=None, stages=None, ceiling=None),
        ),
        memory=(Memory(bundle=NAME, threads=2, before_bytes=10**8, peak_bytes=10**9, gpu_bytes=None),),
        left_out=(Absence(what="something", why="a reason"),),
    )


def test_the_table_has_the_metric_that_counts_and_the_samples(record: Record) -> None:
    text = render_text(record)
    row = next(line for line in text.splitlines() if line.startswith("text, 16 tokens  ") and "p90 " in line)
    assert f"p90 {duration(record.results[0].counts.value)}" in row
    assert "1,000" in row
    assert "p90 wants 100 samples" in next(
        line for line in text.splitlines() if line.startswith("image, 512 px, batch 4")
    )
    assert "one text of 16 tokens in 4.99 ms" in text.splitlines()[0]
    assert "on cpu; worst cosine to fp32: text 0.9900" in text
    assert "not measured: something: a reason" in text
    assert "25% of compute" in text


def test_csv_has_perf_analyzers_columns_in_microseconds(record: Record) -> None:
    rows = list(csv.DictReader(io.StringIO(render_csv(record))))
    sent = ["Concurrency", "Inferences/Second", "Client Send", "Network+Server Send/Recv", "Server Queue"]
    computed = ["Server Compute Input", "Server Compute Infer", "Server Compute Output", "Client Recv"]
    assert list(rows[0])[:13] == [*sent, *computed, *(f"p{level} latency" for level in (50, 90, 95, 99))]
    first, image, server, offline = rows
    assert first["p50 latency"] == f"{np.median(record.results[0].samples_ms) * 1000:.0f}"
    assert (first["Server Compute Input"], first["Server Compute Infer"]) == ("500", "4000")
    assert (image["p99 latency"], image["Batch"], image["Image px"], image["Tokens"]) == ("", "4", "512", "")
    assert float(server["Server Queue"]) > 0
    assert (offline["p50 latency"], offline["Inferences/Second"]) == ("", "200.0000")


def test_the_page_is_whole_in_itself(record: Record) -> None:
    """Well-formed, no script, nothing from anywhere; three kinds of plots."""
    page = render_page(record)
    tree = ElementTree.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert "http" not in page and "@import" not in page and not re.search(r"url\((?!#)", page)
    for element in tree.iter():
        assert element.tag not in ("script", "link", "iframe", "img")
        assert "src" not in element.attrib and element.get("href", "#").startswith("#")
    titles = [heading.text for heading in tree.iter("h2")]
    assert titles[:2] == ["Latency distributions", "Throughput and latency"]
    assert titles[2] is not None and titles[2].startswith("Pareto")
    assert len(list(tree.iter("svg"))) == 3 + 1 + 1  # of the images there is one point only
    assert "bundle <1> & " in "".join(tree.itertext())
    page.encode()


def test_other_processes_at_work_are_told_first(record: Record) -> None:
    """Cases are measured one after another, so what came in between makes one look slower."""
    told = "other processes took up to 45% of the processors"
    quiet = replace(record, results=tuple(replace(one, others_share=0.04) for one in record.results))
    busy = replace(quiet, results=(*quiet.results[:-1], replace(quiet.results[-1], others_share=0.45)))
    assert told not in render_text(quiet) and "  4%\n" in render_text(quiet)
    assert next(notes(busy)).startswith(told) and told in render_page(busy)
    assert render_csv(busy).splitlines()[-1].endswith(",0.4500")


def test_a_record_without_results_is_still_a_report(record: Record) -> None:
    empty = replace(record, results=(), memory=())
    assert "not measured: something" in render_text(empty)
    ElementTree.fromstring(render_page(empty).removeprefix("<!DOCTYPE html>\n"))
    assert render_csv(empty).count("\n") == 1


def test_the_front_is_what_no_other_beats() -> None:
    points = [(1.0, 10.0), (2.0, 5.0), (2.0, 20.0), (3.0, 20.0), (4.0, 21.0), (1.0, 9.0)]
    assert pareto_front(points) == [(1.0, 10.0), (2.0, 20.0), (4.0, 21.0)]
