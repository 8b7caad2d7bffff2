"""A real server on loopback, in a thread of the tests' process: what clients meet."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from edgeclip import Encoder
from edgeclip.families.family import Item
from edgeclip.manifest import Space
from edgeclip.serve.app import create_app
from edgeclip.serve.http.server import Server
from edgeclip.serve.run import configure, listen
from edgeclip.serve.settings import Settings

_STARTS_WITHIN_S = 60


@contextlib.contextmanager
def serving(bundle: Path, encoder: Encoder, *, fetch: Any = None, port: int = 0, **settings: Any) -> Iterator[str]:
    """The base URL of a service of the encoder, which runs until the block ends; port 0 is any free one."""
    chosen = Settings(bundle=bundle, **{"metrics_s": 0.001, **settings})
    with running(configure(chosen, create_app(chosen, encoder, fetch=fetch)), port=port) as url:
        yield url


@contextlib.contextmanager
def running(server: Server, *, port: int = 0) -> Iterator[str]:
    """The base URL of a server, which runs until the block ends."""
    with contextlib.closing(listen("127.0.0.1", port)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            deadline = time.monotonic() + _STARTS_WITHIN_S
            while not server.is_started:
                assert thread.is_alive() and time.monotonic() < deadline
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.end()
            thread.join()


class Troubled(Encoder):
    """A real encoder whose graphs can be held up, or answer wrongly."""

    def prepare(self) -> None:
        self.may_run = threading.Event()
        self.may_run.set()
        self.batches: list[tuple[str, int]] = []
        self.spoil: Callable[[str, Any], Any] = lambda graph, vectors: vectors

    def run_batch(self, items: Sequence[Item], *, space: Space = "single") -> Any:
        assert self.may_run.wait(60)
        graph = items[0].graph
        self.batches.append((graph, len(items)))
        return self.spoil(graph, super().run_batch(items, space=space))


@contextlib.contextmanager
def troubling(bundle: Path) -> Iterator[Troubled]:
    """Such an encoder; its graphs may run again in the end."""
    with Troubled.open(bundle, device="cpu") as encoder:
        encoder.prepare()
        yield encoder
        encoder.may_run.set()


def wait_for(claim: Callable[[], Any], within_s: float = 20) -> None:
    deadline = time.monotonic() + within_s
    while not claim():
        assert time.monotonic() < deadline, "it did not come to be"
        time.sleep(0.01)


def until_ready(url: str) -> None:
    wait_for(lambda: httpx.get(f"{url}/health/ready", timeout=60).status_code == 200)


def depth(url: str, graph: str = "text") -> float:
    line = next(line for line in httpx.get(f"{url}/metrics").text.splitlines()
                if line.startswith(f'edgeclip_queue_depth{{graph="{graph}"}}'))  # fmt: skip
    return float(line.rsplit(" ", 1)[1])
