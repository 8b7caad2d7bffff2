"""Read a request: its body within limits, as JSON."""

import asyncio
import re
from collections.abc import Mapping

import orjson
from starlette.requests import ClientDisconnect

from edgeclip.serve.api.request import EmbeddingRequest, RequestLimits, parse_request, token_ids_refused
from edgeclip.serve.errors import ApiError
from edgeclip.serve.http.body_faults import explain
from edgeclip.serve.http.exchange import Receive
from edgeclip.serve.http.json_tokens import holds_more
from edgeclip.serve.http.pending_bytes import Room
from edgeclip.serve.settings import Settings

_JSON = b"application/json"
# A longer body is parsed in a thread: a text of this many bytes takes the event loop 0.1 ms.
_BYTES_AT_ONCE = 64 << 10
# The most brackets, braces, colons and commas of a request beside its items, and in each of them.
_TOKEN_IDS = re.compile(rb'"(inputs?)"\s*:\s*\[[\s\[]*[0-9]')
_VALUES_BESIDE, _VALUES_OF_AN_ITEM = 1024, 8


async def read_body(headers: Mapping[bytes, bytes], receive: Receive, settings: Settings, room: Room) -> bytearray:
    """The body; one that is too large is refused by its header before it is read, or as soon as it is too large.

    ClientDisconnect when its client goes away, or takes longer than `edgeclip.serve.http.connections` waits for a
    body.
    """
    kind = headers.get(b"content-type", _JSON)
    if kind != _JSON and not _is_json(kind):
        raise ApiError(
            415, "the body must be JSON: send Content-Type: application/json", code="unsupported_media_type"
        )
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise ApiError(415, "compressed bodies are not taken", code="unsupported_encoding")
    too_large = f"the body has more than {settings.max_body_bytes} bytes; send several requests"
    if int(headers.get(b"content-length", 0)) > settings.max_body_bytes:
        raise ApiError(413, too_large, code="body_too_large")
    # One block that grows where it lies: a list of a thousand chunks would be joined into a copy, and whatever is
    # allocated meanwhile would lie above the chunks and keep the C library from giving their memory back.
    body = bytearray()
    values = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        if len(body) + len(chunk) > settings.max_body_bytes:
            raise ApiError(413, too_large, code="body_too_large")
        # `[[],[],...` takes 25 times its size when it is parsed, and the event loop for as long.
        values += sum(map(chunk.count, (b",", b"[", b"{")))
        if values > settings.max_values:
            text = f"the body has more than {settings.max_values} commas and brackets; send several requests"
            raise ApiError(413, text, code="body_too_large")
        room.take(len(chunk))
        body += chunk
        if not message.get("more_body"):
            break
    # Parsing a million names or empty lists holds the event loop for a second, in whichever thread it is done.
    most = _VALUES_BESIDE + _VALUES_OF_AN_ITEM * settings.max_items
    counts_commas = not settings.allow_token_ids
    if values > most and await asyncio.to_thread(holds_more, body, most, counts_commas=counts_commas):
        if counts_commas and (ids := _TOKEN_IDS.search(body)):
            raise token_ids_refused(ids[1].decode())
        text = f"the body has more than {most} values and names, for at most {settings.max_items} inputs"
        raise ApiError(413, f"{text}; send several requests", code="body_too_large")
    return body


def _is_json(kind: bytes) -> bool:
    kind = kind.partition(b";")[0].strip().lower()
    return kind == _JSON or (kind.startswith(b"application/") and kind.endswith(b"+json"))


async def parse_aside(body: bytes | bytearray, limits: RequestLimits) -> EmbeddingRequest:
    """`parse`, in a thread where the body is long."""
    if len(body) <= _BYTES_AT_ONCE:
        return parse(body, limits)
    return await asyncio.to_thread(parse, body, limits)


def parse(body: bytes | bytearray, limits: RequestLimits) -> EmbeddingRequest:
    """The normal form of a body; ApiError 400 for what is no JSON, or no request."""
    try:
        return parse_request(orjson.loads(body), limits)
    except orjson.JSONDecodeError as error:
        refusal = explain(body, error)
    except ApiError as error:
        # Its traceback holds the document, and the error lives until it is answered: what others allocate meanwhile
        # would lie among a document's million objects, and Python's allocator could give none of their memory back.
        raise error.with_traceback(None) from None
    raise refusal
