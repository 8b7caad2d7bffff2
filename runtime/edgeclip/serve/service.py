"""The path of a request through the service, from its normal form to the answer's JSON.

    texts  -> counted, tokenised (long ones in a thread, a slice at a time) -> lane of the text graph   \\
    images -> fetched, or base64 -> decoded, resized -> lane of the image graph  -> cut, encoded

Computing happens in threads: the lanes', the decoder's, or the few of `_threads`. Cancelling `embed` (the client has
gone, or its time is up) takes its inputs out of every queue.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from edgeclip.encoder import Encoder
from edgeclip.engine.unit_vectors import Vectors, find_fault
from edgeclip.errors import InputError, WrongVectorsError
from edgeclip.families.family import Item, Prepared
from edgeclip.inputs.tokenization import check_max_length, is_quick, slices
from edgeclip.manifest import FIRST_GRAPH, Space
from edgeclip.serve.api.request import EmbeddingRequest, RequestLimits, TextItem, TokenItem, modality_of
from edgeclip.serve.api.response import encode_answer, shorten, write_multi_answer
from edgeclip.serve.api.served_model import ServedModel
from edgeclip.serve.api.text_length import check_characters
from edgeclip.serve.errors import ApiError, ending, not_trusted, retry_later, without_paths
from edgeclip.serve.http.open_files import fetches_within_limit
from edgeclip.serve.images.decode_queue import Picture
from edgeclip.serve.images.fetch_queue import ByteRoom, Fetch, FetchQueue
from edgeclip.serve.images.opener import Decoder, ImageOpener
from edgeclip.serve.images.pace import ImageLoad, ImagePace
from edgeclip.serve.metrics import Metrics
from edgeclip.serve.queue.calls import HandOn, LaneAnswer
from edgeclip.serve.queue.chain import Rows, all_or_none, run_through
from edgeclip.serve.queue.lanes import LaneFailed, QueueFull
from edgeclip.serve.readiness import is_doubtful
from edgeclip.serve.settings import Settings
from edgeclip.serve.stages import Stages

_log = logging.getLogger("edgeclip.serve")
# Numbers that are printed on the event loop: half a millisecond's worth. More goes to a thread, which costs 0.1 ms.
_NUMBERS_AT_ONCE = 16_384
# The most URLs in progress at one site, as a multiple of the images that may be in progress.
_URLS_OF_A_SITE = 4
# The factor by which images may come out quicker than any recent ones did.
_DOUBT = 1.25
_FLOAT_BYTES = 4
# A text with a literal padding token needs a mask, and attention with a mask holds T x T numbers for every head: one
# of 8192 tokens took 1.2 GB in the demo's small model, and 0.1 GB without it. So many tokens take 1/16 of that.
_MASKED_TOKENS = 2048

_NONE = Prepared(items=(), cut=())

_Result = TypeVar("_Result")


class Lane(Protocol):
    """A graph's queue: `edgeclip.serve.queue.lanes.Lane`."""

    async def submit(
        self, items: list[Item], *, space: Space, hand_on: HandOn | None, is_handed_on: bool
    ) -> LaneAnswer:
        """The graph's answer to items, in a space."""


@dataclass(slots=True, kw_only=True)
class _Embedded:
    """Some of a request's items: their vectors, tokens, and which of them were cut."""

    indices: tuple[int, ...]
    vectors: Rows
    tokens: int
    cut: tuple[int, ...]


class _Admission:
    """Admits the multi vectors of one request, at most `most`; their bytes count in `room`. A single one is free."""

    def __init__(self, request: EmbeddingRequest, room: ByteRoom, most: int) -> None:
        self.room, self._most, self._count = room, most, 0
        self._each = request.dim * _FLOAT_BYTES if request.space == "multi" else 0

    def take(self, tokens: int) -> None:
        """Admit a vector for each of these tokens; ApiError 400 for too many, 429 where there is no room."""
        if not self._each:
            return
        self._count += tokens
        if self._count > self._most:
            message = (
                f"input has {self._count} tokens or more, and at most {self._most} vectors are given at once; send "
                "several requests"
            )
            raise ApiError(400, message, param="input", code="array_above_max_length")
        self.room.take(tokens * self._each)


class EmbeddingService:
    """An encoder's graphs behind their lanes. The caller starts and ends `lanes`, `decoder` and `fetch`."""

    def __init__(
        self,
        settings: Settings,
        encoder: Encoder,
        *,
        lanes: Mapping[str, Lane],
        decoder: Decoder,
        fetch: Fetch,
        metrics: Metrics,
        distrust: Callable[[str], None],
    ) -> None:
        self._distrust = distrust
        self._settings, self._metrics = settings, metrics
        self._family, self._lanes = encoder.family, lanes
        manifest = encoder.manifest
        # The graphs that another one follows.
        self._handing_on = {FIRST_GRAPH[one] for one in manifest.modalities if len(manifest.way(one)) > 1}
        by_file = {graph.file: metrics.graphs[name] for name, graph in manifest.graphs.items()}
        self._pace = ImagePace([by_file[graph.file] for graph in manifest.way("image")] if manifest.image else [])
        self._threads = ThreadPoolExecutor(max_workers=2, thread_name_prefix="edgeclip-serve")
        self._images = ImageOpener(
            decoder,
            FetchQueue(
                fetch, places=fetches_within_limit(), most_of_a_site=_URLS_OF_A_SITE * settings.max_queued_images
            ),
            self._aside,
            most_images=settings.max_queued_images,
            max_image_bytes=settings.max_image_bytes,
            seconds_per_image=lambda: self._pace.each_s,
        )
        self.model = ServedModel.of(
            manifest,
            max_length=check_max_length(settings.max_length, manifest.text) if manifest.text else None,
            vocabulary=encoder.count_token_ids() if manifest.text else 0,
            max_pixels=settings.max_pixels,
            whole=encoder.whole_manifest,
        )
        _check_room(settings, self.model)
        self.limits = RequestLimits(
            model=self.model,
            max_items=settings.max_items,
            max_images=settings.max_images,
            max_text_chars=settings.max_text_chars,
            max_request_chars=settings.max_request_chars,
            max_image_bytes=settings.max_image_bytes,
            allow_token_ids=settings.allow_token_ids,
            allow_urls=settings.fetches_urls,
        )

    def close(self) -> None:
        """Free the threads."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def embed(
        self, request: EmbeddingRequest, model: str, stages: Stages, room: ByteRoom
    ) -> bytes | AsyncIterator[bytes]:
        """The answer's JSON, which names `model`, many multi vectors in pieces; ApiError where there is none.

        Bytes that are fetched and those of multi vectors count in `room`.
        """
        try:
            vectors, tokens, cut = await self._embed(request, stages, room)
            if isinstance(vectors, list):
                return self._write_multi(vectors, request, model, tokens, cut)
            stages.enter("encode")
            written = await self._aside(
                lambda: encode_answer(
                    _cut(vectors, request),
                    formats=request.formats,
                    is_keyed=request.is_keyed,
                    cut=cut,
                    model=model,
                    tokens=tokens,
                ),
                is_long=len(vectors) * request.dim * len(request.formats) > _NUMBERS_AT_ONCE,
            )
            stages.leave("encode")
            return written
        except WrongVectorsError as error:
            self._distrust(str(error))
            raise not_trusted(self._settings.ready_s) from error

    def too_late(self, request: EmbeddingRequest) -> ApiError:
        """504 for a request whose time is up."""
        has_images = any(modality_of(item) == "image" for item in request.items)
        each_s = self._pace.each_s if has_images else None
        pace = f", and an image takes {each_s:.2g} s at present" if each_s else ""
        limit_s = self._settings.request_timeout_s
        message = f"the answer was not ready within {limit_s:.0f} s{pace}; send fewer inputs at once"
        return ApiError(504, message, code="timeout")

    async def _embed(self, request: EmbeddingRequest, stages: Stages, room: ByteRoom) -> tuple[Rows, int, set[int]]:
        """The vectors of a request, their tokens, and which inputs were cut."""
        admission = _Admission(request, room, self._settings.max_vectors)
        texts = [index for index, item in enumerate(request.items) if modality_of(item) == "text"]
        images = [index for index, item in enumerate(request.items) if modality_of(item) == "image"]
        if not images:  # a query: no task is started
            parts = [await self._embed_texts(request, texts, stages, admission)]
        elif not texts:
            parts = [await self._embed_images(request, images, stages, admission)]
        else:
            parts = await all_or_none(
                [
                    self._embed_texts(request, texts, stages, admission),
                    self._embed_images(request, images, stages, admission),
                ]
            )
        vectors = parts[0].vectors if len(parts) == 1 else _join(parts, len(request.items))
        return vectors, sum(part.tokens for part in parts), {index for part in parts for index in part.cut}

    async def _embed_texts(
        self, request: EmbeddingRequest, indices: Sequence[int], stages: Stages, admission: _Admission
    ) -> _Embedded:
        task = self.model.task_of(request.task, "text")
        given = [(index, request.items[index]) for index in indices]
        texts = {index: item.text for index, item in given if isinstance(item, TextItem)}
        ids = {index: item.ids for index, item in given if isinstance(item, TokenItem)}
        stages.enter("tokenize")
        prepared = await self._tokenize(texts, task) if texts else _NONE
        stages.leave("tokenize")
        items, cut = prepared.items, [list(texts)[place] for place in prepared.cut]
        if ids:
            framed = self._frame(ids, task)
            by_index = dict(zip((*texts, *ids), (*items, *framed.items), strict=True))
            items = tuple(by_index[index] for index in indices)
            cut = sorted([*cut, *(list(ids)[place] for place in framed.cut)])
        for index, item in zip(indices, items, strict=True):
            if item.needs_mask and item.tokens > _MASKED_TOKENS:
                message = (
                    f"input[{index}] holds the padding token, with which at most {_MASKED_TOKENS} tokens are taken"
                )
                raise ApiError(400, message, param=f"input[{index}]", code="context_length_exceeded")
        if cut and not request.is_cut:
            most = self.model.max_length
            raise ApiError(
                400,
                f'{_some(cut)} longer than {most} tokens; shorten, or send "truncate": true for a cut',
                param=f"input[{cut[0]}]",
                code="context_length_exceeded",
            )
        tokens = sum(self._family.billed(item, None) for item in items)
        admission.take(tokens)
        vectors = await self._run(list(items), request.space, stages)
        self._count("text", len(items), tokens, len(cut))
        return _Embedded(indices=tuple(indices), vectors=vectors, tokens=tokens, cut=tuple(cut))

    def _frame(self, ids: Mapping[int, Sequence[int]], task: str | None) -> Prepared:
        """The items of texts that are token ids, by their place in the input; ApiError 400 for wrong ids."""
        found = []
        for index, row in ids.items():
            try:
                found.append(self._family.token_ids([row], task, self.model.max_length))
            except InputError as error:
                place = f"input[{index}]"
                raise ApiError(400, f"{place}: {error}", param=place, code="invalid_value") from error
        cut = tuple(place for place, one in enumerate(found) if one.cut)
        return Prepared(items=tuple(item for one in found for item in one.items), cut=cut)

    async def _tokenize(self, texts: Mapping[int, str], task: str | None) -> Prepared:
        """The items of texts, which are given by their place in the input.

        Each slice waits for its turn in `_threads`, so the largest requests keep others from them for a slice's time,
        some 0.3 s, and a cancelled request ends with its slice.
        """
        every, places = list(texts.values()), list(texts)
        ahead = len(self.model.tasks[task].prompt) if task is not None else 0
        characters = await self._aside(
            lambda: check_characters(
                every, places, most_each=self.limits.max_text_chars, most_together=self.limits.max_request_chars
            ),
            is_long=not is_quick([len(text) for text in every]),
        )
        characters = [count + ahead for count in characters]
        if is_quick(characters):
            return self._family.texts(every, task, self.model.max_length)
        items: list[Item] = []
        cut: list[int] = []
        for some in slices(characters):
            part_of = every[some.start : some.stop]
            part = await self._aside(partial(self._family.texts, part_of, task, self.model.max_length), is_long=True)
            items += part.items
            cut += (some.start + index for index in part.cut)
        return Prepared(items=tuple(items), cut=tuple(cut))

    async def _embed_images(
        self, request: EmbeddingRequest, indices: Sequence[int], stages: Stages, admission: _Admission
    ) -> _Embedded:
        load = ImageLoad(len(indices))
        self._check_time(load)

        def admit(decode_s: float) -> None:
            load.decode_s = decode_s
            self._check_time(load)

        given = {index: request.items[index] for index in indices}
        task = self.model.task_of(request.task, "image")
        with self._images.request(list(given.values()), admission.room, task, admit) as images:

            async def open_one(item: object, index: int) -> Picture:
                picture = await images.open(item, index)
                load.add(picture.item)
                self._pace.note(picture.item)
                self._check_time(load)
                return picture

            stages.enter("images")
            pictures = await all_or_none([open_one(item, index) for index, item in given.items()])
            stages.leave("images")
            sizes = [(picture.width, picture.height) for picture in pictures]
            items = [picture.item for picture in pictures]
            del pictures  # what `items` holds is let go one by one
            tokens = sum(map(self._family.billed, items, sizes))
            admission.take(tokens)
            vectors = await self._run(items, request.space, stages)
        self._count("image", len(indices), tokens)
        return _Embedded(indices=tuple(indices), vectors=vectors, tokens=tokens, cut=())

    def _write_multi(
        self, matrices: list[Vectors], request: EmbeddingRequest, model: str, tokens: int, cut: set[int]
    ) -> bytes | AsyncIterator[bytes]:
        """The answer's JSON: at once where it is short, else in pieces, each made in a thread."""
        pieces = write_multi_answer(
            matrices, formats=request.formats, is_keyed=request.is_keyed, cut=cut, model=model, tokens=tokens
        )
        numbers = sum(matrix.size for matrix in matrices) * len(request.formats)
        return self._in_turn(pieces) if numbers > _NUMBERS_AT_ONCE else b"".join(pieces)

    async def _in_turn(self, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        while (piece := await self._aside(lambda: next(pieces, None), is_long=True)) is not None:
            yield piece

    def _check_time(self, load: ImageLoad) -> None:
        """400 for more images than can be done in time, decoding and all graphs, at the best recent pace.

        Clients repeat a request that was answered with 504, each time for as long, and in vain. When nothing has run
        for as long as a request may take, nothing is known, and the request is tried.
        """
        limit_s, images = self._settings.request_timeout_s, load.images
        if images == 1 or self._pace.best_seconds(load.costs, limit_s) + load.decode_s <= limit_s * _DOUBT:
            return
        each_s = ((self._pace.seconds(load.costs) or 0.0) + load.decode_s) / images
        most = max(1, min(images - 1, int(limit_s / each_s)))
        message = (
            f"input has {images} images, of which one takes {each_s:.2g} s at present: at most {most} would be done "
            f"within {limit_s:.0f} s; send several requests"
        )
        raise ApiError(400, message, param="input", code="array_above_max_length")

    def _count(self, kind: str, inputs: int, tokens: int, cut: int = 0) -> None:
        """Add to the metrics, once the answer is on its way."""

        def count() -> None:
            self._metrics.inputs.labels(kind).inc(inputs)
            self._metrics.tokens.labels(kind).inc(tokens)
            self._metrics.truncated.inc(cut)

        asyncio.get_running_loop().call_soon(count)

    async def _run(self, items: list[Item], space: Space, stages: Stages) -> Rows:
        return await run_through(
            partial(self._submit, stages, space), items, hands_on=items[0].graph in self._handing_on
        )

    async def _submit(
        self,
        stages: Stages,
        space: Space,
        graph: str,
        items: list[Item],
        *,
        hand_on: HandOn | None,
        is_handed_on: bool,
    ) -> LaneAnswer:
        try:
            stages.enter(graph)
            lane = self._lanes[graph]
            answer = await lane.submit(items, space=space, hand_on=hand_on, is_handed_on=is_handed_on)
            stages.leave(graph)
            return answer
        except QueueFull as error:
            raise retry_later(f"the {graph} queue is full; try again later", error.retry_after_s) from error
        except LaneFailed as error:
            if error.__cause__ is None:
                raise ending() from error
            _log.error("the %s graph failed: %s", graph, without_paths(str(error.__cause__ or error)))
            if is_doubtful(error.__cause__):
                self._distrust(str(error.__cause__))
                raise not_trusted(self._settings.ready_s) from error
            raise ApiError(503, f"the {graph} graph failed on its device", code="device_error") from error

    async def _aside(self, work: Callable[[], _Result], *, is_long: bool) -> _Result:
        """`work()`, in a thread when it is long."""
        if not is_long:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)


def _cut(vectors: Vectors, request: EmbeddingRequest) -> Vectors:
    """Vectors of the dimensions that were asked for; WrongVectorsError for one that has no direction in so few."""
    if request.dim < vectors.shape[1] and (fault := find_fault(vectors, request.dim)):
        raise WrongVectorsError(f"a graph answered with {fault}")
    return shorten(vectors, request.dim, is_normalized=request.is_normalized)


def _join(parts: Sequence[_Embedded], count: int) -> Rows:
    """The vectors of all items of a request, in their order."""
    matrices: dict[int, Vectors] = {}
    vectors: Vectors | None = None
    for part in parts:
        if isinstance(part.vectors, list):
            matrices.update(zip(part.indices, part.vectors, strict=True))
            continue
        if vectors is None:
            vectors = np.empty((count, part.vectors.shape[1]), np.float32)
        vectors[list(part.indices)] = part.vectors
    return [matrices[index] for index in range(count)] if vectors is None else vectors


def _check_room(settings: Settings, model: ServedModel) -> None:
    """InputError where the vectors of one answer are more than all requests together may hold."""
    if model.spaces.multi is None:
        return
    needed = settings.max_vectors * model.spaces.multi.dim * _FLOAT_BYTES
    if needed > settings.max_pending_bytes:
        raise InputError(
            f"max_vectors is {settings.max_vectors}, whose {needed} bytes are more than max_pending_bytes, "
            f"{settings.max_pending_bytes}"
        )


def _some(cut: Sequence[int]) -> str:
    shown = ", ".join(f"input[{index}]" for index in cut[:3])
    rest = f" and {len(cut) - 3} more" if len(cut) > 3 else ""
    return f"{shown}{rest} {'is' if len(cut) == 1 else 'are'}"
