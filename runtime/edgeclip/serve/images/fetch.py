"""Fetch an image by its URL, so that a client reaches nothing through this server that it cannot reach by itself.

A host is resolved once, every address it has is judged (`edgeclip.serve.images.addresses`), and the connection goes
to those very addresses, so that a name cannot change its meaning between the two (DNS rebinding). Redirects are
followed by hand, each judged like the first. No proxy, cookie, password or compression is used: a proxy would
resolve names without a check, and a compressed body has no size. Error messages say nothing of the network behind
this server.

`edgeclip.serve.images.fetch_queue` decides when a URL is fetched.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeclip import __version__
from edgeclip.errors import InputError, MissingExtraError
from edgeclip.host.installation import install_command
from edgeclip.serve.images.addresses import Address, is_plain_host, is_public_web
from edgeclip.serve.images.name_lookup import look_up
from edgeclip.serve.images.url_hosts import UrlHost

if TYPE_CHECKING:
    from aiohttp import ClientResponse, ClientSession, TCPConnector
    from yarl import URL

_CHUNK_BYTES = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_PUBLIC = "the URL does not lead to a web server on the public internet"
_NOT_LISTED = "the URL's host, with its scheme and port, is not one that images are fetched from here"
_CLOSED = "the URL's host is listed, but its name leads to no address, or to one that stays closed"
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": f"edgeclip/{__version__}"}


class FetchError(InputError):
    """Raised where a URL gave nothing. Its message may be shown to the client and does not hold the URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchPolicy:
    """What may be fetched: from public hosts if `is_allowed`, from `hosts` in any case.

    `timeout_s` and `max_bytes` are of the whole, redirects included.
    """

    is_allowed: bool
    allow_http: bool
    max_bytes: int
    timeout_s: float
    max_redirects: int
    hosts: tuple[UrlHost, ...] = ()


async def fetch(
    url: str,
    policy: FetchPolicy,
    *,
    is_reachable: Callable[[Address, int], bool] = is_public_web,
    take: Callable[[int], None] = lambda count: None,
) -> bytes:
    """The bytes that an https URL gives, with `policy.allow_http` an http one too. FetchError when it gives none.

    `is_reachable` judges every address and port before a connection to a host that is not listed. `take` is called
    with the number of bytes of each piece as it comes; what it raises ends the fetch.
    """
    if not policy.is_allowed and not policy.hosts:
        raise FetchError("URLs are not fetched here; send the image as base64")
    try:
        from aiohttp import ClientError
        from yarl import URL
    except ImportError as error:
        raise MissingExtraError(f"fetching URLs needs aiohttp; `{install_command('serve')}`") from error
    try:
        async with asyncio.timeout(policy.timeout_s):
            target = URL(url)
            for _ in range(policy.max_redirects + 1):
                answer = await _visit(target, policy, is_reachable, take)
                if isinstance(answer, bytes):
                    return answer
                target = target.join(answer)
            raise FetchError(f"the URL redirects more than {policy.max_redirects} times")
    except TimeoutError as error:
        raise FetchError(f"the URL gave no image within {policy.timeout_s:g} s") from error
    except (ClientError, OSError) as error:
        raise FetchError("the URL's server could not be reached, or broke off") from error
    except ValueError as error:  # what yarl and aiohttp find wrong with a URL
        raise error if isinstance(error, FetchError) else FetchError("the URL is malformed") from error


async def _visit(
    url: "URL", policy: FetchPolicy, is_reachable: Callable[[Address, int], bool], take: Callable[[int], None]
) -> "bytes | URL":
    """The bytes that a URL gives, or the URL that it redirects to."""
    name = (url.raw_host or "").lower().removesuffix(".")
    listed = next((entry for entry in policy.hosts if entry.is_of(url.scheme, name, url.port or 0)), None)
    schemes = ("https", "http") if policy.allow_http else ("https",)
    if listed is None and not policy.is_allowed:
        raise FetchError(_NOT_LISTED)
    if listed is None and url.scheme not in schemes:
        raise FetchError(f"the URL is not {' or '.join(schemes)}")
    if url.raw_user is not None or url.raw_password is not None:
        raise FetchError("the URL holds a user or password")
    host, port = url.raw_host, url.port
    if not host or not port or not is_plain_host(host):
        raise FetchError(_NOT_PUBLIC)
    addresses = await look_up(host)
    if not addresses or not all(
        is_reachable(address, port) if listed is None else listed.may_reach(address) for address in addresses
    ):
        # The same words for both: else they tell which internal names there are.
        raise FetchError(_NOT_PUBLIC if listed is None else _CLOSED)
    async with _session(_connector_to(addresses)) as session, session.get(url, allow_redirects=False) as response:
        return await _read(response, policy.max_bytes, take)


async def _read(response: "ClientResponse", max_bytes: int, take: Callable[[int], None]) -> "bytes | URL":
    from yarl import URL

    if response.status in _REDIRECTS and (location := response.headers.get("Location")):
        return URL(location)
    if response.status != 200:
        raise FetchError(f"the URL's server answered with status {response.status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise FetchError("the URL's server compresses what was asked for plain")
    too_large = (
        f"the URL gives more than {max_bytes} bytes"  # no error yet: its traceback would hold itself, and the body
    )
    if (response.content_length or 0) > max_bytes:
        raise FetchError(too_large)
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
        if len(body) + len(chunk) > max_bytes:
            raise FetchError(too_large)
        take(len(chunk))
        body += chunk
    return bytes(body)


def _session(connector: "TCPConnector") -> "ClientSession":
    """A session for one request: no cookie or connection outlives it."""
    from aiohttp import ClientSession, ClientTimeout

    return ClientSession(
        connector=connector,
        headers=_HEADERS,
        auto_decompress=False,
        timeout=ClientTimeout(total=None),  # `fetch` has one for the whole
        trust_env=False,
    )


def _connector_to(addresses: Sequence[Address]) -> "TCPConnector":
    """A connector that connects to these addresses, even if the name means others by now."""
    from aiohttp import TCPConnector
    from aiohttp.abc import AbstractResolver, ResolveResult

    class Judged(AbstractResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host,
                    host=str(address),
                    port=port,
                    family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                    proto=socket.IPPROTO_TCP,
                    flags=socket.AI_NUMERICHOST,
                )
                for address in addresses
            ]

        async def close(self) -> None:
            pass

    return TCPConnector(resolver=Judged(), use_dns_cache=False, force_close=True)
