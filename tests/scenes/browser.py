"""A headless Chromium, driven through its own DevTools protocol: one tab, JavaScript in it, keys, files, screenshots.

No driver and no browser package: aiohttp, which the service has for fetching, speaks WebSocket too.
"""

import asyncio
import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# A cold browser on one slow core.
_PATIENCE_S = 60
# Nothing asks for anything but the page: no updates, no first-run, no crash reports.
_FLAGS = (
    "--headless=new --remote-debugging-port=0 --no-first-run --disable-background-networking --disable-gpu "
    "--disable-component-update --disable-sync --disable-breakpad --disable-extensions --mute-audio --hide-scrollbars"
)


class Browser:
    """A tab. `errors` are uncaught exceptions, and what the console and the content security policy complained of."""

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._loop, self._socket, self._last = loop, socket, 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the protocol and its answer."""
        return self._loop.run_until_complete(self._call(method, parameters))

    def open(self, url: str) -> None:
        """Load a page, and wait until it is loaded."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression (awaited), as JSON has it."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, script: str) -> Any:
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + _PATIENCE_S
        while not (value := self.run(script)):
            text = self.run("document.body.innerText")
            assert time.monotonic() < deadline, f"{script} is not so; the page says {text!r}, errors {self.errors}"
            time.sleep(0.05)
        return value

    def text(self, selector: str) -> str:
        """What is read there."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).innerText"))

    def choose_files(self, selector: str, paths: Sequence[Path]) -> None:
        """Choose files, as a user does in the dialogue."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path) for path in paths])

    def press(self, key: str, code: int) -> None:
        """One key, where the focus is."""
        more = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **more)

    def type(self, text: str) -> None:
        """Text in any script, where the focus is."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int) -> None:
        """The size of the page in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def prefer(self, scheme: str) -> None:
        """The scheme "light" or "dark"."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self, path: Path) -> None:
        """A PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    async def _call(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": parameters})
        async with asyncio.timeout(_PATIENCE_S):
            while True:
                message = json.loads((await self._socket.receive()).data)
                self._note(message)
                if message.get("id") == self._last:
                    assert "error" not in message, (method, message["error"])
                    return dict(message["result"])

    def _note(self, message: dict[str, Any]) -> None:
        parameters = message.get("params", {})
        if message.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(parameters["exceptionDetails"]))
        elif message.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
            self.errors.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        elif message.get("method") == "Network.requestWillBeSent":
            self.requests.append(parameters["request"]["url"])


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser with a new profile in `folder`, closed at the end."""
    assert CHROMIUM
    profile = folder / "profile"
    # In a container and as root Chromium's sandbox cannot be had; the pages here are our own.
    flags = [*_FLAGS.split(), f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    log = (folder / "chromium.log").open("wb")
    process = subprocess.Popen([CHROMIUM, *flags, "about:blank"], stdout=log, stderr=log)
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(_make(lambda: aiohttp.ClientSession(loop=loop)))
    try:
        port = _wait_for_port(process, profile)
        url = f"http://127.0.0.1:{port}/json/list"
        tab = next(tab for tab in loop.run_until_complete(_read(session, url)) if tab["type"] == "page")
        connect = session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
        socket = loop.run_until_complete(_enter(connect))
        yield Browser(loop, socket)
        loop.run_until_complete(socket.close())
    finally:
        loop.run_until_complete(session.close())
        loop.close()
        process.terminate()
        process.wait(_PATIENCE_S)
        log.close()


def _wait_for_port(process: subprocess.Popen[bytes], profile: Path) -> int:
    deadline = time.monotonic() + _PATIENCE_S
    file = profile / "DevToolsActivePort"
    while not (file.exists() and "\n" in file.read_text()):
        assert process.poll() is None, "Chromium ended"
        assert time.monotonic() < deadline, "Chromium says no port"
        time.sleep(0.05)
    return int(file.read_text().split("\n")[0])


async def _make(maker: Callable[[], aiohttp.ClientSession]) -> aiohttp.ClientSession:
    return maker()


async def _enter(connect: Any) -> aiohttp.ClientWebSocketResponse:
    return await connect


async def _read(session: aiohttp.ClientSession, url: str) -> Any:
    async with session.get(url) as answer:
        return await answer.json()
