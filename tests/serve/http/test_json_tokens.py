"""The tokens of a JSON body are those that a parser finds, and commas in texts are none."""

import json
from typing import Any

import numpy as np
import pytest

from edgeclip.serve.http.json_tokens import holds_more, strings


def texts_of(document: dict[str, Any]) -> list[tuple[str | None, str]]:
    """Names and texts of a document with their places, as a parser sees them."""
    found: list[tuple[str | None, str]] = []

    def walk(value: object, place: str) -> None:
        if isinstance(value, str):
            found.append((place, value))
        elif isinstance(value, dict):
            for name, inner in value.items():
                found.append((place, name))
                walk(inner, place)
        elif isinstance(value, list):
            for inner in value:
                walk(inner, place)

    for name, value in document.items():
        found.append((None, name))
        for index, item in enumerate(value) if isinstance(value, list) else ():
            walk(item, f"{name}[{index}]")
        if not isinstance(value, list):
            walk(value, name)
    return found


def test_every_string_and_its_place_is_found() -> None:
    """In documents of any shape, held against Python's parser."""
    draw = np.random.default_rng(5)
    pieces = ['"', "\\", "a", ",", "[", "]", "{", "}", ":", "\n", "\u6d77", "", " "]

    def text() -> str:
        return "".join(draw.choice(pieces, draw.integers(0, 6)))

    def value(depth: int) -> Any:
        kind = draw.integers(0, 6 if depth < 4 else 4)
        if kind < 4:
            return [text(), 1.5, None, text()][kind]
        inner = [value(depth + 1) for _ in range(draw.integers(0, 4))]
        return inner if kind == 4 else {f"{index}{text()}": one for index, one in enumerate(inner)}

    for _ in range(300):
        document = {f"n{index}{text()}": value(1) for index in range(draw.integers(0, 5))}
        body = json.dumps(document, ensure_ascii=bool(draw.integers(0, 2))).encode()
        found = [(one.place, json.loads(body[one.begin : one.end])) for one in strings(body)]
        assert found == texts_of(document)


@pytest.mark.parametrize(
    ("body", "values", "with_commas"),
    [
        (b"", 0, 0),
        (b'{"input": "a, b: [c], {d}"}', 2, 2),
        (b'{"input": ["a\\",,,\\"", "b"], "x": {}}', 5, 7),
        (b'{"input": [1, 2, 3]}', 3, 5),
        (b'{"input": "never closed, [', 2, 2),
        (b"[[],[[]]]", 4, 5),
    ],
)
def test_what_is_counted(body: bytes, values: int, with_commas: int) -> None:
    for most in range(9):
        assert holds_more(body, most, counts_commas=False) == (values > most)
        assert holds_more(bytearray(body), most, counts_commas=True) == (with_commas > most)
