"""Which strings are images: every form that clients send, and no text that looks like one."""

import base64
import json
import textwrap
import urllib.parse
from collections.abc import Callable

import pytest

from edgeclip.serve.api.image_strings import (
    ImageItem,
    ImageStringError,
    UrlItem,
    decode_base64,
    find_image,
    read_image,
)
from tests.scenes.image_file_strings import BASE64, FILE, FORMATS, SVG, XML, file_of, found_file


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
