"""Which strings are images: every form that clients send, and no text that looks like one."""

import base64
import contextlib
import io
import json
import textwrap
import urllib.parse
import uuid
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, features

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
        "data://image/png;base64,",
        "data:png;base64,",
        "data:image/png;base64;charset=utf-8,",
        'data:image/png;name="a,b;c.png";base64,',
        "data:image\\/png;base64,",
        "data%3Aimage%2Fpng%3Bbase64%2C",
        "data:image/png%3bbase64,",
        "data:image/png;base64%2C",
        "data:image/png;base64 ,",
        "image/png;base64,",
        "image\\/png;base64,",
        "image%2Fpng%3Bbase64%2C",
        "png;base64,",
        ";base64,",
        "base64,",
        "base64, ",
        "base64:",
        "base64://",
        "BASE64:",
        "image base64: ",
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


@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "image/png;base64,", "base64:"])
@pytest.mark.parametrize(
    "around",
    [
        *(
            '"{}"',
            "'{}'",
            "`{}`",
            "\u201c{}\u201d",
            "\u2018{}\u2019",
            "\u201e{}\u201c",
            "\u00ab{}\u00bb",
            "<{}>",
            "({})",
        ),
        *("[{}]", '["{}"]', "b'{}'", 'u"{}"', "url({})", "url('{}')", "\"'{}'\"", "```\n{}\n```", "'{}'\n", '" {} "'),
        *("\u200b{}", "\u200b\u2060 {}\u200d", "\0{}\0", "\u00a0{}\u3000", "\ufeff\ufeff{}", "\u200f{}\u200e"),
    ],
)
def test_what_is_around_an_image_means_nothing(around: str, head: str) -> None:
    assert found_file(around.format(head + BASE64)) == FILE
    item = read_image(around.format(head + BASE64))
    assert isinstance(item, ImageItem) and decode_base64(item.data) == FILE


@pytest.mark.parametrize("size", [8, 60])
@pytest.mark.parametrize("head", ["", "data:image/jpeg;base64,"])
@pytest.mark.parametrize(
    "escapes",
    [
        {"/": "\\/"},
        {"+": "\\u002B", "/": "\\u002f", "=": "\\u003d"},
        {"+": "&#43;", "/": "&#x2F;", "=": "&#61;"},
        {"+": "%2B", "/": "%2f", "=": "%3D"},
        {"q": "\\r\\nq"},
        {"q": "q\u200b"},
    ],
)
def test_escapes_of_base64_are_undone(escapes: dict[str, str], head: str, size: int) -> None:
    """As JSON within JSON, HTML, URLs and rich text write them."""
    file = file_of("JPEG", size)
    string = head + base64.b64encode(file).decode().translate(str.maketrans(escapes))
    assert found_file(string) == file
    item = read_image(string)
    assert isinstance(item, ImageItem) and decode_base64(item.data) == file


JPEG = file_of("JPEG", 24)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"/>'
XML = b'<?xml version="1.0" encoding="UTF-8" standalone="no"?>\n'


def with_segment(marker: int, content: bytes) -> bytes:
    """A JPEG whose first segment is this one."""
    return JPEG[:2] + bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content + JPEG[2:]


@pytest.mark.parametrize(
    "file",
    [
        with_segment(0xFE, b"a comment" * 1000),
        with_segment(0xE0, b"JFXX\0" + b"\0" * 5000),
        with_segment(0xE2, b"MPF\0" + b"\0" * 5000),
        with_segment(0xEB, b"JP" + b"\0" * 9000),
        with_segment(0xE1, b"Ducky" + b"\0" * 20_000),
        JPEG[:2] + b"\xff" + JPEG[2:],
        b"\xff\xd8\xff\xf7\0\x0b\x08\0\x10\0\x10\1\1\x11\0\xff\xda\0\x08" + b"\0" * 9,
        SVG,
        b"\xef\xbb\xbf" + SVG,
        b"\n  " + SVG,
        XML + SVG,
        XML + b"<!-- Generator: a program -->\n" + b"<!-- more of it -->\n" * 20 + SVG,
        b"<!-- a drawing -->" + SVG,
        b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "x">' + SVG,
        XML + b'<svg:svg xmlns:svg="http://www.w3.org/2000/svg"/>',
        b"\xff\x0a\xfa\x1f\x01\x91\x08\x06\1\0\x60\0\x4b8$\xbay\x1eU\xb6\x92\x06\xefy\x11p\xe7\xd1\xee\xc0\7",
        b"\xff\x0a\x10\x12" + bytes(range(200)),
        b"II\xbc\1 \0\0\0" + b"\0" * 40,
        b"IIRO\x08\0\0\0" + b"\0" * 40,
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + b"\0" * 20,
        b"\0\0\0\x1cftypheim\0\0\0\0mif1heic" + b"\0" * 20,
        b"FUJIFILMCCD-RAW 0201FF389" + b"\0" * 40,
        b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj<</Type/Catalog>>endobj",
        b"P5 4 4 255\n" + b"\0" * 16,
        b"P6\n# by a program\n4 4\n255\n" + b"\0" * 48,
        *(file_of(kind, 24) for kind in ("PPM", "DDS", "QOI", "PCX", "EPS")),
    ],
    ids=lambda file: repr(file[:24]),
)
def test_base64_of_less_common_images_is_an_image(file: bytes) -> None:
    """Some of them are refused where they are decoded, and that says so."""
    once = base64.b64encode(file).decode()
    twice = base64.b64encode(once.encode()).decode()
    assert found_file(once) == file
    assert found_file("base64:" + once) == file
    assert found_file(twice) == once.encode()
    assert found_file(base64.b64encode(f"data:image/png;base64,{once}".encode()).decode()) is not None


@pytest.mark.parametrize("file", [FILE, JPEG, *(file_of(kind, 16) for kind in ("GIF", "WEBP", "BMP", "TIFF"))])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda file: file.hex(), "hexadecimal"),
        (lambda file: file.hex().upper(), "hexadecimal"),
        (lambda file: "0x" + file.hex(), "hexadecimal"),
        (lambda file: "\\x" + file.hex(), "hexadecimal"),
        (lambda file: f"X'{file.hex()}'", "hexadecimal"),
        (lambda file: file.hex(" "), "hexadecimal"),
        (lambda file: ", ".join(f"0x{byte:02x}" for byte in file), "hexadecimal"),
        (lambda file: "".join(f"\\x{byte:02x}" for byte in file), "hexadecimal"),
        (lambda file: ",".join(map(str, file)), "decimal"),
        (lambda file: str(list(file)), "decimal"),
        (repr, "literal"),
        (lambda file: json.dumps(file.decode("latin-1")), "literal"),
        (lambda file: file.decode("latin-1"), "characters"),
    ],
)
def test_bytes_in_another_form_are_an_error_that_names_it(
    write: Callable[[bytes], str], words: str, file: bytes
) -> None:
    for read in (find_image, read_image):
        with pytest.raises(ImageStringError, match=f"{words}.*, wanted base64"):
            read(f" {write(file)}\n")


@pytest.mark.parametrize("errors", ["replace", "ignore"])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF"])
def test_a_file_that_was_decoded_as_text_is_an_error(kind: str, errors: str) -> None:
    string = file_of(kind, 24).decode("utf-8", errors)
    with pytest.raises(ImageStringError, match="as characters, wanted base64"):
        find_image(string)


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
