"""Turn a request of Jina's or of OpenAI's embedding API into one normal form. Pure: JSON values in, values out.

The shape of an input says what it is:

    "text", ["text", ...]    both
    [1, 2, ...], [[1, 2], ...]: token ids    OpenAI, where the service allows them
    {"text": t}, {"image": i}, {"url": u}, {"bytes": b}, alone or in a list    Jina
    {"type": "text", "text": t}, {"type": "image_url", "image_url": {"url": u}}    parts of a message of OpenAI's chat

`edgeclip.serve.api.request_fields` reads the other fields, and the names that further vendors have for them.

Decisions where the two APIs say nothing or differ:

- A plain string is a text, as in both, unless it is an image (`edgeclip.serve.api.image_strings`).
- Token ids are refused unless the service allows them (`--token-ids`): OpenAI's clients send ids of OpenAI's
  tokenizer, which mean other words here. Allowed ids are those of this model's tokenizer. The opening and the
  closing token are put round them unless both are there.
- `normalized: false` leaves the first `dimensions` numbers of the unit vector as they are: the model's graph ends in
  a normalisation, so at all dimensions there is no difference.
- `dimensions` may be any number up to the model's, or one of its list, as a number or in digits.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from edgeclip.families.tasks import are_languages, list_tasks
from edgeclip.manifest import Modality, Space
from edgeclip.serve.api.image_strings import (
    ImageItem,
    ImageStringError,
    UrlItem,
    find_image,
    is_url_or_data_uri,
    read_image,
)
from edgeclip.serve.api.request_fields import (
    Format,
    RequestBody,
    invalid,
    kind_of,
    read_body,
    read_cut,
    read_dimensions,
    read_formats,
    read_input,
    read_space,
    read_task,
)
from edgeclip.serve.api.served_model import ServedModel
from edgeclip.serve.api.text_length import too_long, too_long_together
from edgeclip.serve.errors import ApiError

KINDS = ("text", "image", "url", "bytes")

_TOKEN_IDS_REFUSED = (
    "found token ids, wanted text: the ids of another model's tokenizer mean other words here. In LangChain's "
    "OpenAIEmbeddings set check_embedding_ctx_length=False, and text is sent. A service that is started with "
    "--token-ids takes the ids of its own model's tokenizer"
)
# The parts of a message in OpenAI's chat and responses APIs, by type, and the field that holds each.
_CONTENT_PARTS = {"text": "text", "input_text": "text", "image_url": "image_url", "input_image": "image_url"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestLimits:
    """What one request may hold, and the model that it is for. Token ids are refused without `allow_token_ids`.

    `allow_urls` says whether images are fetched by URL.
    """

    model: ServedModel
    max_items: int
    max_images: int
    max_text_chars: int
    max_request_chars: int
    max_image_bytes: int
    allow_token_ids: bool = False
    allow_urls: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TextItem:
    """A text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenItem:
    """The ids of a text, as they were sent; int32, because a list of numbers takes nine times as much memory."""

    ids: "array[int]"


Item = TextItem | TokenItem | ImageItem | UrlItem
_IMAGES = (ImageItem, UrlItem)
_ONE_OF_THEM: Mapping[Modality, str] = {"text": "a text", "image": "an image"}


def modality_of(item: Item) -> Modality:
    """The modality of an item."""
    return "image" if isinstance(item, _IMAGES) else "text"


class EmbeddingRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The normal form of a request. With `is_keyed` each embedding of the answer is an object of its formats."""

    items: tuple[Item, ...]
    model: str | None
    space: Space
    dim: int
    formats: tuple[Format, ...]
    is_keyed: bool
    task: str | None
    is_normalized: bool
    is_cut: bool


def parse_request(document: object, limits: RequestLimits) -> EmbeddingRequest:
    """The normal form of a request's JSON; ApiError 400 names the field and what was wanted."""
    if not isinstance(document, dict):
        raise ApiError(400, f"the body is {kind_of(document)}, wanted an object with model and input")
    body = read_body(document)
    formats, is_keyed = read_formats(body)
    space = read_space(body, limits.model)
    task = read_task(body, limits.model)
    items = _items(body, limits)
    if task is not None or limits.model.is_task_required:
        _check_task(body, task, items, limits.model)
    if body.modality is not None or body.input_type is not None:
        _check_kinds(body, items)
    return EmbeddingRequest(
        items=items,
        model=body.model,
        space=space,
        dim=read_dimensions(body, limits.model, space),
        formats=formats,
        is_keyed=is_keyed,
        task=task,
        is_normalized=body.normalized is not False,
        is_cut=read_cut(body),
    )


def _items(body: RequestBody, limits: RequestLimits) -> tuple[Item, ...]:
    found = read_input(body)
    if isinstance(found, str | dict):
        found = [found]
    if not isinstance(found, list):
        raise invalid("input", f"found {kind_of(found)}, wanted a text, an object or a list of them")
    if not found:
        raise invalid("input", "it is empty, wanted at least one text or image")
    if type(found[0]) is int:
        return (_check_modality(_tokens(found, "input", limits), "input", limits.model),)
    if len(found) > limits.max_items:
        raise ApiError(
            400,
            f"input has {len(found)} items, at most {limits.max_items} may be sent at once; send several requests",
            param="input",
            code="array_above_max_length",
        )
    items: list[Item] = []
    characters = images = 0
    for index, value in enumerate(found):
        where = f"input[{index}]"
        item = _check_modality(_read_item(value, where, limits), where, limits.model)
        items.append(item)
        if isinstance(item, TextItem):
            # As they were sent; `edgeclip.serve.api.text_length` counts them again as the tokenizer sees them.
            characters += len(item.text)
        elif isinstance(item, _IMAGES):
            images += 1
    if characters > limits.max_request_chars:
        raise too_long_together(limits.max_request_chars)
    if images > limits.max_images:
        raise ApiError(
            400,
            f"input has {images} images, at most {limits.max_images} may be sent at once; send several requests",
            param="input",
            code="array_above_max_length",
        )
    return tuple(items)


def _read_item(item: object, where: str, limits: RequestLimits) -> Item:
    if isinstance(item, str):
        return _found_in_text(item, where, limits)
    if isinstance(item, list):
        return _tokens(item, where, limits)
    if not isinstance(item, dict):
        raise invalid(where, f"found {kind_of(item)}, wanted a text or an object")
    item = _of_content_part(item)
    if item.get("content") is not None:
        raise invalid(where, "found content of several parts; send each text and each image as an input of its own")
    given = [(kind, item[kind]) for kind in KINDS if item.get(kind) is not None]
    if len(given) != 1 or any(item[name] is not None for name in set(item) - set(KINDS)):
        raise invalid(where, f"wanted an object with exactly one of {', '.join(KINDS)}")
    kind, value = given[0]
    where = f"{where}.{kind}"
    if not isinstance(value, str):
        raise invalid(where, f"found {kind_of(value)}, wanted a string")
    if kind == "text":
        return _found_in_text(value, where, limits)
    return _image(value, kind, where, limits.max_image_bytes)


def _of_content_part(item: Mapping[str, Any]) -> Mapping[str, Any]:
    """Turn a part of a message in OpenAI's chat API into an input: {"type": "image_url", ...} into {"url": ...}."""
    kind = item.get("type")
    name = _CONTENT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is None:
        return item
    value = item.get(name)
    rest = {key: item[key] for key in item if key not in ("type", "detail", name)}
    if name == "text":
        return {**rest, "text": value}
    return {**rest, "url": value.get("url") if isinstance(value, dict) else value}


def _text(text: str, where: str, max_chars: int) -> TextItem:
    if not text:
        raise invalid(where, "the text is empty")
    if len(text) > max_chars:
        raise too_long(where, len(text), max_chars)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise invalid(where, "it holds a lone surrogate, so it is no Unicode text") from error
    return TextItem(text=text)


def _tokens(ids: Sequence[Any], where: str, limits: RequestLimits) -> TokenItem:
    if not ids:
        raise invalid(where, "found an empty list, wanted a text")
    if type(ids[0]) not in (int, float):
        raise invalid(where, f"found a list that begins with {kind_of(ids[0])}, wanted a text or an object")
    if not limits.allow_token_ids:
        raise token_ids_refused(where)
    vocabulary = limits.model.vocabulary
    if set(map(type, ids)) != {int} or min(ids) < 0 or max(ids) >= vocabulary:  # a million at once, quickly
        index = next(index for index, token in enumerate(ids) if not _is_id(token) or not 0 <= token < vocabulary)
        raise invalid(
            f"{where}[{index}]",
            f"wanted a token id of this model's tokenizer, a whole number from 0 to {vocabulary - 1}",
        )
    return TokenItem(ids=array("i", ids))


def token_ids_refused(where: str) -> ApiError:
    """The 400 for token ids in this field, where the service takes none."""
    return ApiError(400, f"{where}: {_TOKEN_IDS_REFUSED}", param=where, code="token_ids_not_allowed")


def _found_in_text(text: str, where: str, limits: RequestLimits) -> Item:
    """The image that a plain string or {"text": ...} is, else the text."""
    try:
        found = find_image(text)
    except ImageStringError as error:
        raise invalid(where, str(error)) from error
    if found is None:
        return _text(text, where, limits.max_text_chars)
    if isinstance(found, ImageItem):
        return _sized(found, where, limits.max_image_bytes)
    advice = 'send the file in base64, {"image": "..."}'
    if found.url[:4].lower() == "http":
        by_url = 'send {"url": "https://..."}'
        advice = by_url if limits.allow_urls else f"{advice}, or start the service with --allow-urls and {by_url}"
    message = f"{where}: found the URL of an image file in place of a text; {advice}"
    raise ApiError(400, message, param=where, code="image_url_as_text")


def _image(value: str, kind: str, where: str, max_bytes: int) -> Item:
    if kind == "url" and not is_url_or_data_uri(value):
        raise invalid(where, "wanted https://... or a data URI")
    try:
        found = read_image(value)
    except ImageStringError as error:
        raise invalid(where, str(error)) from error
    if isinstance(found, ImageItem):
        return _sized(found, where, max_bytes)
    if kind == "bytes":
        raise invalid(where, 'found a URL, wanted base64; send {"url": "https://..."}')
    return found


def _sized(image: ImageItem, where: str, max_bytes: int) -> ImageItem:
    size = len(image.data) // 4 * 3
    if size > max_bytes + 3:
        message = f"{where} has {size} bytes, at most {max_bytes} are taken"
        raise ApiError(413, message, param=where, code="image_too_large")
    return image


def _check_task(body: RequestBody, task: str | None, items: Sequence[Item], model: ServedModel) -> None:
    """400 for a task that these inputs cannot have, and for none where the model needs one."""
    field = "input_type" if body.task is None and body.input_type is not None else "task"
    is_text = task is not None and bool(model.tasks[task].prompt) and not are_languages(model.tasks)
    # A model that needs a task takes ids that begin with those of its prompt; its family sees whether they do.
    if is_text and not model.is_task_required and any(isinstance(item, TokenItem) for item in items):
        raise invalid(field, "its instruction is a text; put its tokens before yours, and leave it out")
    if model.is_task_required:
        for modality in {modality_of(item) for item in items}:
            if model.task_of(task, modality) is None and (known := model.tasks_of(modality)):
                message = f"{field}: this model needs a task for {modality}s, one of {list_tasks(known)}"
                raise ApiError(400, message, param=field, code="missing_required_parameter")


def _check_modality(item: Item, where: str, model: ServedModel) -> Item:
    if (modality := modality_of(item)) not in model.modalities:
        message = (
            f"{where}: found {_ONE_OF_THEM[modality]}, and this model takes {' and '.join(model.modalities)}s only"
        )
        raise ApiError(400, message, param=where, code="modality_not_supported")
    return item


def _is_id(value: object) -> bool:
    return type(value) is int


def _check_kinds(body: RequestBody, items: Sequence[Item]) -> None:
    """400 where a field says that inputs are images, or texts, and they are not: NVIDIA's modality, Cohere's type."""
    name, said = "modality", body.modality
    if said is None:
        if body.input_type != "image":
            return
        name, said = "input_type", "image"
    kinds = said if isinstance(said, list) else [said] * len(items)
    if len(kinds) != len(items):
        raise invalid(name, "wanted text or image, or a list with one of them for each input")
    for index, (kind, item) in enumerate(zip(kinds, items, strict=True)):
        if kind != modality_of(item):
            raise invalid(name, f"it says {kind}, and input[{index}] is none")
