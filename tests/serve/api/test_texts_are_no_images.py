"""No text is mistaken for an image, and what is neither is an error that says why."""

import base64
import contextlib
import json
import uuid

import numpy as np
import pytest

from edgeclip.serve.api.image_strings import (
    LONGEST_URL,
    ImageItem,
    ImageStringError,
    UrlItem,
    decode_base64,
    find_image,
    read_image,
)
from tests.conftest import GOLDEN
from tests.scenes.image_file_strings import BASE64, FILE, SVG, XML, found_file

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
    "base64, hex and octal",
    "base64: an encoding of bytes in 64 characters",
    "base64:2fl+Ktvkfl+Fuz4Qp/A75G2RTiWVA/ZoKZvp6fiiM10=",
    "base64,",
    "text/plain;base64," + base64.b64encode(b"just a text that somebody put in base64, all").decode(),
    "image/png;base64, followed by the file, is what is left of a data URI",
    f"image/png;base64,{BASE64} is a picture of noise",
    f"base64:{BASE64} is a picture of noise",
    "image/png, image/jpeg or image/webp",
    base64.b64encode(b"data:image/png is how a data URI begins, most of the time").decode(),
    base64.b64encode(b'<?xml version="1.0"?><rss version="2.0"><channel><title>News</title></channel>').decode(),
    base64.b64encode(b"<!DOCTYPE html><html><head><title>A page</title></head></html>").decode(),
    base64.b64encode(b"P5 is a console and P6 is a chip, and neither is a picture").decode(),
    base64.b64encode(b"MZ\x90\0\3\0\0\0\4\0\0\0\xff\xff\0\0\xb8\0\0\0" + bytes(60)).decode(),
    base64.b64encode(b"PK\3\4\x14\0\0\0\x08\0" + bytes(60)).decode(),
    base64.b64encode(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(60)).decode(),
    base64.b64encode(np.linspace(-1, 1, 128, dtype=np.float32).tobytes()).decode(),
    base64.b64encode(base64.b64encode(b"a text that was put in base64 twice, by mistake")).decode(),
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ" + "Q" * 32,
    "-----BEGIN CERTIFICATE-----\nMIIB" + "A" * 60,
    "ffd8ffe0-0010-4a46-4946-000101010048",
    "ffd8ffe000104a464946000101010048",
    "FFD8FFFE" + "3b" * 28,
    "ff0a" + "3b" * 30,
    "89504e470d0a1a0a is the signature of PNG",
    "89 50 4E 47 0D 0A 1A 0A",
    "89 50 4E 47 0D 0A 1A 0A 00 00 00 0D 49 48 44 52 00 00 00 01 00 00 00 01 08 06 is how a PNG of a pixel begins",
    "FF D8 FF E0 00 10 4A 46 49 46 00 01",
    "137, 80, 78, 71, 13, 10, 26, 10",
    ", ".join(map(str, range(100))),
    "255,216,255" + ",999" * 50,
    "b'\\x89PNG\\r\\n\\x1a\\n'",
    r"\x89PNG\r\n\x1a\n",
    r"if head.startswith(b'\x89PNG\r\n\x1a\n') or head.startswith(b'\xff\xd8\xff'): return True  # an image",
    r"b'\x89PNG\r\n\x1a\n' is how a PNG begins, b'\xff\xd8\xff' a JPEG, and b'GIF89a' a GIF; then the size follows",
    r"'\x00\x01\x02' + '\x03'" + " # some bytes" * 10,
    "GIF89a is a format of 1989; GIF87a is older. Both begin with six characters, and then the size is written.",
    "RIFF, WEBP and PNG are names; " * 5,
    "P6 4 4 255 is how a picture begins that was written by a program for images",
    SVG.decode(),
    (XML + SVG).decode(),
    f"`{BASE64}` is a picture of noise",
    f"\u201c{BASE64}\u201d, he said",
    f"({BASE64}",
    f"<{BASE64}>!",
    "\u200b\u200b",
    "`" * 200,
    "(" * 100 + ")" * 100,
    "\0" * 200,
    "\ufffd" * 200,
    "\\" * 200,
    "\\x" * 200,
    "%89%50%4E%47",
    "&#43;" * 40,
    "import base64\nprint(base64.b64encode(b'abc'))",
    "def f(x):\n    return x.split('\\x00')[0]",
    "SELECT encode(picture, 'base64') FROM pictures WHERE id = 5",
    "C:\\pictures\\holidays\\2023\\a_long_name_of_a_picture",
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
    """Keys, hashes and UUIDs, in base64 and in hexadecimal digits. One begins as a JPEG does in 256."""
    draw = np.random.default_rng(2)
    for _ in range(10_000):
        token = draw.bytes(64)
        for size in (16, 20, 32, 33, 48, 64):
            assert find_image(base64.b64encode(token[:size]).decode()) is None
            assert find_image(token[:size].hex()) is None
        assert find_image(str(uuid.UUID(bytes=token[:16]))) is None


@pytest.mark.parametrize("head", [b"\xff\xd8\xff\xe1\x55\x55", b"\xff\xd8\xff\xff", b"\xff\x0a", b"BM", b"\0\0\1\0"])
def test_a_hash_that_begins_with_an_image_s_few_bytes_is_none(head: bytes) -> None:
    """It would take years to draw one."""
    draw = np.random.default_rng(4)
    for size in (16, 20, 32, 48, 64):
        token = head + draw.bytes(size - len(head))
        assert find_image(base64.b64encode(token).decode()) is None
        assert find_image(token.hex()) is None
        assert find_image(",".join(map(str, token))) is None


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
              "\u6d77", "\ud800", "\\", "/9j/", "x", "-", " is a ", "\u200b", "\0", "base64:", "`", "(", ")", "b\"",
              "\\x89", FILE.hex(), "137,80,78,", repr(FILE), "\u201c"]  # fmt: skip
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


def test_a_url_has_a_length() -> None:
    url = "https://example.org/" + "a" * (LONGEST_URL - 20)
    assert read_image(url) == UrlItem(url=url)
    with pytest.raises(ImageStringError, match="the URL has 8193 characters, at most 8192 are taken"):
        read_image(url + "a")
