"""The service under honest and hostile clients for minutes: no answer of 500, and memory that stays flat.

    python -m edgeclip_bench.service_soak BUNDLE [--seconds 600] [--clients 6] [--out F.json]

The service is started in a process of its own, whose resident memory is sampled each second. Clients draw what they
do: short and bulk texts, token ids, images, broken images, JSON that grows when it is parsed, requests that are left
before the answer, bytes that are no HTTP, and heads that never end. The verdict on memory is `edgeclip_bench.soak`'s.
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
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from edgeclip_bench.machine import machine
from edgeclip_bench.soak import find_trend

BENCHMARK = "edgeclip_bench.service_soak"
_STARTS_WITHIN_S = 120.0
_TIMEOUT_S = 120.0
_PICTURES = ((64, 48, "PNG"), (300, 700, "JPEG"), (900, 600, "WEBP"))

Act = Callable[[], Awaitable[str]]


class Mischief:
    """What clients do to one service, each act a coroutine that gives what became of it."""

    def __init__(self, session: aiohttp.ClientSession, port: int, seed: int) -> None:
        self._session, self._port = session, port
        self._url = f"http://127.0.0.1:{port}/v1/embeddings"
        self._draw = np.random.default_rng(seed)
        self._pictures = [_picture(*size) for size in _PICTURES]
        self.acts: tuple[Act, ...] = (
            self.ask_a_text,
            self.ask_many_texts,
            self.ask_token_ids,
            self.ask_images,
            self.send_a_broken_image,
            self.send_json_that_grows,
            self.leave_before_the_answer,
            self.send_no_http,
            self.send_an_endless_head,
        )

    async def ask_a_text(self) -> str:
        """One, as a search does."""
        return await self._post({"input": "a red bicycle"})

    async def ask_many_texts(self) -> str:
        """Up to 40, of up to 200 words, in two formats."""
        return await self._post({"input": self._texts(), "embedding_type": ["float", "ubinary"]})

    async def ask_token_ids(self) -> str:
        """Up to 20,000, which the model must cut."""
        return await self._post({"input": self._draw.integers(5, 300, self._draw.integers(1, 20_000)).tolist()})

    async def ask_images(self) -> str:
        """Up to three."""
        chosen = self._draw.integers(len(self._pictures), size=self._draw.integers(1, 4))
        return await self._post({"input": [{"image": self._pictures[index]} for index in chosen]})

    async def send_a_broken_image(self) -> str:
        """A file that ends too early."""
        return await self._post({"input": {"image": self._pictures[0][: self._draw.integers(4, 80)]}})

    async def send_json_that_grows(self) -> str:
        """Two bytes a list, which are fifty when parsed."""
        body = b'{"input":[' + b"[]," * int(self._draw.integers(1, 600_000)) + b"1]}"
        return await self._post(body)

    async def leave_before_the_answer(self) -> str:
        """Within 50 ms."""
        try:
            async with asyncio.timeout(self._draw.random() * 0.05):
                await self._post({"input": self._texts()})
        except TimeoutError:
            return "left"
        return "answered"

    async def send_no_http(self) -> str:
        """200 random bytes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(os.urandom(200) + b"\r\n\r\n")
            async with asyncio.timeout(_TIMEOUT_S):
                return (await reader.readline()).decode(errors="replace")[9:12] or "closed"
        finally:
            writer.close()

    async def send_an_endless_head(self) -> str:
        """Up to 300 kB of one header, then gone."""
        _, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"GET / HTTP/1.1\r\na: " + b"x" * int(self._draw.integers(10, 300_000)))
            await asyncio.sleep(self._draw.random() * 0.2)
        finally:
            writer.close()
        return "cut off"

    async def _post(self, body: dict[str, Any] | bytes) -> str:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=io.BytesIO(data), headers=headers) as response:
            await response.read()
            return str(response.status)

    def _texts(self) -> list[str]:
        return ["w " * int(self._draw.integers(1, 200)) for _ in range(self._draw.integers(1, 40))]


def main(arguments: list[str] | None = None) -> int:
    """Soak, print the verdict, write the JSON; 1 when memory grows or an answer was 500."""
    parser = argparse.ArgumentParser(prog="python -m edgeclip_bench.service_soak", description=__doc__.split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--out", type=Path, help="write the JSON here")
    options = parser.parse_args(arguments)
    report = soak(options.bundle, seconds=options.seconds, clients=options.clients)
    if options.out:
        options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    trend = report["trend"]
    acts = sum(sum(found.values()) for found in report["outcomes"].values())
    print(
        f"{acts} acts, {report['answers_500']} answers of 500; memory {trend['verdict']}: "
        f"{trend['gained_bytes'] / 1e6:+.1f} MB ({trend['least_gained_bytes'] / 1e6:+.1f} to "
        f"{trend['most_gained_bytes'] / 1e6:+.1f}) in {trend['seconds']:.0f} s on {trend['held_bytes'] / 1e6:.0f} MB"
    )
    return int(trend["verdict"] == "grows" or report["answers_500"] > 0)


def soak(bundle: Path, *, seconds: float, clients: int) -> dict[str, Any]:
    """The JSON document of one service's life."""
    port = _free_port()
    command = (sys.executable, "-m", "edgeclip", "serve", str(bundle), "--port", str(port), "--log-level", "error")
    with subprocess.Popen(command) as service:
        try:
            outcomes, samples = asyncio.run(_torment(service.pid, port, seconds, clients))
        finally:
            service.terminate()
    return {
        "benchmark": BENCHMARK,
        "machine": machine(),
        "bundle": bundle.name,
        "seconds": seconds,
        "clients": clients,
        "outcomes": {act: dict(found) for act, found in sorted(outcomes.items())},
        "answers_500": sum(found["500"] for found in outcomes.values()),
        "exit_status": service.returncode,
        "trend": asdict(find_trend(samples)),
        "samples": [[round(second, 1), held] for second, held in samples],
    }


async def _torment(
    process: int, port: int, seconds: float, clients: int
) -> tuple[dict[str, Counter[str]], Sequence[tuple[float, int]]]:
    outcomes: dict[str, Counter[str]] = {}
    samples: list[tuple[float, int]] = []
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await _until_ready(session, port)
        began = time.monotonic()

        async def client(seed: int) -> None:
            mischief, draw = Mischief(session, port, seed), np.random.default_rng((1, seed))
            while time.monotonic() < began + seconds:
                act = mischief.acts[draw.integers(len(mischief.acts))]
                try:
                    outcome = await act()
                except (aiohttp.ClientError, OSError) as error:  # a connection that the service cut
                    outcome = type(error).__name__
                outcomes.setdefault(act.__name__, Counter())[outcome] += 1

        async def watch() -> None:
            memory = psutil.Process(process)
            while time.monotonic() < began + seconds:
                samples.append((time.monotonic() - began, memory.memory_info().rss))
                await asyncio.sleep(min(1.0, seconds / 120))

        await asyncio.gather(watch(), *(client(seed) for seed in range(clients)))
    return outcomes, samples


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


def _picture(width: int, height: int, kind: str) -> str:
    from PIL import Image

    noise = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
