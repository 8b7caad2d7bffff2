"""Look up the addresses of a host that an unknown client names.

The system's resolver blocks a thread for as long as the client's name server likes, and cancelling does not free
it. So these look-ups have threads of their own; many look-ups of one name are one; and the names of one site
(`site_of`) get a share of the threads (`edgeclip.serve.queue.fair_places`), however many of them hang.
"""

import asyncio
import functools
import socket
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address, ip_address, ip_network
from weakref import WeakKeyDictionary

from edgeclip.serve.images.addresses import Address
from edgeclip.serve.queue.fair_places import FairPlaces

LOOKUPS_AT_ONCE = 32
_IPV6_SITE_BITS = 64
# Below a country's domain a short second label belongs to the domain, as in co.uk and com.au.
_LONGEST_KIND = 3


def site_of(host: str) -> str:
    """The site of a host: the domain of a name, the network of an IPv6 address; its owner can make many hosts."""
    host = host.lower().removesuffix(".")
    try:
        address = ip_address(host)
    except ValueError:
        labels = host.split(".")
        is_of_country = len(labels) > 2 and len(labels[-1]) == 2 and len(labels[-2]) <= _LONGEST_KIND
        return ".".join(labels[-3 if is_of_country else -2 :])
    if isinstance(address, IPv4Address):
        return host
    return str(ip_network((int(address), _IPV6_SITE_BITS), strict=False))


async def look_up(host: str) -> list[Address]:
    """Every address of a host; none for a name that has none. An address that is written out is not looked up."""
    try:
        return [ip_address(host)]
    except ValueError:
        pass
    loop = asyncio.get_running_loop()
    if (lookups := _of_loops.get(loop)) is None:
        lookups = _of_loops[loop] = _Lookups()
    return await lookups.get(host)


class _Lookups:
    """The look-ups of one event loop."""

    def __init__(self) -> None:
        self._places = FairPlaces(LOOKUPS_AT_ONCE)
        self._running: dict[str, asyncio.Task[list[Address]]] = {}

    async def get(self, host: str) -> list[Address]:
        task = self._running.get(host)
        if task is None:
            task = self._running[host] = asyncio.create_task(self._run(host))
            task.add_done_callback(lambda _: self._running.pop(host))
        return await asyncio.shield(task)  # others may wait for it, and its thread goes on in any case

    async def _run(self, host: str) -> list[Address]:
        request = self._places.new_request()
        try:
            async with self._places.place(request, site_of(host)):
                found = await asyncio.get_running_loop().run_in_executor(
                    _threads(), functools.partial(socket.getaddrinfo, host, None, type=socket.SOCK_STREAM)
                )
        except (OSError, UnicodeError):
            return []
        finally:
            self._places.forget(request)
        return list({ip_address(str(where[0])): None for *_, where in found})


_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lookups] = WeakKeyDictionary()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=LOOKUPS_AT_ONCE, thread_name_prefix="edgeclip-resolve")
