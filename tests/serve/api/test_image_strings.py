"""Which strings are images: every form that clients send, and no text that looks like one."""

import base64
import contextlib
import io
import json
import textwrap
import urllib.parse

import numpy as np
import pytest
from PIL import Image, features

from edgeclip.serve.api.image_strings import (
    ImageItem,
    ImageStringError,
    UrlItem,
    decode_base64,
    find_image,
    read_image,
)
from tests.conftest import GOLDEN

FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "ICO", *["AVIF"] * features.check("avif"))


def file_of(kind: str, size: int) -> bytes:
    """An image of noise, so that its base64 has every character."""
    pixels = np.random.default_rng(1).integers(0, 256, (size, size, 3), np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, kind)
        return file.getvalue()


FILE = file_of("PNG", 24)
BASE64 = base64.b64encode(FILE).decode()


def found_file(string: str) -> bytes | None:
    """The file that a plain string is taken for."""
    found = find_image(string)
    assert not isinstance(found, UrlItem)
    return None if found is None else decode_base64(found.data)


@pytest.mark.parametrize("size", [1, 16, 300])
@pytest.mark.parametrize("kind", FORMATS)
def test_base64_of_an_image_file_is_that_image(kind: str, size: int) -> None:
    """In either alphabet, without padding, in lines, in lines that a client joined by spaces."""
    file = file_of(kind, size)
    whole = base64.b64encode(file).decode()
    lines = textwrap.wrap(whole, 76)
    forms = [
        *(whole, whole.rstrip("="), base64.urlsafe_b64encode(file).decode(), f"\t {whole}\r\n", f"\ufeff{whole}"),
        *(str(base64.b64encode(file)), json.dumps(whole), f"'{whole}'"),
        *("\n".join(lines), "\r\n".join(lines), " ".join(lines), "\n".join(f"    {line}" for line in lines)),
    ]
    assert [found_file(form) == file for form in forms] == [True] * len(forms)


@pytest.mark.parametrize(
    "head",
    [
        "data:image/png;base64,",
        "data:image/anything;base64,",
        "data:;base64,",
        "data:base64,",
        "data:application/octet-stream;base64,",
        "data:text/plain;base64,",
        "DATA:IMAGE/PNG;BASE64,",
        "data:image/png;name=a.png;charset=utf-8;base64,",
        'data:image/svg+xml;name="a b.svg";base64,',
        "data: image/png; base64, ",
    ],
)
def test_a_data_uri_in_base64_is_an_image_in_every_form(head: str) -> None:
    for string in (
        head + BASE64,
        f" \n{head}{BASE64}\n",
        json.dumps(head + BASE64).replace("\\", ""),
        head + "\n".join(textwrap.wrap(BASE64, 64)),
    ):
        assert found_file(string) == FILE
        item = read_image(string)
        assert isinstance(item, ImageItem) and decode_base64(item.data) == FILE
    escaped = head + urllib.parse.quote(BASE64, safe="")
    assert found_file(escaped) == FILE


@pytest.mark.parametrize("data", ["AAAA", "b'iVBORw0KGgo='", "undefined", "...", BASE64[:30] + "\u2026"])
def test_a_data_uri_is_an_image_also_when_its_data_is_damaged(data: str) -> None:
    """It is refused where it is decoded; as a text it would be embedded."""
    assert find_image(f"data:image/png;base64,{data}") == ImageItem(data=data)


@pytest.mark.parametrize(
    "string",
    [
        "data:image/png,%89PNG%0D%0A%1A%0A",
        "data:image/svg+xml;utf8,<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 1 1'/>",
        "data:application/octet-stream,%89PNG%0D%0A%1A%0A",
        "data:image/gif;base6",
        "data:image/png;base64,",
        "data:image/png;base64, \n",
    ],
)
def test_a_data_uri_that_is_no_base64_of_an_image_is_an_error(string: str) -> None:
    for read in (find_image, read_image):
        with pytest.raises(ImageStringError) as caught:
            read(string)
        assert "wanted" in str(caught.value) or "is empty" in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "https://x.org/a.png",
        " http://x.org/A.JPG ",
        "HTTPS://x.org/deep/er/a.jpeg?w=1&h=2",
        "https://x.org/a.webp#top",
        "https://x.org/get?file=a.gif",
        "https://x.org/\u6d77.avif",
        "s3://pictures/a.tiff",
        "file:///home/a.heic",
        '"https://x.org/a.png"',
    ],
)
def test_the_url_of_an_image_file_is_found(url: str) -> None:
    assert find_image(url) == UrlItem(url=url.strip(' "'))


TEXTS = [
    "a red bicycle",
    "",
    " ",
    "\ufeff",
    "iVBORw0KGgo",
    "iVBORw0KGgo= is how a PNG begins in base64",
    "/9j/4AAQSkZJRgABAQ",
    "/9j/ is what JPEGs smell of",
    "/9j/4/home/someone/projects/pictures/holidays/2023",
    "Qk0",
    "Qk0gaXMgaG93IGJpdG1hcHMgYmVnaW4gYW5kIHNvIGRvIG1hbnk=",
    "BMW 320d, 1999, BM",
    "R0lGODlh",
    "UklGR" + "A" * 60,
    "AAAA" * 20,
    "A" * 100_000,
    f'"{BASE64}',
    f"b'{BASE64}",
    "'" + "A" * 40 + "'",
    f"'{BASE64}' is a picture of noise",
    "b'",
    '"' * 40,
    "ACGT" * 10_000,
    "Donaudampfschifffahrtselektrizit" * 3,
    "hippopotomonstrosesquippedaliophobia",
    base64.b64encode(b"just a text that somebody put in base64, all of it").decode(),
    base64.b64encode(b"%PDF-1.7 is no image, and is not taken for one").decode(),
    f"{BASE64} is a picture of noise",
    f"{BASE64[:200]} and so on",
    f"The picture is {BASE64}",
    f"see {BASE64}",
    f"![noise](data:image/png;base64,{BASE64})",
    f'<img src="data:image/png;base64,{BASE64}">',
    "data: the new oil, they say",
    "data:science, machine learning, statistics",
    "Data:",
    "data:,hello",
    "data:text/plain,hello",
    "data:text/csv;charset=utf-8,a,b,c",
    "data:image/png is a prefix",
    "data:image/png, data:image/gif and the like are prefixes",
    "data:image/png;base64, followed by the file, is a data URI",
    "data:image/png;base64,iVBOR... is how it begins",
    f"data:image/png;base64,{BASE64} is a picture of noise",
    "data: base64, hex and octal",
    "https://x.org/",
    "https://x.org/a.html",
    "https://x.org/a.png.html",
    "https://x.org/a.pngs",
    "https://x.org/png",
    "https://x.org/a.png is a picture",
    "look at https://x.org/a.png",
    "https://x.org/a.png https://x.org/b.png",
    "https://x.org/a.png\u3092\u898b\u3066",
    "https://x.org/a.png.",
    "a.png",
    "/home/a.png",
    "x.org/a.png",
    "https://" + "x" * 10_000 + "/a.png",
]


@pytest.mark.parametrize("text", TEXTS, ids=lambda text: repr(text[:50]))
def test_a_text_is_never_mistaken_for_an_image(text: str) -> None:
    assert find_image(text) is None


def test_no_sentence_of_the_golden_ones_is_an_image() -> None:
    sentences = json.loads((GOLDEN / "e2e.json").read_text(encoding="utf-8"))["sentences"]
    assert [found_file(sentence) for sentence in sentences] == [None] * len(sentences)


def test_no_random_token_is_an_image() -> None:
    """Keys and hashes are base64 too. Some of these begin with BM, one with the first byte of a JPEG in 256."""
    draw = np.random.default_rng(2)
    for _ in range(50_000):
        assert find_image(base64.b64encode(draw.bytes(33)).decode()) is None


@pytest.mark.parametrize(
    "path",
    [
        "file:///home/a.png",
        "file:/home/a.png",
        "FILE:///a",
        "C:\\a.png",
        "c://a",
        "./a",
        "~/a",
        "/home/a.png",
        "a.png",
    ],
)
def test_a_path_is_an_error_that_says_so(path: str) -> None:
    with pytest.raises(
        ImageStringError, match="found a path, and no files are read here; send the content of the file"
    ):
        read_image(path)


def test_any_string_is_an_image_a_text_or_an_error_that_says_why() -> None:
    """Strings of the pieces that the rule looks for, in any order, with half an emoji among them."""
    pieces = ["data:", "DATA:", "image/png", ";", "base64", ",", ";base64,", "\ufeff", " ", "\n", "'", '"', "b'", "%",
              "%3D", "%89PNG%0D%0A%1A%0A", "=", "https://", "file:", "://", ".png", "?", BASE64, BASE64[:33], "AAAA",
              "\u6d77", "\ud800", "\\", "/9j/", "x", "-", " is a "]  # fmt: skip
    draw = np.random.default_rng(3)
    for _ in range(20_000):
        string = "".join(draw.choice(pieces, draw.integers(1, 9)))
        for read in (find_image, read_image):
            with contextlib.suppress(ImageStringError):
                assert isinstance(read(string), ImageItem | UrlItem | None)


@pytest.mark.parametrize("text", ["AB!C", "AB C\u00fc", "A", "%%%%", "%41%41%41%41"])
def test_what_is_no_base64_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        decode_base64(text)
