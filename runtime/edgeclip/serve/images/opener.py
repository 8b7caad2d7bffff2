"""Turn an image of a request, given as base64 or a URL, into an item of the graph that takes images, within limits.

Decoded images that wait for the graph are memory, so their number is bounded. An image that was sent counts from the
beginning, one behind a URL from when its bytes are there: until then it may hang, and takes no pixel's memory.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from edgeclip.errors import InputError
from edgeclip.serve.api.image_strings import ImageItem, UrlItem, decode_base64
from edgeclip.serve.errors import ApiError, retry_later
from edgeclip.serve.images.decode_queue import Flow, Picture
from edgeclip.serve.images.fetch import FetchError
from edgeclip.serve.images.fetch_queue import ByteRoom, FetchQueue, RequestedUrls

# Characters of base64 that are decoded on the event loop; more go to a thread.
_CHARACTERS_AT_ONCE = 64 << 10


class Decoder(Protocol):
    """Decodes images: `edgeclip.serve.images.decode_queue.PictureDecoder`."""

    def flow(self, task: str | None, admit: Callable[[float], None]) -> AbstractContextManager[Flow]:
        """Decode the images of one request; `admit` gets the seconds that decoding them takes."""


class RunAside(Protocol):
    """Decodes base64: at once, or in a thread where `is_long`."""

    def __call__(self, work: Callable[[], bytes], /, *, is_long: bool) -> Awaitable[bytes]:
        """The result of `work`."""


class ImageOpener:
    """Opens the images of all requests, at most `most_images` decoded or to be decoded at once."""

    def __init__(
        self,
        decoder: Decoder,
        fetches: FetchQueue,
        aside: RunAside,
        *,
        most_images: int,
        max_image_bytes: int,
        seconds_per_image: Callable[[], float | None],
    ) -> None:
        self.decoder, self.fetches, self.aside = decoder, fetches, aside
        self.max_image_bytes = max_image_bytes
        self._most_images, self._seconds_per_image = most_images, seconds_per_image
        self._in_progress = 0

    @contextmanager
    def request(
        self, items: Sequence[object], room: ByteRoom, task: str | None, admit: Callable[[float], None]
    ) -> Iterator["RequestedImages"]:
        """Open the images of one request, which share a task and hold their places until the block ends.

        ApiError 429 where too many are in progress; `admit` is called with the seconds that decoding takes.
        """
        urls = [item.url for item in items if isinstance(item, UrlItem)]
        with self.fetches.request(urls, room) as requested, self.decoder.flow(task, admit) as flow:
            images = RequestedImages(self, requested, flow)
            try:
                images.count(len(items) - len(urls))
                yield images
            finally:
                self._in_progress -= images.counted

    def enter(self, images: int) -> None:
        """Count more images as in progress; ApiError 429 where they are too many."""
        if self._in_progress + images > self._most_images:
            each_s = self._seconds_per_image() or 1.0
            raise retry_later("too many images are waiting; try again later", each_s * self._in_progress)
        self._in_progress += images


class RequestedImages:
    """The images of one request. `ImageOpener.request` makes it."""

    def __init__(self, opener: ImageOpener, urls: RequestedUrls, flow: Flow) -> None:
        self._opener, self._urls, self._flow = opener, urls, flow
        self.counted = 0

    def count(self, images: int) -> None:
        """Count images as in progress until the request ends; ApiError 429 where they are too many."""
        self._opener.enter(images)
        self.counted += images

    async def open(self, item: object, index: int) -> Picture:
        """The image `input[index]` as an item; ApiError where it cannot be opened."""
        label = f"input[{index}]"
        if isinstance(item, UrlItem):
            try:
                async with self._urls.fetched(item.url) as data:
                    self.count(1)
                    return await self._decode(data, label)
            except FetchError as error:
                raise ApiError(400, f"{label}: {error}", param=label, code="url_not_fetched") from error
        assert isinstance(item, ImageItem)
        text = item.data
        try:
            data = await self._opener.aside(lambda: decode_base64(text), is_long=len(text) > _CHARACTERS_AT_ONCE)
        except ValueError as error:
            message = f"{label}: neither base64 nor a URL"
            raise ApiError(400, message, param=label, code="invalid_base64") from error
        return await self._decode(data, label)

    async def _decode(self, data: bytes, label: str) -> Picture:
        most = self._opener.max_image_bytes
        if len(data) > most:
            message = f"{label} has {len(data)} bytes, at most {most} are taken"
            raise ApiError(413, message, param=label, code="image_too_large")
        try:
            return await self._flow.decode(data, label)
        except InputError as error:
            raise ApiError(400, str(error), param=label, code="invalid_image") from error
