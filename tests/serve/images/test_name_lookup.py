"""Names are looked up in threads that the names of one site cannot hold for those of another."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from edgeclip.serve.images.name_lookup import LOOKUPS_AT_ONCE, look_up, site_of


class Names:
    """A resolver that hangs for names below hangs.example, and notes what it was asked."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.asked: list[str] = []

    def get(self, host: Any, port: Any, *given: Any, **options: Any) -> Any:
        self.asked.append(host)
        if host.endswith("hangs.example"):
            assert self.may_go.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[Names]:
    found = Names()
    monkeypatch.setattr(socket, "getaddrinfo", found.get)
    yield found
    found.may_go.set()


def test_names_that_hang_hold_no_other_s(names: Names) -> None:
    """More of one site than there are threads; whoever asked has long gone, and the threads still hang."""

    async def scene() -> None:
        hanging = [asyncio.create_task(look_up(f"a{number}.hangs.example")) for number in range(2 * LOOKUPS_AT_ONCE)]
        await asyncio.sleep(0.1)
        for task in hanging:
            task.cancel()
        await asyncio.gather(*hanging, return_exceptions=True)
        assert len(names.asked) <= LOOKUPS_AT_ONCE // 2
        async with asyncio.timeout(5):
            assert [str(address) for address in await look_up("quick.example")] == ["192.0.2.7"]
        names.may_go.set()
        await asyncio.sleep(0.1)

    asyncio.run(scene())


def test_many_look_ups_of_one_name_are_one(names: Names) -> None:
    async def scene() -> None:
        asking = [asyncio.create_task(look_up("a.hangs.example")) for _ in range(50)]
        await asyncio.sleep(0.05)
        asking[0].cancel()  # the others still wait for it
        names.may_go.set()
        assert [len(await task) for task in asking[1:]] == [1] * 49
        await look_up("a.hangs.example")

    asyncio.run(scene())
    assert names.asked == ["a.hangs.example"] * 2


def test_an_address_is_not_looked_up(names: Names) -> None:
    async def scene() -> list[str]:
        return [str(address) for host in ("192.0.2.1", "2001:db8::1") for address in await look_up(host)]

    assert asyncio.run(scene()) == ["192.0.2.1", "2001:db8::1"]
    assert names.asked == []


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.b.evil.example", "C.evil.example."),
        ("a.shop.co.uk", "b.shop.co.uk"),
        ("2001:db8::1", "2001:db8::ffff:2"),
    ],
)
def test_hosts_of_one_owner_are_one_site(one: str, other: str) -> None:
    assert site_of(one) == site_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("a.example", "b.example"),
        ("a.co.uk", "b.co.uk"),
        ("minio", "minio2"),
        ("10.1.2.3", "10.1.2.4"),
        ("2001:db8:0:1::1", "2001:db8:0:2::1"),
    ],
)
def test_hosts_of_different_owners_are_different_sites(one: str, other: str) -> None:
    assert site_of(one) != site_of(other)
