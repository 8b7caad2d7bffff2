"""Pictures of strangers are decoded as the encoder would, or refused by a word: from the header, without decoding."""

import asyncio
import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.serve.images.decode_queue import Picture, PictureDecoder
from edgeclip.serve.images.decoder import MOST_SIDE_PX, PictureLimits, judge

SIZE = (60, 40)


def limits(*, max_bytes: int = 1 << 20, max_pixels: int = 60 * 40, max_decode_bytes: int = 1 << 30) -> PictureLimits:
    return PictureLimits(max_bytes=max_bytes, max_pixels=max_pixels, max_decode_bytes=max_decode_bytes)


LIMITS = limits()
TAKEN = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
NOT_TAKEN = ("JPEG2000", "PPM", "ICO", "TGA", "AVIF")


def photo(size: tuple[int, int] = SIZE, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(noise).resize(size).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(data: bytes, encoder: Encoder, allowed: PictureLimits = LIMITS) -> Picture:
    async def scene() -> Picture:
        decoder = PictureDecoder(encoder.prepare_image, allowed, threads=1)
        try:
            with decoder.flow() as flow:
                return await flow.decode(data, "input[3]")
        finally:
            decoder.close()

    return asyncio.run(scene())


def pixels_of(found: Picture | Item) -> NDArray[np.uint8]:
    """The pixels (S, S, 3) of an image's item."""
    item = found if isinstance(found, Item) else found.item
    pixels: NDArray[np.uint8] = item.arrays["pixel_values"]
    return pixels


def refusal(data: bytes, allowed: PictureLimits = LIMITS) -> str:
    """What is said of an image that is refused by its header."""
    with pytest.raises(InputError) as caught:
        judge(data, allowed, "input[3]")
    message = str(caught.value)
    assert message.startswith("input[3]: found ") or message.startswith("input[3]: is no image")
    assert "\n" not in message and "0x" not in message  # no line of a traceback, no address of an object
    return message


@pytest.mark.parametrize("kind", TAKEN)
def test_pixels_are_the_encoder_s_and_the_size_is_the_file_s(kind: str, encoder: Encoder) -> None:
    data = encoded(photo(), kind)
    picture = decoded(data, encoder)
    np.testing.assert_array_equal(pixels_of(picture), pixels_of(encoder.prepare_image(data)))
    assert (picture.width, picture.height) == SIZE


@pytest.mark.parametrize("kind", NOT_TAKEN)
def test_formats_that_their_header_does_not_bound_are_refused(kind: str) -> None:
    Image.init()
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow has no {kind}")
    assert "send JPEG" in refusal(encoded(photo(), kind))


@pytest.mark.parametrize("kind", TAKEN)
def test_the_limit_of_pixels_is_taken_and_one_row_more_is_not(kind: str) -> None:
    width, height = SIZE
    header = judge(encoded(photo(), kind), LIMITS, "a")
    assert (header.width, header.height) == SIZE
    message = refusal(encoded(photo((width, height + 1)), kind))
    assert f"found {width} x {height + 1} pixels" in message and "2400" in message


def test_the_limit_of_bytes_is_taken_and_one_more_is_not(encoder: Encoder) -> None:
    data = encoded(photo(), "PNG")
    exact = limits(max_bytes=len(data))
    assert decoded(data, encoder, exact).width == 60
    with pytest.raises(InputError, match=rf"input\[3\]: found {len(data) + 1} bytes, wanted at most {len(data)}"):
        decoded(data + b"\0", encoder, exact)


def test_the_encoder_s_own_errors_name_the_input(encoder: Encoder) -> None:
    with pytest.raises(InputError, match=r"input\[3\]: is damaged or cut short"):
        decoded(encoded(photo(), "PNG")[:-60], encoder)


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + end


def tiff(width: int, height: int, *tags: tuple[int, int]) -> bytes:
    """A header alone, of RGB in one strip, with more tags."""
    entries = [(256, width), (257, height), (258, 8), (259, 8), (262, 2), (273, 8), (277, 3), (279, 4), *tags]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(entries))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + bytes(4)


def patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def bombs() -> dict[str, bytes]:
    """Small files that say they are huge."""
    gif = encoded(photo(), "GIF")
    bmp = encoded(photo(), "BMP")
    webp = encoded(photo(), "WEBP", lossless=True)
    place = webp.index(b"VP8L") + 9
    sides = struct.pack("<I", struct.unpack("<I", webp[place : place + 4])[0] | 0x0FFFFFFF)
    return {
        "png": png(30_000, 30_000),
        "png, a line": png(1, 1_000_000),
        "png, the largest": png(2**31 - 1, 2**31 - 1),
        "png, no width": png(0, 10),
        "gif": gif[:6] + b"\xff\xff\xff\xff" + gif[10:],
        "jpeg": patched(
            encoded(photo(), "JPEG"), struct.pack(">HH", *reversed(SIZE)), struct.pack(">HH", 65_500, 65_500)
        ),
        "bmp": bmp[:18] + struct.pack("<ii", 40_000, 40_000) + bmp[26:],
        "bmp, negative": bmp[:18] + struct.pack("<ii", -5, 40_000) + bmp[26:],
        "webp": webp[:place] + sides + webp[place + 4 :],
        "tiff": tiff(60_000, 60_000),
        "tiff of one huge tile": tiff(10, 10, (322, 20_000), (323, 20_000), (324, 8), (325, 4)),
        "tiff of tiles of no size": tiff(10, 10, (322, 0), (323, 0), (324, 8), (325, 4)),
    }


@pytest.mark.parametrize("name", bombs())
def test_bombs_are_refused_before_they_are_decoded(name: str) -> None:
    """With the limits of a service, and by what reads headers alone."""
    refusal(bombs()[name], limits(max_bytes=1 << 20, max_pixels=50_000_000 if "line" not in name else 10_000))


def test_a_long_line_within_the_limit_is_decoded(encoder: Encoder) -> None:
    """1 x 100000: resized to fit a square's width, it would be 10 million pixels high."""
    data = encoded(Image.new("RGB", (1, MOST_SIDE_PX), (9, 8, 7)), "PNG")
    picture = decoded(data, encoder, limits(max_bytes=1 << 20, max_pixels=100_000))
    assert (picture.width, picture.height) == (1, MOST_SIDE_PX)
    assert (pixels_of(picture) == (9, 8, 7)).all()


@pytest.mark.parametrize("size", [(1, MOST_SIDE_PX + 1), (MOST_SIDE_PX + 1, 1)])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_a_side_beyond_what_jpeg_can_say_is_refused(kind: str, size: tuple[int, int]) -> None:
    """However few its pixels are: a line of millions took Pillow seconds and a gigabyte."""
    wide = limits(max_pixels=50_000_000)
    assert "wanted sides of at most 65535" in refusal(encoded(Image.new("RGB", size), kind), wide)
    assert judge(encoded(Image.new("RGB", (size[0] // 2 or 1, size[1] // 2 or 1)), kind), wide, "a").cost


def test_a_run_length_bmp_is_refused() -> None:
    bmp = encoded(photo(mode="P"), "BMP")
    assert "compressed BMP" in refusal(bmp[:30] + struct.pack("<I", 1) + bmp[34:])


def test_a_jpeg_of_many_scans_is_refused_and_a_progressive_one_is_not(encoder: Encoder) -> None:
    data = encoded(Image.new("RGB", SIZE, (90, 8, 7)), "JPEG", progressive=True)
    assert decoded(data, encoder).width == SIZE[0]
    last = data[data.rindex(b"\xff\xda") : -2]
    assert "scans" in refusal(data[:-2] + last * 20 + data[-2:])


def tiff_of(strips: list[bytes], size: tuple[int, int], *, overlapping: bool = False) -> bytes:
    """A gray TIFF whose strips are these JPEGs; overlapping: every one is said to reach to the end of the file."""
    width, height = size
    count = len(strips)
    begin = 8 + 2 + 12 * 9 + 4 + 8 * count
    ends = [sum(map(len, strips[:index])) for index in range(count + 1)]
    places = [begin + (0 if overlapping else end) for end in ends[:-1]]
    sizes = [ends[-1] if overlapping else len(strip) for strip in strips]
    at = begin - 8 * count
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 7), (262, 3, 1, 1),
               (273, 4, count, at if count > 1 else places[0]), (277, 3, 1, 1), (278, 4, 1, height // count),
               (279, 4, count, at + 4 * count if count > 1 else sizes[0])]  # fmt: skip
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries))
    written = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return head + written + bytes(4) + struct.pack(f"<{2 * count}I", *places, *sizes) + b"".join(strips)


def test_the_scans_of_jpegs_in_a_tiff_count_too() -> None:
    """A file of 190 KB of them took 8 s to decode."""
    progressive = encoded(Image.new("L", SIZE, 90), "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    many = progressive[:-2] + last * 20 + progressive[-2:]
    assert judge(tiff_of([progressive], SIZE), LIMITS, "input[3]").width == SIZE[0]
    assert "a TIFF of 2" in (told := refusal(tiff_of([many], SIZE))) and "scans" in told
    strip = encoded(Image.new("L", (SIZE[0], 1), 90), "JPEG")
    assert judge(tiff_of([strip] * SIZE[1], SIZE), LIMITS, "input[3]").cost == 10_000  # a scan each, a pass together
    assert "scans" in refusal(tiff_of([strip] * SIZE[1], SIZE, overlapping=True))


def test_bytes_that_look_like_scans_in_a_tiff_without_jpegs_do_not_count() -> None:
    data = encoded(Image.frombytes("L", SIZE, b"\xff\xda" * (SIZE[0] * SIZE[1] // 2)), "TIFF")
    assert judge(data, LIMITS, "input[3]").width == SIZE[0]


def test_an_animation_gives_its_first_frame(encoder: Encoder) -> None:
    frames = [Image.new("RGB", SIZE, color) for color in ("red", "green", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert (pixels_of(decoded(data, encoder)) == (255, 0, 0)).all(), kind


def corpus(seed: int) -> list[bytes]:
    """Files cut short, with bits turned, with bytes put in, one behind the other's beginning; and no files at all."""
    random = np.random.default_rng(seed)
    whole = [encoded(photo(), kind) for kind in TAKEN]
    whole += [encoded(photo(), "JPEG", progressive=True), encoded(photo(mode="P"), "PNG", interlace=1)]
    whole += [encoded(photo(), "TIFF", compression=name) for name in ("tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    broken = [b"", b"\0", b"GIF89a", b"\xff\xd8\xff", b"<svg/>", b"%PDF-1.7", b"PK\3\4", b"RIFF\0\0\0\0WEBP"]
    for data in whole:
        broken += [data[: int(cut)] for cut in random.integers(1, len(data), 6)]
        for _ in range(12):
            turned = bytearray(data)
            for place in random.integers(0, min(len(data), 400), 4):
                turned[place] ^= 1 << int(random.integers(8))
            broken.append(bytes(turned))
        broken.append(data[:20] + random.bytes(200))
        broken.append(random.choice(whole)[:12] + data[12:])
    return broken


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.filterwarnings("ignore")  # Pillow warns of what is odd and readable
def test_broken_images_are_refused_or_decoded_and_nothing_else(seed: int, encoder: Encoder) -> None:
    refused = 0
    for data in corpus(seed):
        try:
            picture = decoded(data, encoder)
        except InputError as error:
            refused += 1
            assert str(error).startswith("input[3]: ") and "\n" not in str(error)
        else:
            assert pixels_of(picture).dtype == np.uint8 and picture.width * picture.height <= LIMITS.max_pixels
    assert refused > 50


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of this process")
def test_bombs_take_no_memory_and_no_time_to_speak_of() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for data in bombs().values():
        with pytest.raises(InputError):
            judge(data, limits(max_bytes=1 << 20, max_pixels=900_000), "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
