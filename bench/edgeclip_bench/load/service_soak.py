"""The service under honest and hostile clients for minutes: no answer of 500, and memory that stays flat.

The service is started in a process of its own; a model that needs a task is asked with its first one where --task
names none. Together the clients do everything once, then each draws at random what it does: short and bulk texts,
token ids, images, images of 49 megapixels, broken images, bodies of 60 MB, JSON that grows when it is parsed,
requests that are dropped before the answer, bytes that are no HTTP, heads that never end.

Resident memory is sampled each second. Whenever all clients rest for a second, the lowest sample is kept too: that is
the memory that stays, while a sample in between holds a decoded image or none by chance. Both series are judged.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Self

import aiohttp
import numpy as np
import psutil

from edgeclip.errors import InputError
from edgeclip.families.tasks import list_tasks, needed_task
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest, Modality
from edgeclip_bench.load.memory_trend import Samples, describe_trend, grows, judge_memory
from edgeclip_bench.measure.documents import add_out, make_document, save
from edgeclip_bench.measure.pictures import encode_file, made_up_picture

_STARTS_WITHIN_S = 120.0
_TIMEOUT_S = 120.0
_PICTURES = (((64, 48), "PNG"), ((300, 700), "JPEG"), ((900, 600), "WEBP"))
_LARGE_PX = 7000
_LARGE_BODY_BYTES = 60_000_000
_RESTS = 100  # in a long run
_LEAST_TRAFFIC_S = 2.0  # between two of them
_REST_S = 1.0
# A tick of the clock that took longer is no sign of traffic: this process was stopped, or the machine slept.
_LONGEST_TICK = 3

Act = Callable[[], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a bundle takes: its modalities, the task of each (None for none), and the ids that a text begins with."""

    tasks: Mapping[Modality, str | None]
    first_ids: tuple[int, ...]

    @classmethod
    def of(cls, bundle: Path, task: str | None) -> Self:
        """What the bundle in a folder takes; InputError for a task that it does not have."""
        manifest = Manifest.read(bundle)
        tasks = {
            modality: task if task in manifest.tasks_of(modality) else needed_task(manifest, modality)
            for modality in manifest.modalities
        }
        if task is not None and task not in tasks.values():
            raise InputError(f"--task {task}: wanted one of {list_tasks(tuple(manifest.tasks), task) or 'none'}")
        first_ids: tuple[int, ...] = ()
        if manifest.text and manifest.task_required and (asked := tasks["text"]):
            tokenizer = TextTokenizer(bundle / manifest.text.file, manifest.text)
            prompt = manifest.tasks[asked].prompt.rstrip()
            first_ids = (
                tuple(map(int, tokenizer.encode([prompt], None, keeps_closing=False).rows[0])) if prompt else ()
            )
        return cls(tasks=tasks, first_ids=first_ids)


class Mischief:
    """The acts of clients against one service, by name; each is a coroutine that returns its outcome.

    Most post a body, drawn anew each time.
    """

    def __init__(self, session: aiohttp.ClientSession, port: int, seed: int, wanted: Wanted) -> None:
        self._session, self._port, self._wanted = session, port, wanted
        self._url = f"http://127.0.0.1:{port}/v1/embeddings"
        self._draw = np.random.default_rng(seed)
        self._pictures, self._large_picture = _pictures()
        bodies: dict[str, Callable[[], bytes]] = {}
        if "text" in wanted.tasks:
            bodies |= {
                "ask_a_text": lambda: self._body("text", input="a red bicycle"),  # as a search does
                "ask_many_texts": lambda: self._body(
                    "text", input=self._texts(), embedding_type=["float", "ubinary"], truncate=True
                ),
                "ask_token_ids": lambda: self._body("text", input=self._token_ids(), truncate=True),
                "ask_a_masked_text": lambda: self._body("text", input="<pad> " + "w " * self._up_to(4000)),
            }
        if "image" in wanted.tasks:
            bodies |= {
                "ask_images": lambda: self._body("image", input=[self._picture() for _ in range(self._up_to(3))]),
                # A file of 150 kB that is 147 MB when it is decoded.
                "ask_a_large_image": lambda: self._body("image", input={"image": self._large_picture}),
                "send_a_broken_image": lambda: self._body(
                    "image", input={"image": self._pictures[0][: 3 + self._up_to(76)]}
                ),
            }
        bodies |= {
            "send_a_large_body": lambda: self._body(
                "text", truncate=True, input="w " * self._up_to(_LARGE_BODY_BYTES // 2)
            ),
            # Two bytes for each list, which take fifty when they are parsed.
            "send_json_that_grows": lambda: b'{"input":[%b1]}' % (b"[]," * self._up_to(600_000)),
        }
        self.acts: dict[str, Act] = {name: partial(self._post_made, make) for name, make in bodies.items()}
        others = (self.ask_for_what_is_not_there, self.leave_before_the_answer, self.send_no_http)
        self.acts |= {act.__name__: act for act in (*others, self.send_an_endless_head)}

    async def ask_for_what_is_not_there(self) -> str:
        """Ask for an unknown path, each time another one."""
        async with self._session.put(f"http://127.0.0.1:{self._port}/{self._draw.bytes(8).hex()}") as response:
            return str(response.status)

    async def leave_before_the_answer(self) -> str:
        """Close the connection within 50 ms."""
        try:
            async with asyncio.timeout(self._draw.random() * 0.05):
                await self._post(self._body("text", input=self._texts()))
        except TimeoutError:
            return "left"
        return "answered"

    async def send_no_http(self) -> str:
        """Send 200 random bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(os.urandom(200) + b"\r\n\r\n")
            async with asyncio.timeout(_TIMEOUT_S):
                return (await reader.readline()).decode(errors="replace")[9:12] or "closed"
        finally:
            writer.close()

    async def send_an_endless_head(self) -> str:
        """Send up to 300 kB of one header, then close the connection."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"GET / HTTP/1.1\r\na: " + b"x" * int(self._draw.integers(10, 300_000)))
            await asyncio.sleep(self._draw.random() * 0.2)
        finally:
            writer.close()
        return "cut off"

    def _body(self, modality: Modality, **fields: Any) -> bytes:
        task = self._wanted.tasks.get(modality)
        return json.dumps(fields if task is None else {**fields, "task": task}).encode()

    async def _post_made(self, make: Callable[[], bytes]) -> str:
        return await self._post(make())

    async def _post(self, data: bytes) -> str:
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=io.BytesIO(data), headers=headers) as response:
            await response.read()
            return str(response.status)

    def _up_to(self, most: int) -> int:
        return int(self._draw.integers(1, most + 1))

    def _texts(self) -> list[str]:
        return ["w " * self._up_to(200) for _ in range(self._up_to(40))]

    def _token_ids(self) -> list[int]:
        """So many ids that the model must cut them."""
        return [*self._wanted.first_ids, *self._draw.integers(5, 300, self._up_to(20_000)).tolist()]

    def _picture(self) -> dict[str, str]:
        return {"image": self._pictures[self._draw.integers(len(self._pictures))]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--task", metavar="T", help="of texts and images (the first of a model that needs one)")
    add_out(parser)


def run(options: argparse.Namespace) -> int:
    """Soak, print the verdict, write the JSON; 1 when memory grows or an answer was 500."""
    report = soak(options.bundle, seconds=options.seconds, clients=options.clients, task=options.task)
    save(report, options.out)
    acts = sum(sum(found.values()) for found in report["outcomes"].values())
    print(f"{acts} acts, {report['answers_500']} answers of 500")
    for name in ("at_rest", "in_traffic"):
        print(describe_trend(f"memory {name.replace('_', ' ')}", report[name]))
    return status(report)


def status(report: dict[str, Any]) -> int:
    """The exit status: 1 when memory grows, at rest or in traffic, or an answer was 500."""
    return int(grows(report["at_rest"], report["in_traffic"]) or report["answers_500"] > 0)


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def soak(bundle: Path, *, seconds: float, clients: int, task: str | None = None) -> dict[str, Any]:
    """The JSON document of one service's run."""
    wanted = Wanted.of(bundle, task)
    port = free_port()
    flags = ("--port", str(port), "--token-ids", "--log-level", "error")
    command = (sys.executable, "-m", "edgeclip", "serve", str(bundle), *flags)
    with subprocess.Popen(command) as service:
        try:
            outcomes, in_traffic, at_rest = asyncio.run(_torment(service.pid, port, seconds, clients, wanted))
        finally:
            service.terminate()
    return make_document(
        __name__,
        {
            "bundle": bundle.name,
            "seconds": seconds,
            "clients": clients,
            "tasks": dict(wanted.tasks),
            "outcomes": {act: dict(found) for act, found in sorted(outcomes.items())},
            "answers_500": sum(found["500"] for found in outcomes.values()),
            "exit_status": service.returncode,
            "at_rest": judge_memory(at_rest),
            "in_traffic": judge_memory(in_traffic),
        },
    )


async def _torment(
    process: int, port: int, seconds: float, clients: int, wanted: Wanted
) -> tuple[dict[str, Counter[str]], Samples, Samples]:
    outcomes: dict[str, Counter[str]] = {}
    in_traffic: list[tuple[float, int]] = []
    at_rest: list[tuple[float, int]] = []
    memory, busy, may_act = psutil.Process(process), 0, asyncio.Event()
    may_act.set()
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await _until_ready(session, port)
        ran_s = 0.0

        def sample() -> tuple[float, int]:
            return ran_s, memory.memory_info().rss

        async def client(seed: int) -> None:
            nonlocal busy
            mischief, draw = Mischief(session, port, seed, wanted), np.random.default_rng((1, seed))
            first = list(mischief.acts)[seed::clients]  # so that every act is done, however slow the machine is
            while first or ran_s < seconds:
                await may_act.wait()
                name = first.pop() if first else str(draw.choice(list(mischief.acts)))
                busy += 1
                try:
                    outcome = await mischief.acts[name]()
                except (aiohttp.ClientError, OSError) as error:  # a connection that the service cut
                    outcome = type(error).__name__
                finally:
                    busy -= 1
                outcomes.setdefault(name, Counter())[outcome] += 1

        async def watch() -> None:
            nonlocal ran_s
            interval_s, before_s = min(1.0, seconds / 120), time.monotonic()
            while ran_s < seconds:
                if may_act.is_set():
                    in_traffic.append(sample())
                await asyncio.sleep(interval_s)
                now_s = time.monotonic()
                ran_s += min(now_s - before_s, _LONGEST_TICK * interval_s)
                before_s = now_s

        async def rest() -> None:
            while ran_s < seconds:
                await asyncio.sleep(max(_LEAST_TRAFFIC_S, seconds / _RESTS - _REST_S))
                may_act.clear()
                while busy:
                    await asyncio.sleep(0.02)
                at_rest.append(await _least(sample, min(_REST_S, seconds / 600)))
                may_act.set()

        await asyncio.gather(watch(), rest(), *(client(seed) for seed in range(clients)))
    return outcomes, in_traffic, at_rest


async def _least(sample: Callable[[], tuple[float, int]], within_s: float) -> tuple[float, int]:
    """The sample of least memory of ten, because the service may still work on requests whose clients are gone."""
    found = []
    for _ in range(10):
        await asyncio.sleep(within_s / 10)
        found.append(sample())
    return min(found, key=lambda one: one[1])


async def _until_ready(session: aiohttp.ClientSession, port: int) -> None:
    async with asyncio.timeout(_STARTS_WITHIN_S):
        while True:
            try:
                async with session.get(f"http://127.0.0.1:{port}/health/ready") as response:
                    if response.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.2)


@cache
def _pictures() -> tuple[list[str], str]:
    """Small made-up pictures and a large empty one, in base64."""
    from PIL import Image

    draw = np.random.default_rng(0)
    small = [encode_file(made_up_picture(size, draw), kind) for size, kind in _PICTURES]
    large = encode_file(Image.new("RGB", (_LARGE_PX, _LARGE_PX), "teal"), "PNG")
    first, *others = (base64.b64encode(file).decode() for file in (large, *small))
    return others, first
