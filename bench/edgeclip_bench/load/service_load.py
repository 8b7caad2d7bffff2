"""The service under load, over HTTP: requests a second and latency by concurrency, and what images do to texts.

    closed loop   N clients, each sending its next request when the last is answered
    open loop     Poisson arrivals of R requests a second; latency counts from the moment a request was due, so
                  a service that falls behind shows it (no coordinated omission)
    text          one short text a request
    mixed         nine texts to one image
    beside        the text of a closed loop while four clients keep sending eight images each

What the model takes and which tasks it has, the service says (`/v1/models`). A model that needs a task is asked with
its first one where --task names none; images have the same where it is for images.

With --bundle it measures the cost of HTTP: one short text through the service, on this machine, and through Encoders
in this process, in turns. Two starts of the same code differ in the tower's own run, by up to 0.6 ms of 36 (six
Encoders of the int8 bundle, two cores of an Intel Xeon with AMX), probably by where the weights that each packs for
itself lie in memory. So several Encoders are measured, and other starts of the same service that --starts names; the
figure is the difference of their means. Requests that are refused are counted by status and are no latencies.
"""

import argparse
import asyncio
import http.client
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from edgeclip import Encoder
from edgeclip.engine.paired_timing import take_turns
from edgeclip.errors import InputError
from edgeclip.families.tasks import needed_task
from edgeclip.tables import format_table
from edgeclip_bench.load.questions import BULK_CLIENTS, BULK_IMAGES, IMAGE_PX, TEXTS, Body, Questions, Size, body_of
from edgeclip_bench.measure.documents import make_document, save, to_json
from edgeclip_bench.measure.percentiles import RULE, Distribution, summarize

CONCURRENCIES = (1, 4, 16, 64)
SECONDS = 30.0
OVERHEAD_TURNS = 100
OVERHEAD_ENCODERS = 3
_WARM_UP_REQUESTS = 20
_TIMEOUT_S = 300.0
_SEED = 0
_HEADER = ("workload", "loop", "load", "requests/s", "p50 ms", "p99 ms", "refused")


@dataclass(slots=True)
class Tally:
    """The outcomes of the requests of one run."""

    latencies_ms: list[float] = field(default_factory=list)
    refusals: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One run: `load` is the number of clients of a closed loop, or requests a second of an open one."""

    workload: str
    loop: str
    load: float
    requests_a_second: float
    refused: dict[str, int]
    latency: Distribution | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """One short text, in turns through starts of the service and by Encoders in this process.

    `median_difference_ms` is the median over the turns of the services' mean less the Encoders' mean.
    """

    encoding: str
    services: tuple[Distribution, ...]
    encoders: tuple[Distribution, ...]
    median_difference_ms: float


class Client:
    """A client of one service, with connections that stay open."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session, self._root = session, f"{url.rstrip('/')}/v1"
        self._url = f"{self._root}/embeddings"

    async def model(self) -> Body:
        """What the service says of its model; InputError where it says nothing."""
        try:
            async with self._session.get(f"{self._root}/models") as response:
                document = await response.json()
            return dict(document["data"][0])
        except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError) as error:
            raise InputError(
                f"{self._root}/models: no edgeclip service answers there ({type(error).__name__})"
            ) from error

    async def send(self, body: Body, tally: Tally, *, due_s: float | None = None) -> None:
        """Post and read to the end; the latency counts from `due_s`."""
        began_s = time.perf_counter() if due_s is None else due_s
        try:
            async with self._session.post(self._url, json=body) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            tally.refusals[type(error).__name__] += 1
            return
        if status == 200:
            tally.latencies_ms.append((time.perf_counter() - began_s) * 1e3)
        else:
            tally.refusals[str(status)] += 1


@asynccontextmanager
async def connect(url: str, key: str | None) -> AsyncIterator[Client]:
    """A client with as many connections as it needs."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        yield Client(session, url)


async def closed_loop(client: Client, bodies: Iterator[Body], clients: int, seconds: float) -> Tally:
    """Run `clients` at once, each with one request in flight, until `seconds` have passed."""
    tally = Tally()
    began_s = time.perf_counter()

    async def one() -> None:
        while time.perf_counter() - began_s < seconds:
            await client.send(next(bodies), tally)

    await asyncio.gather(*(one() for _ in range(clients)))
    tally.seconds = time.perf_counter() - began_s
    return tally


async def open_loop(client: Client, bodies: Iterator[Body], rate: float, seconds: float) -> Tally:
    """Send requests when they are due, whether or not earlier ones are answered."""
    tally = Tally()
    gaps = np.random.default_rng(_SEED).exponential(1 / rate, max(1, round(rate * seconds)))
    began_s = time.perf_counter()
    tasks = []
    for due_s in began_s + np.cumsum(gaps):
        await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
        tasks.append(asyncio.create_task(client.send(next(bodies), tally, due_s=float(due_s))))
    await asyncio.gather(*tasks)
    tally.seconds = time.perf_counter() - began_s
    return tally


@asynccontextmanager
async def bulk_images(client: Client, questions: Questions) -> AsyncIterator[Tally]:
    """Send a bulk job in the background; its tally counts requests of BULK_IMAGES images."""
    tally = Tally()
    bodies = questions.bulk()

    async def one() -> None:
        while True:
            await client.send(next(bodies), tally)

    tasks = [asyncio.create_task(one()) for _ in range(BULK_CLIENTS)]
    await asyncio.sleep(1.0)  # until their first images are with the tower
    began_s = time.perf_counter()
    try:
        yield tally
    finally:
        tally.seconds = time.perf_counter() - began_s
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def row(workload: str, loop: str, load: float, tally: Tally) -> Row:
    """A run's figures; no latency where nothing was answered."""
    return Row(
        workload=workload,
        loop=loop,
        load=load,
        requests_a_second=len(tally.latencies_ms) / tally.seconds,
        refused=dict(tally.refusals),
        latency=summarize(tally.latencies_ms) if tally.latencies_ms else None,
    )


async def measure_load(
    url: str,
    *,
    seconds: float = SECONDS,
    concurrencies: Sequence[int] = CONCURRENCIES,
    rates: Sequence[float] = (),
    key: str | None = None,
    task: str | None = None,
    image_px: Size = IMAGE_PX,
    texts_only: bool = False,
    tell: Callable[[Row], None] = lambda row: None,
) -> list[Row]:
    """Run every workload; `tell` is called with each row when it is done."""
    rows: list[Row] = []

    def note(*figures: Any) -> None:
        rows.append(row(*figures))
        tell(rows[-1])

    async with connect(url, key) as client:
        questions = Questions.of(await client.model(), task, image_px, texts_only=texts_only)
        workloads = {"text": questions.texts} | ({"mixed": questions.mixed} if questions.has_images else {})
        for bodies in workloads.values():
            for body in itertools.islice(bodies(), _WARM_UP_REQUESTS):
                await client.send(body, Tally())
        for name, bodies in workloads.items():
            for clients in concurrencies:
                note(name, "closed", clients, await closed_loop(client, bodies(), clients, seconds))
        for rate in rates:
            for name, bodies in workloads.items():
                note(name, "open", rate, await open_loop(client, bodies(), rate, seconds))
        for clients in concurrencies[:2] if questions.has_images else ():
            async with bulk_images(client, questions) as bulk:
                tally = await closed_loop(client, questions.texts(), clients, seconds)
            note("text beside images", "closed", clients, tally)
            note(f"{BULK_IMAGES} images beside text", "closed", BULK_CLIENTS, bulk)
    return rows


def measure_overhead(
    urls: Sequence[str],
    bundle: Path,
    *,
    key: str | None,
    task: str | None = None,
    turns: int = OVERHEAD_TURNS,
) -> list[Overhead]:
    """What the services add to one short text, with the task or the first that a model needs.

    The client is the standard library's and adds 0.2 ms.
    """
    found = []
    with ExitStack() as opened:
        encoders = [opened.enter_context(Encoder.open(bundle)) for _ in range(OVERHEAD_ENCODERS)]
        task = task or needed_task(encoders[0].manifest, "text")
        connections = [opened.enter_context(closing(_connection(url))) for url in urls]
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        paths = [f"{urlsplit(url).path.rstrip('/')}/v1/embeddings" for url in urls]
        answers = {
            f"encoder {index}": partial(encoder.encode_text, TEXTS[0], task=task)
            for index, encoder in enumerate(encoders)
        }
        for encoding in ("float", "base64"):
            body = json.dumps({**body_of([TEXTS[0]], task), "encoding_format": encoding})
            asks = {
                f"service {index}": partial(_post, connection, path, body, headers)
                for index, (connection, path) in enumerate(zip(connections, paths, strict=True))
            }
            times = take_turns({**asks, **answers}, turns, warm_up=_WARM_UP_REQUESTS)
            services, inside = ([times[name] * 1e3 for name in names] for names in (asks, answers))
            differences = np.mean(services, axis=0) - np.mean(inside, axis=0)
            found.append(
                Overhead(
                    encoding=encoding,
                    services=tuple(map(summarize, services)),
                    encoders=tuple(map(summarize, inside)),
                    median_difference_ms=float(np.median(differences)),
                )
            )
    return found


def _connection(url: str) -> http.client.HTTPConnection:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    return kind(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)


def _post(connection: http.client.HTTPConnection, path: str, body: str, headers: dict[str, str]) -> None:
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise InputError(f"the service at {path} answered {response.status}, wanted 200")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("url", help="as http://127.0.0.1:8000")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each run (30)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCIES, help="clients (1 4 16 64)")
    parser.add_argument("--rate", type=float, nargs="*", default=(), help="requests a second of open loops")
    parser.add_argument("--bundle", type=Path, help="the bundle that is served: measure the overhead too")
    parser.add_argument(
        "--starts", nargs="+", default=(), metavar="URL", help="other starts of the same service, for the overhead"
    )
    parser.add_argument("--turns", type=int, default=OVERHEAD_TURNS, help="of the overhead's measurement (100)")
    parser.add_argument("--texts-only", action="store_true", help="send no images")
    parser.add_argument("--task", metavar="T", help="of texts and images (the first of a model that needs one)")
    parser.add_argument("--image-px", type=int, nargs=2, default=IMAGE_PX, metavar=("W", "H"), help="(640 480)")
    parser.add_argument("--key", help="an API key")
    parser.add_argument("--out", type=Path, help="the JSON; default: stdout")


def run(options: argparse.Namespace) -> int:
    """Measure, print a table on stderr and JSON on stdout or into a file."""
    urls = (options.url, *options.starts)
    overhead = (
        measure_overhead(urls, options.bundle, key=options.key, task=options.task, turns=options.turns)
        if options.bundle
        else []
    )
    rows = asyncio.run(
        measure_load(
            options.url,
            seconds=options.seconds,
            concurrencies=options.concurrency,
            rates=options.rate,
            key=options.key,
            task=options.task,
            image_px=tuple(options.image_px),
            texts_only=options.texts_only,
            tell=lambda done: print(*_cells(done), sep="  ", file=sys.stderr),
        )
    )
    print(format_table(_HEADER, [_cells(done) for done in rows]), file=sys.stderr)
    for one in overhead:
        print(f"overhead, {one.encoding}: {one.median_difference_ms:.2f} ms at the median", file=sys.stderr)
    report = make_document(
        __name__,
        {
            "seconds_each": options.seconds,
            "task": options.task,
            "image_px": list(options.image_px),
            "percentiles": RULE,
            "overhead": [asdict(one) for one in overhead],
            "rows": [asdict(one) for one in rows],
        },
    )
    if options.out:
        save(report, options.out)
    else:
        sys.stdout.write(to_json(report))
    return 0


def _cells(done: Row) -> list[str]:
    latency = done.latency
    p50 = f"{latency.p50_ms:.1f}" if latency else "-"
    p99 = f"{latency.p99_ms:.1f}" if latency and latency.p99_ms is not None else "-"
    refused = ", ".join(f"{status}: {count}" for status, count in sorted(done.refused.items())) or "-"
    return [done.workload, done.loop, f"{done.load:g}", f"{done.requests_a_second:.1f}", p50, p99, refused]
