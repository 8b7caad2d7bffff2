"""Fetch URLs in turns, so that a server that hangs does not hold up the URLs of others.

A URL waits for a place (`edgeclip.serve.queue.fair_places`), which is its own until its bytes are there and not while
they are decoded. Places are shared by site (`edgeclip.serve.images.name_lookup.site_of`) and turns by request. A
request has few images at once that are being fetched or are fetched and not yet decoded, so that its images do not
pile up in memory; their bytes count in the room of its body as they come.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Protocol
from urllib.parse import urlsplit

from edgeclip.serve.errors import retry_later
from edgeclip.serve.images.name_lookup import site_of
from edgeclip.serve.queue.fair_places import FairPlaces

# The most images of one request between the beginning of a fetch and the end of decoding.
MOST_OF_A_REQUEST = 8
# The number of sites that may each have the most URLs of a site in progress.
_SITES = 8


class Fetch(Protocol):
    """Gets the bytes of a URL: `edgeclip.serve.images.fetch.fetch`."""

    async def __call__(self, url: str, /, *, take: Callable[[int], None]) -> bytes:
        """Raises FetchError; `take` is called with the number of bytes of each piece, and may raise."""


class ByteRoom(Protocol):
    """Counts the bytes of a request: `edgeclip.serve.http.pending_bytes.Room`."""

    def take(self, count: int) -> None:
        """Count bytes more; ApiError 429 where there is no room."""

    def give(self, count: int) -> None:
        """Count bytes less."""

    def incomplete(self) -> AbstractContextManager[None]:
        """The time in which bytes come; the request may be given up for another."""


class FetchQueue:
    """Fetches the URLs of all requests: `places` at once, and at one site `most_of_a_site` are fetched or wait."""

    def __init__(self, fetch: Fetch, *, places: int, most_of_a_site: int) -> None:
        self._fetch, self._most = fetch, most_of_a_site
        self._places = FairPlaces(places)
        self._in_progress: Counter[str] = Counter()

    @contextmanager
    def request(self, urls: Collection[str], room: ByteRoom) -> Iterator["RequestedUrls"]:
        """Fetch the URLs of one request; ApiError 429 where too many URLs of their sites are in progress."""
        sites = Counter(map(_site_of_url, urls))
        is_full = self._in_progress.total() + len(urls) > _SITES * self._most
        if is_full or any(self._in_progress[site] + count > self._most for site, count in sites.items()):
            raise retry_later("too many images of these hosts are being fetched; try again later", 1)
        self._in_progress += sites
        number = self._places.new_request()
        try:
            yield RequestedUrls(self._fetch, self._places, number, room)
        finally:
            self._in_progress -= sites
            self._places.forget(number)


class RequestedUrls:
    """The URLs of one request. `FetchQueue.request` makes it."""

    def __init__(self, fetch: Fetch, places: FairPlaces, number: int, room: ByteRoom) -> None:
        self._fetch, self._places, self._number, self._room = fetch, places, number, room
        self._few = asyncio.Semaphore(MOST_OF_A_REQUEST)

    @asynccontextmanager
    async def fetched(self, url: str) -> AsyncIterator[bytes]:
        """The bytes of a URL, counted in the request's room until the block ends. Raises what the fetch raises."""
        taken = 0

        def take(count: int) -> None:
            nonlocal taken
            self._room.take(count)
            taken += count

        async with self._few:
            try:
                async with self._places.place(self._number, _site_of_url(url)):
                    with self._room.incomplete():
                        data = await self._fetch(url, take=take)
                yield data
            finally:
                self._room.give(taken)


def _site_of_url(url: str) -> str:
    try:
        return site_of(urlsplit(url).hostname or "")
    except ValueError:  # malformed: it fails when it is fetched
        return ""
