"""A real server on loopback, in a thread of the tests' process: what clients meet."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from edgeclip import Encoder
from edgeclip.serve.app import create_app
from edgeclip.serve.run import configure, listen
from edgeclip.serve.settings import Settings

_STARTS_WITHIN_S = 60


@contextlib.contextmanager
def serving(bundle: Path, encoder: Encoder, *, fetch: Any = None, **settings: Any) -> Iterator[str]:
    """The base URL of a service of the encoder, which runs until the block ends."""
    chosen = Settings(bundle=bundle, **settings)
    server = uvicorn.Server(configure(chosen, create_app(chosen, encoder, fetch=fetch)))
    with contextlib.closing(listen("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            deadline = time.monotonic() + _STARTS_WITHIN_S
            while not server.started:
                assert thread.is_alive() and time.monotonic() < deadline
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()
