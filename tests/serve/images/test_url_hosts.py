"""A list of hosts opens what it names, at private addresses too, and nothing beside it."""

import asyncio
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from aiohttp import web

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip.serve.images.fetch import FetchError, fetch
from edgeclip.serve.images.url_hosts import parse_url_hosts
from tests.conftest import DATA
from tests.scenes.serving import serving
from tests.serve.images.test_fetch import BODY, picture, policy, server, to

ODD = DATA / "images" / "rgb_odd.png"
SAME = 5e-6


def opens(entry: str, scheme: str, host: str, port: int) -> bool:
    (found,) = parse_url_hosts([entry])
    return found.is_of(scheme, host, port)


@pytest.mark.parametrize(
    ("entry", "inside", "outside"),
    [
        ("Images.Corp.Example", ("https", "images.corp.example", 443), ("https", "images.corp.example", 9000)),
        ("images.corp.example.", ("https", "images.corp.example", 443), ("http", "images.corp.example", 80)),
        ("minio:9000", ("https", "minio", 9000), ("https", "minio", 443)),
        ("http://minio:9000", ("http", "minio", 9000), ("https", "minio", 9000)),
        ("http://minio", ("http", "minio", 80), ("http", "minio", 8080)),
        ("https://minio_1", ("https", "minio_1", 443), ("https", "minio_11", 443)),
        ("*.corp.example", ("https", "a.b.corp.example", 443), ("https", "corp.example", 443)),
        ("*.corp.example", ("https", "a.corp.example", 443), ("https", "evilcorp.example", 443)),
        ("*.corp.example:9000", ("https", "a.corp.example", 9000), ("https", "a.corp.example.evil.example", 9000)),
        ("10.1.2.3", ("https", "10.1.2.3", 443), ("https", "10.1.2.33", 443)),
        ("http://10.1.2.3:9000", ("http", "10.1.2.3", 9000), ("http", "::ffff:10.1.2.3", 9000)),
        ("[fd00::5]:9000", ("https", "fd00::5", 9000), ("https", "fd00::6", 9000)),
        ("10.1.0.0/16", ("https", "10.1.255.9", 443), ("https", "10.2.0.1", 443)),
        ("http://10.1.0.0/16:9000", ("http", "10.1.0.1", 9000), ("http", "ten.example", 9000)),
        ("[fd00::]/8", ("https", "fd12::1", 443), ("https", "fc00::1", 443)),
    ],
)
def test_what_an_entry_is_of(entry: str, inside: tuple[str, str, int], outside: tuple[str, str, int]) -> None:
    assert opens(entry, *inside)
    assert not opens(entry, *outside)


@pytest.mark.parametrize(
    "entry",
    ["", "*", "*.", "a.*.example", "ftp://a.example", "https://a.example/path", "a.example:0", "a.example:99999",
     "a.example:x", "user@a.example", "10.1.2", "0x7f.1", "10.1.2.3/8", "10.0.0.0/33", "größe.example", "fd00::5",
     "-a.example", "a..example"],
)  # fmt: skip
def test_what_is_no_entry_is_refused_in_one_line(entry: str) -> None:
    with pytest.raises(InputError, match="wanted host") as caught:
        parse_url_hosts([entry])
    assert "\n" not in str(caught.value)


CREDENTIALS = [
    *("169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "fd00:ec2::254", "fd20:ce::254"),
    *("::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1", "fe80::1", "0.0.0.0"),
]


@pytest.mark.parametrize("address", CREDENTIALS)
def test_credentials_of_clouds_stay_closed_unless_their_address_is_listed(address: str) -> None:
    for entry in ("metadata.example", "*.example", "0.0.0.0/0", "[::]/0", "169.254.0.0/16"):
        (found,) = parse_url_hosts([entry])
        assert not found.may_reach(ip_address(address))
    (literal,) = parse_url_hosts([f"[{address}]" if ":" in address else address])
    assert literal.is_of("https", address, 443) and literal.may_reach(ip_address(address))


@pytest.mark.parametrize("address", ["10.1.2.3", "192.168.1.1", "127.0.0.1", "fd00::5", "8.8.8.8", "::1"])
def test_a_listed_name_may_mean_a_private_address(address: str) -> None:
    (found,) = parse_url_hosts(["images.corp.example"])
    assert found.may_reach(ip_address(address))


def answer(monkeypatch: pytest.MonkeyPatch, **names: str) -> list[str]:
    """Names that a name server of our own would have; what was looked up is listed."""
    real, looked_up = socket.getaddrinfo, []

    def look_up(host: Any, port: Any, *given: Any, **options: Any) -> Any:
        name = str(host).lower().strip(".").replace(".", "_")
        if name not in names:
            return real(host, port, *given, **options)
        looked_up.append(host)
        family = socket.AF_INET6 if ":" in names[name] else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (names[name], port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return looked_up


def fetch_from(url: str, *hosts: str, **changed: Any) -> bytes:
    wanted = policy(**{"is_allowed": False, "allow_http": False, "hosts": parse_url_hosts(hosts), **changed})
    return asyncio.run(fetch(url, wanted))


def test_a_listed_private_store_is_fetched_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over http, on its own port, looked up once; the same store by another name or port stays closed."""
    looked_up = answer(monkeypatch, store_corp_example="127.0.0.1", other_corp_example="127.0.0.1")

    async def scene() -> None:
        async with server(picture=picture) as home:
            port = home.rstrip("/").rpartition(":")[2]
            wanted = policy(is_allowed=False, hosts=parse_url_hosts([f"http://store.corp.example:{port}"]))
            assert await fetch(f"http://Store.Corp.Example.:{port}/picture", wanted) == BODY
            for url in (f"http://other.corp.example:{port}/picture", f"http://127.0.0.1:{port}/picture",
                        "http://store.corp.example/picture", f"https://store.corp.example:{port}/picture",
                        "https://example.org/a.png", "ftp://store.corp.example/", "file:///etc/passwd"):  # fmt: skip
                with pytest.raises(FetchError, match="is not one that images are fetched from here"):
                    await fetch(url, wanted)

    asyncio.run(scene())
    assert len(looked_up) == 1


def test_each_redirect_is_held_against_the_list() -> None:
    async def scene() -> None:
        pages = {"first": to("/picture"), "away": to("http://169.254.169.254/latest"), "picture": picture}
        async with server(**pages) as home, server(picture=picture) as other:
            pages_out = {"out": to(f"{other}picture")}
            async with server(**pages_out) as third:
                hosts = parse_url_hosts([home.rstrip("/"), third.rstrip("/")])
                wanted = policy(is_allowed=False, hosts=hosts)
                assert await fetch(f"{home}first", wanted) == BODY
                for url in (f"{home}away", f"{third}out"):
                    with pytest.raises(FetchError, match="is not one that images are fetched from here"):
                        await fetch(url, wanted)

    asyncio.run(scene())


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254"])
def test_a_listed_name_that_comes_to_mean_credentials_is_closed(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    answer(monkeypatch, rebinding_corp_example=address)
    for host in ("rebinding.corp.example", "*.corp.example"):
        with pytest.raises(FetchError, match="leads to no address, or to one that stays closed"):
            fetch_from("https://rebinding.corp.example/", host)


def test_beside_a_list_the_public_internet_is_closed_unless_it_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer(monkeypatch, private_example="10.0.0.1")
    with pytest.raises(FetchError, match="is not one that images are fetched from here"):
        fetch_from("https://private.example/", "images.corp.example")
    with pytest.raises(FetchError, match="does not lead to a web server on the public internet"):
        fetch_from("https://private.example/", "images.corp.example", is_allowed=True)


def test_a_disguised_address_is_no_listed_one() -> None:
    for host in ("0x7f.1", "2130706433", "127.1", "127.0.0.1."):
        with pytest.raises(FetchError):
            fetch_from(f"https://{host}/", "127.0.0.0/8")
    with pytest.raises(FetchError, match="user or password"):
        fetch_from("https://user@images.corp.example/", "images.corp.example")


def test_the_service_fetches_from_its_list_alone(bundle: Path, encoder: Encoder) -> None:
    """The whole of it: a setting, a store on loopback, a vector; and a 400 for everything else."""

    async def show(request: web.Request) -> web.Response:
        return web.Response(body=ODD.read_bytes(), content_type="image/png")

    async def scene() -> tuple[httpx.Response, httpx.Response]:
        async with server(odd=show) as home:
            with serving(bundle, encoder, url_hosts=(home.rstrip("/"),)) as url:
                async with httpx.AsyncClient(timeout=60) as client:
                    first = await client.post(f"{url}/v1/embeddings", json={"input": {"url": f"{home}odd"}})
                    second = await client.post(
                        f"{url}/v1/embeddings", json={"input": {"url": "https://example.org/a.png"}}
                    )
                    return first, second

    found, refused = asyncio.run(scene())
    assert np.abs(np.array(found.json()["data"][0]["embedding"]) - encoder.encode_image(ODD)).max() <= SAME
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "url_not_fetched")
