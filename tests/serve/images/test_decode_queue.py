"""Images are decoded in fair turns and in bounded memory, and no file costs more than its header promised."""

import asyncio
import contextlib
import io
import struct
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.serve.images.decode_queue import LARGE_COST, PictureDecoder
from edgeclip.serve.images.decoder import PictureLimits, judge

LIMITS = PictureLimits(max_bytes=1 << 20, max_pixels=50_000_000, max_decode_bytes=1 << 30)
PATIENCE_S = 20.0


def png(width: int, height: int) -> bytes:
    """Black and white, of few bytes."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()


SMALL, LARGE = png(20, 10), png(5000, 4000)


def item() -> Item:
    """A small image as an item."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    return Item(graph="vision", arrays={"pixel_values": pixels}, tokens=1, alike=pixels.shape)


class Gate:
    """Prepares an image: waits until it may go on, and notes which labels it began and how many ran at once."""

    def __init__(self) -> None:
        self.may_go = threading.Semaphore(0)
        self.began: list[str] = []
        self.running = self.most = 0
        self.threads: set[str] = set()
        self._lock = threading.Lock()

    def __call__(self, image: bytes, /, *, task: str | None, label: str) -> Item:
        with self._lock:
            self.began.append(label)
            self.threads.add(threading.current_thread().name)
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.may_go.acquire(timeout=PATIENCE_S)
        with self._lock:
            self.running -= 1
        return item()


async def until(claim: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not claim():
            await asyncio.sleep(0.002)


class Scene:
    """A decoder at a gate, and clients that ask it."""

    def __init__(self, threads: int, **changed: int) -> None:
        self.gate = Gate()
        self.decoder = PictureDecoder(self.gate, replace(LIMITS, **changed), threads)
        self.tasks: list[asyncio.Task[None]] = []

    async def request(self, name: str, *files: bytes) -> "asyncio.Task[None]":
        """A request of several images, all of which wait or run when this returns."""

        async def ask() -> None:
            with self.decoder.flow() as flow:
                await asyncio.gather(*(flow.decode(data, name) for data in files))

        before = self.known
        self.tasks.append(asyncio.create_task(ask()))
        await until(lambda: self.known == before + len(files))
        return self.tasks[-1]

    @property
    def known(self) -> int:
        return len(self.gate.began) + self.decoder.depth

    async def end(self) -> list[str]:
        """Let all of it go on; the labels in the order in which they began."""
        self.gate.may_go.release(1000)
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.decoder.close()
        return self.gate.began


def test_the_large_images_of_one_request_hold_nobody_s_small_one() -> None:
    """Of two threads one stays free for it; it need not even wait for what is being decoded."""

    async def scene() -> None:
        here = Scene(threads=2)
        await here.request("large", *[LARGE] * 8)
        assert here.gate.began == ["large"]
        await here.request("small", SMALL)
        await until(lambda: here.gate.began == ["large", "small"])
        assert (await here.end()).count("large") == 8 and here.gate.most == 2

    asyncio.run(scene())


def test_with_one_thread_a_small_image_is_next() -> None:
    async def scene() -> list[str]:
        here = Scene(threads=1)
        await here.request("large", *[LARGE] * 8)
        await here.request("small", SMALL)
        return await here.end()

    assert asyncio.run(scene())[:3] == ["large", "small", "large"]


@pytest.mark.parametrize("threads", [1, 2])
def test_many_requests_of_one_large_image_hold_nobody_s_small_one(threads: int) -> None:
    """The same starvation from many connections."""

    async def scene() -> list[str]:
        here = Scene(threads=threads)
        for _ in range(20):
            await here.request("large", LARGE)
        await here.request("small", SMALL)
        return await here.end()

    assert asyncio.run(scene())[:2] == ["large", "small"]


def test_a_request_of_many_small_images_shares_with_one_of_a_few() -> None:
    """Costs count: the few have as much of the threads as the many, so they are done long before them."""

    async def scene() -> list[str]:
        here = Scene(threads=1)
        middle = png(1000, 1000)
        await here.request("many", *[middle] * 60)
        await here.request("few", *[middle] * 2)
        return await here.end()

    order = asyncio.run(scene())
    assert max(place for place, name in enumerate(order) if name == "few") < 12


def test_a_stream_of_small_images_does_not_starve_a_large_one() -> None:
    """One small request comes for each that is done."""

    async def scene() -> int:
        here = Scene(threads=1)
        for _ in range(3):
            await here.request("small", png(1000, 1000))
        await here.request("large", LARGE)
        for _ in range(100):
            if "large" in here.gate.began:
                break
            await here.request("small", png(1000, 1000))
            done = len(here.gate.began)
            here.gate.may_go.release()
            await until(lambda done=done: len(here.gate.began) > done)
        return (await here.end()).index("large")

    assert asyncio.run(scene()) < 90


def test_what_does_not_fit_beside_what_is_decoded_waits_and_is_not_overtaken() -> None:
    """The memory of what runs at once stays below the limit."""
    need = judge(LARGE, LIMITS, "").memory_bytes

    async def scene() -> None:
        here = Scene(threads=4, max_decode_bytes=2 * need - 1)
        await here.request("first", LARGE)
        await here.request("second", LARGE)
        await here.request("small", SMALL)
        await asyncio.sleep(0.05)
        assert here.gate.began[0] == "first" and "second" not in here.gate.began
        here.gate.may_go.release(2)
        await until(lambda: "second" in here.gate.began)
        await here.end()

    asyncio.run(scene())


def test_what_could_never_fit_is_refused_by_its_header() -> None:
    need = judge(LARGE, LIMITS, "").memory_bytes
    tight = PictureLimits(max_bytes=1 << 20, max_pixels=50_000_000, max_decode_bytes=need - 1)
    with pytest.raises(InputError) as caught:
        judge(LARGE, tight, "input[0]")
    assert str(caught.value) == (
        f"input[0]: found 5000 x 4000 pixels that take up to {need} bytes to decode, more than the {need - 1} that "
        "are allowed; scale the image down"
    )


def test_what_is_cancelled_is_not_decoded() -> None:
    async def scene() -> list[str]:
        here = Scene(threads=1)
        await here.request("first", SMALL)
        gone = await here.request("gone", *[SMALL] * 5)
        await here.request("last", SMALL)
        gone.cancel()
        await until(gone.done)
        return await here.end()

    assert asyncio.run(scene()) == ["first", "last"]


def test_decoding_is_not_done_in_the_event_loop_s_thread() -> None:
    async def scene() -> Gate:
        here = Scene(threads=2)
        await here.request("a", *[SMALL] * 8)
        await here.end()
        return here.gate

    gate = asyncio.run(scene())
    assert len(gate.began) == 8 and all(name.startswith("edgeclip-decode") for name in gate.threads)


def test_the_pace_of_decoding_is_told_to_who_admits() -> None:
    """Nothing at first; then seconds that grow with what the request has."""
    told: list[float] = []

    def slow(image: bytes, /, *, task: str | None, label: str) -> Item:
        time.sleep(0.02)
        return item()

    async def scene() -> float:
        decoder = PictureDecoder(slow, LIMITS, threads=2)
        with decoder.flow(admit=told.append) as flow:
            await flow.decode(LARGE, "a")
        with decoder.flow(admit=told.append) as flow:
            await flow.decode(LARGE, "a")
            await flow.decode(LARGE, "a")
        decoder.close()
        return decoder.seconds(judge(LARGE, LIMITS, "").cost)

    each = asyncio.run(scene())
    assert each >= 0.01  # by two threads
    assert told[0] == 0.0 and told[1] >= 0.01 and told[2] == pytest.approx(2 * told[1], rel=0.9)


def test_who_admits_refuses_before_anything_is_decoded() -> None:
    def refuse(seconds: float) -> None:
        raise InputError("too long")

    async def scene() -> list[str]:
        here = Scene(threads=1)
        with here.decoder.flow(admit=refuse) as flow, pytest.raises(InputError, match="too long"):
            await flow.decode(SMALL, "a")
        return await here.end()

    assert asyncio.run(scene()) == []


def peak_of(work: Callable[[], Any]) -> int:
    """By how many bytes the process grew at most during `work`."""

    def read(name: str) -> int:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) << 10 for line in status if line.startswith(name))

    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = read("VmRSS")
    work()
    return read("VmHWM") - before


SIDE = 2000
DRAWN = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)).resize((SIDE, SIDE))


def frames(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    (DRAWN.convert("L") if kind == "GIF" else DRAWN).save(file, kind, **options)
    return file.getvalue()


def png_of_16_bits(*, is_interlaced: bool) -> bytes:
    """RGBA of SIDE x SIDE pixels, all zero."""
    passes = ((8, 8), (8, 8), (4, 8), (4, 4), (2, 4), (2, 2), (1, 2)) if is_interlaced else ((1, 1),)
    rows = b"".join(bytes(1 + 8 * (SIDE // across)) * (SIDE // down) for across, down in passes)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 6, 0, 0, int(is_interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND")


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def costly() -> dict[str, Callable[[], bytes]]:
    """Files that take more memory than their pixels."""
    other = [DRAWN.convert("L").rotate(90)]
    return {
        "png": lambda: frames("PNG", compress_level=1),
        "png, 16 bits": lambda: png_of_16_bits(is_interlaced=False),
        "png, 16 bits, interlaced": lambda: png_of_16_bits(is_interlaced=True),
        "jpeg": lambda: frames("JPEG"),
        "jpeg, progressive": lambda: frames("JPEG", progressive=True, subsampling=0),
        "webp": lambda: frames("WEBP", method=0),
        "webp, animated": lambda: frames("WEBP", save_all=True, append_images=other, method=0),
        "gif, animated": lambda: frames("GIF", save_all=True, append_images=other),
        "tiff, one strip": lambda: frames("TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30),
        "bmp": lambda: frames("BMP"),
    }


@pytest.mark.parametrize("name", costly())
def test_a_decode_takes_no_more_memory_than_its_header_promised(name: str) -> None:
    """Measured; what Pillow needs to load a decoder is not the image's."""
    from edgeclip.inputs.images import decode_image

    try:
        data = costly()[name]()
        open("/proc/self/clear_refs", "w").close()
    except OSError:
        pytest.skip("this system tells no peak of memory, or this Pillow has no such format")
    promised = judge(data, PictureLimits(max_bytes=1 << 30, max_pixels=1 << 30, max_decode_bytes=1 << 40), "a")
    small = DRAWN.resize((20, 20))
    with io.BytesIO() as file:
        small.save(file, name.partition(",")[0].upper())
        decode_image(file.getvalue(), label="")
    assert peak_of(lambda: decode_image(data, label="")) <= promised.memory_bytes + (4 << 20)
    assert promised.memory_bytes <= 24 * SIDE * SIDE + len(data)


def parts() -> dict[str, bytes]:
    """Files in very many parts, each of which costs Python some microseconds."""
    whole = png(20, 10)
    end = whole.index(b"IDAT") - 4
    count = 60_000
    entries = sorted([(256, 4, 10), (257, 4, 10), (258, 4, 8), (259, 4, 1), (262, 4, 1), (278, 4, 1)])
    body = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    strips = struct.pack("<HHII", 273, 4, count, 200) + struct.pack("<HHII", 279, 4, count, 200)
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries) + 2) + body + strips + bytes(4)
    jpeg = io.BytesIO()
    DRAWN.resize((8, 8)).save(jpeg, "JPEG")
    gif = io.BytesIO()
    DRAWN.resize((8, 8)).save(gif, "GIF")
    image = gif.getvalue().index(b"\x2c\0\0\0\0\x08\0\x08\0")
    return {
        "png, chunks before its pixels": whole[:end] + chunk(b"abCd") * count + whole[end:],
        "png, few chunks of none": whole[:end] + chunk(b"prVt") * 1100 + whole[end:],
        "png, chunks behind its pixels": whole[:-12] + chunk(b"abCd") * count + whole[-12:],
        "jpeg, segments": jpeg.getvalue()[:2] + b"\xff\xe5\0\2" * count + jpeg.getvalue()[2:],
        "jpeg, filling": jpeg.getvalue()[:2] + b"\xff" * count + jpeg.getvalue()[2:],
        "gif, comments": gif.getvalue()[:image] + b"\x21\xfe\1a\0" * count + gif.getvalue()[image:],
        "tiff, strips": tiff.ljust(200) + bytes(4 * count),
    }


@pytest.mark.parametrize("name", parts())
def test_a_file_of_very_many_parts_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="input.0.: (found a file in too many|is no image that is taken)"):
        judge(parts()[name], LIMITS, "input[0]")


def test_headers_that_take_long_hold_nobody_s_small_image() -> None:
    """They are judged in turns: after one of them, not after all that one request has."""
    judged: list[str] = []

    class Noted(bytes):
        """A file that notes when it is judged."""

        def startswith(self, *given: Any) -> bool:
            judged.append("slow" if len(self) > 1000 else "quick")
            time.sleep(0.01)
            return super().startswith(*given)

    async def scene() -> None:
        decoder = PictureDecoder(lambda image, /, *, task, label: item(), LIMITS, threads=1)

        async def ask(*files: bytes) -> None:
            with decoder.flow() as flow:
                await asyncio.gather(*(flow.decode(data, "") for data in files))

        slow = [asyncio.create_task(ask(*[Noted(SMALL + bytes(2000))] * 50)) for _ in range(2)]
        await until(lambda: judged)
        await ask(Noted(SMALL))
        assert judged.index("quick") <= 3
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        count = len(judged)
        await asyncio.sleep(0.05)
        assert len(judged) <= count + 1  # what was given up is not judged any more
        decoder.close()

    asyncio.run(scene())


def test_many_packed_chunks_in_a_png_are_refused() -> None:
    """Each profile is unpacked, to a megabyte."""
    whole, packed = png(20, 10), b"a\0\0" + zlib.compress(bytes(1 << 20))
    end = whole.index(b"IDAT") - 4
    assert judge(whole[:end] + chunk(b"iCCP", packed) + whole[end:], LIMITS, "").width == 20
    with pytest.raises(InputError, match="found a file in too many chunks"):
        judge(whole[:end] + chunk(b"iCCP", packed) * 65 + whole[end:], LIMITS, "")


def test_compressed_texts_in_a_png_do_not_unpack_without_end() -> None:
    """Each of them unpacks a kilobyte to a megabyte."""
    whole, bomb = png(20, 10), zlib.compress(bytes(50 << 20))
    end = whole.index(b"IDAT") - 4
    for name, body in ((b"zTXt", b"a\0\0" + bomb), (b"iCCP", b"a\0\0" + bomb), (b"iTXt", b"a\0\1\0\0\0" + bomb)):
        data = whole[:end] + chunk(name, body) * 5 + whole[end:]

        def look(data: bytes = data) -> None:
            with contextlib.suppress(InputError):
                judge(data, LIMITS, "a")

        assert peak_of(look) < 80 << 20, name


def test_a_large_image_is_one_that_takes_a_core_for_long() -> None:
    assert judge(SMALL, LIMITS, "").cost < LARGE_COST < judge(LARGE, LIMITS, "").cost
