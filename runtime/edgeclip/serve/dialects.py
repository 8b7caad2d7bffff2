"""A request of Jina's or of OpenAI's embedding API becomes one normal form. Pure: JSON values in, values out.

The two are told apart by the shape of each field, not by a switch:

    input             "text", ["text", ...]                              both
                      [1, 2, ...], [[1, 2], ...]: token ids              OpenAI, where the service allows them
                      {"text": t}, {"image": i}, {"url": u}, {"bytes": b}, alone or in a list      Jina
    encoding_format   "float", "base64"                                  OpenAI
    embedding_type, encoding_type   float, base64, binary, ubinary, one or a list                  Jina

What was decided where the two say nothing or differ:

- A plain string is a text, a URL too, as in both; a plain data URI is an error, for nobody wants its letters.
- Token ids are refused unless the service allows them (`--token-ids`): OpenAI's clients send those of OpenAI's
  tokenizer, which are other words here. Those that are allowed are this model's. The opening and the closing token
  are put round them unless both are there.
- `truncate` absent cuts and tells of it; `truncate: false` makes a text that is too long an error.
- `normalized: false` leaves the first `dimensions` numbers of the unit vector as they are: the model's graph ends in
  a normalisation, so at all dimensions there is no difference.
- `dimensions` may be any number up to the model's, as a number or in digits.
- A field that is in neither API is an error: a misspelt "dimension" would give vectors of the wrong size. `user` is
  OpenAI's and means nothing here; `late_chunking` and `return_multivector` are Jina's and may only be false.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from edgeclip.serve.errors import ApiError
from edgeclip.serve.letters import too_long, too_long_together

Format = Literal["float", "base64", "binary", "ubinary"]
FORMATS: tuple[Format, ...] = get_args(Format)
OPENAI_FORMATS: tuple[Format, ...] = ("float", "base64")
KINDS = ("text", "image", "url", "bytes")

_FIELDS = frozenset(
    (
        *("model", "input", "dimensions", "task", "normalized", "truncate", "user"),
        *("encoding_format", "embedding_type", "encoding_type", "late_chunking", "return_multivector"),
    )
)
_TOKEN_IDS_REFUSED = (
    "found token ids, wanted text: the ids of another model's tokenizer mean other words here. In LangChain's "
    "OpenAIEmbeddings set check_embedding_ctx_length=False, and text is sent. A service that is started with "
    "--token-ids takes the ids of its own model's tokenizer"
)
_SHOWN_FIELD = 40
_MODEL_CHARS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one request may hold, and what the model knows. `vocabulary` is the number of token ids, which are
    refused unless `allow_token_ids` says otherwise.
    """

    max_items: int
    max_images: int
    max_text_chars: int
    max_request_chars: int
    max_image_bytes: int
    embedding_dim: int
    vocabulary: int
    tasks: tuple[str, ...]
    allow_token_ids: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TextItem:
    """A text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenItem:
    """The ids of a text, as they were sent: int32, for a list of numbers takes nine times as much."""

    ids: "array[int]"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageItem:
    """An image: the base64 of its file, not yet decoded."""

    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlItem:
    """An image to be fetched."""

    url: str


Item = TextItem | TokenItem | ImageItem | UrlItem


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingRequest:
    """The normal form. `is_keyed`: a list of formats was asked for, so the answer is an object of them."""

    items: tuple[Item, ...]
    model: str | None
    dim: int
    formats: tuple[Format, ...]
    is_keyed: bool
    task: str | None
    is_normalized: bool
    is_cut: bool


def parse_request(document: object, limits: RequestLimits) -> EmbeddingRequest:
    """The normal form of a request's JSON; ApiError 400 names the field and what was wanted."""
    if not isinstance(document, dict):
        raise ApiError(400, f"the body is {_kind(document)}, wanted an object with model and input")
    if unknown := sorted(set(document) - _FIELDS):
        raise ApiError(
            400,
            f"the field {_shown(unknown[0])} is unknown; known are {', '.join(sorted(_FIELDS))}",
            param=_shown(unknown[0]),
            code="unknown_parameter",
        )
    for name in ("late_chunking", "return_multivector"):
        if _flag(document, name, False):
            raise _wrong(name, "this model cannot do it; leave it out or send false")
    model = _string(document, "model")
    if model is not None and len(model) > _MODEL_CHARS:
        raise _wrong("model", f"at most {_MODEL_CHARS} characters are taken")
    _string(document, "user")
    formats, is_keyed = _formats(document)
    task = _task(document, limits.tasks)
    items = _items(document, limits)
    if task is not None and any(isinstance(item, TokenItem) for item in items):
        raise _wrong("task", "its instruction is a text; put its tokens before yours, and leave task out")
    return EmbeddingRequest(
        items=items,
        model=model,
        dim=_dimensions(document.get("dimensions"), limits.embedding_dim),
        formats=formats,
        is_keyed=is_keyed,
        task=task,
        is_normalized=_flag(document, "normalized", True),
        is_cut=_flag(document, "truncate", True),
    )


def _items(document: Mapping[str, Any], limits: RequestLimits) -> tuple[Item, ...]:
    found = document.get("input")
    if found is None:
        raise ApiError(400, "input is missing", param="input", code="missing_required_parameter")
    if isinstance(found, str | dict):
        found = [found]
    if not isinstance(found, list):
        raise _wrong("input", f"found {_kind(found)}, wanted a text, an object or a list of them")
    if not found:
        raise _wrong("input", "it is empty, wanted at least one text or image")
    if _is_id(found[0]):
        return (_tokens(found, "input", limits),)
    if len(found) > limits.max_items:
        raise ApiError(
            400,
            f"input has {len(found)} items, at most {limits.max_items} may be sent at once; send several requests",
            param="input",
            code="array_above_max_length",
        )
    items = tuple(_item(item, f"input[{index}]", limits) for index, item in enumerate(found))
    # As they were sent; as the tokenizer meets them they are counted where it is called (`edgeclip.serve.letters`).
    if sum(len(item.text) for item in items if isinstance(item, TextItem)) > limits.max_request_chars:
        raise too_long_together(limits.max_request_chars)
    images = sum(isinstance(item, ImageItem | UrlItem) for item in items)
    if images > limits.max_images:
        raise ApiError(
            400,
            f"input has {images} images, at most {limits.max_images} may be sent at once; send several requests",
            param="input",
            code="array_above_max_length",
        )
    return items


def _item(item: object, where: str, limits: RequestLimits) -> Item:
    if isinstance(item, str):
        if item[:11].lower() == "data:image/":
            raise _wrong(
                where, 'a data URI as a plain string would be embedded as a text; send {"image": "data:..."}'
            )
        return _text(item, where, limits.max_text_chars)
    if isinstance(item, list):
        return _tokens(item, where, limits)
    if not isinstance(item, dict):
        raise _wrong(where, f"found {_kind(item)}, wanted a text or an object")
    given = [(kind, item[kind]) for kind in KINDS if item.get(kind) is not None]
    if len(given) != 1 or set(item) - set(KINDS):
        raise _wrong(where, f"wanted an object with exactly one of {', '.join(KINDS)}")
    kind, value = given[0]
    where = f"{where}.{kind}"
    if not isinstance(value, str):
        raise _wrong(where, f"found {_kind(value)}, wanted a string")
    if kind == "text":
        return _text(value, where, limits.max_text_chars)
    return _image(value, kind, where, limits.max_image_bytes)


def _text(text: str, where: str, max_chars: int) -> TextItem:
    if not text:
        raise _wrong(where, "the text is empty")
    if len(text) > max_chars:
        raise too_long(where, len(text), max_chars)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _wrong(where, "it holds a lone surrogate, so it is no Unicode text") from error
    return TextItem(text=text)


def _tokens(ids: Sequence[Any], where: str, limits: RequestLimits) -> TokenItem:
    if not ids:
        raise _wrong(where, "found an empty list, wanted a text")
    if type(ids[0]) not in (int, float):
        raise _wrong(where, f"found a list that begins with {_kind(ids[0])}, wanted a text or an object")
    if not limits.allow_token_ids:
        raise ApiError(400, f"{where}: {_TOKEN_IDS_REFUSED}", param=where, code="token_ids_not_allowed")
    vocabulary = limits.vocabulary
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= vocabulary:  # a million at once, quickly
        index = next(index for index, token in enumerate(ids) if not _is_id(token) or not 0 <= token < vocabulary)
        raise _wrong(
            f"{where}[{index}]",
            f"wanted a token id of this model's tokenizer, a whole number from 0 to {vocabulary - 1}",
        )
    return TokenItem(ids=array("i", ids))


def _image(value: str, kind: str, where: str, max_bytes: int) -> Item:
    if re.match(r"[a-z][a-z0-9+.-]{0,30}://", value, re.IGNORECASE):
        if kind == "bytes":
            raise _wrong(where, 'found a URL, wanted base64; send {"url": "https://..."}')
        return UrlItem(url=value)
    if value[:5].lower() == "data:":
        header, comma, value = value.partition(",")
        if not comma or not re.fullmatch(
            r"data:image/[a-z0-9.+-]{1,40}(;[a-z0-9=.+-]{1,40}){0,3};base64", header, re.I
        ):
            raise _wrong(where, 'wanted a data URI that begins "data:image/...;base64,"')
    elif kind == "url":
        raise _wrong(where, "wanted https://... or a data URI")
    if not value:
        raise _wrong(where, "the image is empty")
    if len(value) // 4 * 3 > max_bytes + 3:
        raise ApiError(
            413,
            f"{where} has {len(value) // 4 * 3} bytes, at most {max_bytes} are taken",
            param=where,
            code="image_too_large",
        )
    return ImageItem(data=value)


def _dimensions(found: object, full: int) -> int:
    if found is None:
        return full
    number = int(found) if isinstance(found, str) and re.fullmatch(r"[0-9]{1,9}", found) else found
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if type(number) is not int or not 1 <= number <= full:
        raise _wrong("dimensions", f"wanted a whole number from 1 to {full}")
    return number


def _formats(document: Mapping[str, Any]) -> tuple[tuple[Format, ...], bool]:
    """The formats that were asked for; two fields may name them when they agree."""
    asked: dict[str, tuple[tuple[Format, ...], bool]] = {}
    for name in ("embedding_type", "encoding_type", "encoding_format"):
        found = document.get(name)
        if found is None:
            continue
        known = OPENAI_FORMATS if name == "encoding_format" else FORMATS
        is_keyed = isinstance(found, list) and name != "encoding_format"
        names = found if is_keyed else [found]
        if not names or any(not isinstance(one, str) or one not in known for one in names):
            some = "" if name == "encoding_format" else ", or a list of them"
            raise _wrong(name, f"wanted {', '.join(known[:-1])} or {known[-1]}{some}")
        asked[name] = (tuple(dict.fromkeys(names)), is_keyed)
    if len(set(asked.values())) > 1:
        raise _wrong(next(iter(asked)), f"{' and '.join(asked)} ask for different formats; send one of them")
    return next(iter(asked.values()), (("float",), False))


def _task(document: Mapping[str, Any], tasks: Sequence[str]) -> str | None:
    found = document.get("task")
    if found is None:
        return None
    if not isinstance(found, str) or found not in tasks:
        known = ", ".join(tasks) or "none"
        raise _wrong("task", f"this model knows {known}; leave it out for no instruction")
    return found


def _string(document: Mapping[str, Any], name: str) -> str | None:
    found = document.get(name)
    if found is not None and not isinstance(found, str):
        raise _wrong(name, f"found {_kind(found)}, wanted a string")
    return found


def _flag(document: Mapping[str, Any], name: str, default: bool) -> bool:
    found = document.get(name)
    if found is None:
        return default
    if not isinstance(found, bool):
        raise _wrong(name, f"found {_kind(found)}, wanted true or false")
    return found


def _is_id(value: object) -> bool:
    return type(value) is int


def _wrong(where: str, message: str) -> ApiError:
    return ApiError(400, f"{where}: {message}", param=where, code="invalid_value")


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _shown(name: str) -> str:
    """A field's name, short and printable."""
    return ascii(name[:_SHOWN_FIELD])
