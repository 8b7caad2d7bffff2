"""What is fetched comes from a server that was judged, in time and size, and failures tell nothing of the network."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from edgeclip.serve.images.addresses import Address
from edgeclip.serve.images.fetch import FetchError, FetchPolicy, fetch

BODY = bytes(range(256)) * 8
NOT_PUBLIC = "does not lead to a web server on the public internet"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def policy(**changed: Any) -> FetchPolicy:
    defaults = {"is_allowed": True, "allow_http": True, "max_bytes": len(BODY), "timeout_s": 10.0, "max_redirects": 3}
    return FetchPolicy(**defaults | changed)


def everything(address: Address, port: int) -> bool:
    return True


@asynccontextmanager
async def server(**pages: Handler) -> AsyncIterator[str]:
    """A real server on loopback: its address with a slash."""
    app = web.Application()
    for name, handler in pages.items():
        app.router.add_get(f"/{name}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def picture(request: web.Request) -> web.Response:
    return web.Response(body=BODY, content_type="image/png")


def fetched(path: str, *, judge: Callable[[Address, int], bool] = everything, **pages: Handler) -> bytes:
    return fetched_with(policy(), path, judge=judge, **pages)


def fetched_with(
    wanted: FetchPolicy, path: str, *, judge: Callable[[Address, int], bool] = everything, **pages: Handler
) -> bytes:
    async def scene() -> bytes:
        async with server(**pages) as home:
            return await fetch(home + path, wanted, is_reachable=judge)

    return asyncio.run(scene())


def refused(url: str, wanted: FetchPolicy | None = None) -> str:
    """What the fetching of a URL says, with the judge that the service has."""
    with pytest.raises(FetchError) as caught:
        asyncio.run(fetch(url, wanted or policy()))
    return str(caught.value)


def test_an_image_is_fetched() -> None:
    assert fetched("picture", picture=picture) == BODY


def test_nothing_is_fetched_where_it_is_not_allowed() -> None:
    assert "not fetched here" in refused("https://example.org/a.png", policy(is_allowed=False))


def test_http_is_not_fetched_where_it_is_not_allowed() -> None:
    assert refused("http://example.org/a.png", policy(allow_http=False)) == "the URL is not https"


@pytest.mark.parametrize("url", ["ftp://8.8.8.8/", "file:///etc/passwd", "gopher://8.8.8.8/", "data:,x", "a.png", ""])
def test_other_schemes_are_not_fetched(url: str) -> None:
    assert refused(url) == "the URL is not https or http"


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "0.0.0.0", "10.1.2.3", "192.168.1.1", "169.254.169.254", "100.100.100.200"),
        *("[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[64:ff9b::7f00:1]", "[fd00:ec2::254]"),
        *("[fe80::1%25lo]", "0x7f.1", "0x7f000001", "2130706433", "017700000001", "127.1", "127.0.0.1."),
        *("①②⑦.0.0.1", "１２７.0.0.1", "127。0。0。1"),
    ],
)
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_is_not_public_is_refused_however_it_is_written(scheme: str, host: str) -> None:
    assert refused(f"{scheme}://{host}/latest/meta-data") in (f"the URL {NOT_PUBLIC}", "the URL is malformed")


def test_ports_that_are_not_the_web_s_are_refused() -> None:
    assert NOT_PUBLIC in refused("https://8.8.8.8:6379/")


def test_a_password_in_a_url_is_refused() -> None:
    assert "user or password" in refused("https://user:secret@8.8.8.8/")
    assert "user or password" in refused("https://user@8.8.8.8/")


def test_a_host_that_has_a_private_address_beside_a_public_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 443)) for ip in ("93.184.215.14", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *given, **options: found)
    assert NOT_PUBLIC in refused("https://example.org/")


def test_the_connection_goes_where_the_judge_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name means loopback once, and something else ever after: a second look-up would miss the server."""
    real, looked_up = socket.getaddrinfo, []

    def rebinding(host: Any, port: Any, *given: Any, **options: Any) -> Any:
        if host != "rebinding.example":
            return real(host, port, *given, **options)
        looked_up.append(host)
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(looked_up) == 1 else "127.9.9.9", port))
        ]

    async def scene() -> bytes:
        async with server(picture=picture) as home:
            monkeypatch.setattr(socket, "getaddrinfo", rebinding)
            return await fetch(
                home.replace("127.0.0.1", "rebinding.example") + "picture", policy(), is_reachable=everything
            )

    assert asyncio.run(scene()) == BODY
    assert len(looked_up) == 1


def to(location: str, status: int = 302) -> Handler:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": location})

    return redirect


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(status: int) -> None:
    assert fetched("first", first=to("picture", status), picture=picture) == BODY


def test_so_many_redirects_and_no_more() -> None:
    pages = {"a": to("b"), "b": to("c"), "c": to("picture"), "z": to("a"), "picture": picture}
    assert fetched("a", **pages) == BODY
    with pytest.raises(FetchError, match="redirects more than 3 times"):
        fetched("z", **pages)


def test_each_redirect_is_judged_like_the_first() -> None:
    judged: list[int] = []

    def only_the_first(address: Address, port: int) -> bool:
        judged.append(port)
        return len(judged) == 1

    with pytest.raises(FetchError, match=NOT_PUBLIC):
        fetched("first", judge=only_the_first, first=to("/picture"), picture=picture)
    assert len(judged) == 2


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/", "http://u:p@127.0.0.1/", "http://[/"])
def test_a_redirect_goes_nowhere_that_a_url_may_not(location: str) -> None:
    with pytest.raises(FetchError):
        fetched("first", first=to(location))


def test_a_redirect_from_https_to_http_is_refused_where_http_is() -> None:
    """By the same rule as a first URL; here the first is the server's own scheme."""
    with pytest.raises(FetchError, match="the URL is not https"):
        fetched_with(policy(allow_http=False), "picture", picture=picture)


def test_an_announced_size_beyond_the_limit_is_refused_and_the_limit_itself_is_not() -> None:
    with pytest.raises(FetchError, match=f"more than {len(BODY) - 1} bytes"):
        fetched_with(policy(max_bytes=len(BODY) - 1), "picture", picture=picture)
    assert fetched_with(policy(max_bytes=len(BODY)), "picture", picture=picture) == BODY


def test_an_endless_body_is_cut_off() -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(BODY)
        return response

    with pytest.raises(FetchError, match="more than"):
        fetched("endless", endless=endless)


def test_a_body_that_drips_is_given_up_in_time() -> None:
    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(200):
            await response.write(b".")
            await asyncio.sleep(0.02)
        return response

    with pytest.raises(FetchError, match=r"within 0\.2 s"):
        fetched_with(policy(timeout_s=0.2), "drip", drip=drip)


def test_compressed_bodies_are_refused() -> None:
    async def bomb(request: web.Request) -> web.Response:
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})

    with pytest.raises(FetchError, match="compresses"):
        fetched("bomb", bomb=bomb)


@pytest.mark.parametrize("status", [204, 304, 403, 404, 500])
def test_other_answers_are_named(status: int) -> None:
    async def other(request: web.Request) -> web.Response:
        return web.Response(status=status)

    with pytest.raises(FetchError, match=f"status {status}"):
        fetched("other", other=other)


def test_neither_cookies_nor_proxies_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    seen: list[str | None] = []

    async def setting(request: web.Request) -> web.Response:
        return web.Response(status=302, headers={"Location": "/picture", "Set-Cookie": "a=b"})

    async def looking(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Cookie"))
        return await picture(request)

    assert fetched("setting", setting=setting, picture=looking) == BODY
    assert seen == [None]


def test_a_closed_port_is_told_without_addresses() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(FetchError) as caught:
        asyncio.run(fetch(f"http://127.0.0.1:{port}/", policy(), is_reachable=everything))
    assert str(caught.value) == "the URL's server could not be reached, or broke off"


def test_what_is_no_http_is_told_without_what_it_was() -> None:
    async def scene() -> None:
        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"-ERR unknown command\r\n")
            writer.close()

        other = await asyncio.start_server(speak, "127.0.0.1", 0)
        async with other:
            port = other.sockets[0].getsockname()[1]
            await fetch(f"http://127.0.0.1:{port}/", policy(), is_reachable=everything)

    with pytest.raises(FetchError, match="could not be reached, or broke off") as caught:
        asyncio.run(scene())
    assert "ERR" not in str(caught.value)


def test_https_is_never_taken_for_less() -> None:
    """The server speaks plain HTTP, so no TLS can come about."""

    async def scene() -> bytes:
        async with server(picture=picture) as home:
            return await fetch(home.replace("http:", "https:") + "picture", policy(), is_reachable=everything)

    with pytest.raises(FetchError, match="could not be reached"):
        asyncio.run(scene())
