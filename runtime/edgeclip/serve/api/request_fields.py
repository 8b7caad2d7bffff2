"""The fields of an embedding request, in the words of several vendors, declared once.

`RequestBody` is the declaration: reading a request, its error messages and its OpenAPI schema all come from it. The
functions below it answer one question each, whatever a vendor calls its field:

    which task            task (Jina); input_type (Cohere, Voyage, NVIDIA, Elasticsearch)
    how many dimensions   dimensions (OpenAI, Jina, NVIDIA); output_dimension (Cohere, Voyage, Mistral)
    which space           return_multivector (Jina): a vector for each token
    which format          encoding_format (OpenAI); embedding_type, encoding_type (Jina);
                          output_dtype (Voyage, Mistral); embedding_types (Cohere)
    is a long text cut    truncate (Jina: true or false; Cohere, NVIDIA: "NONE", "END", "START"); truncation (Voyage)
    which inputs          input; texts and images (Cohere); inputs (Hugging Face); of which kind: modality (NVIDIA)

Two fields that answer one question differently are an error. A field that is null counts as left out, known or not.
Any other unknown field is an error: a misspelt "dimension" would give vectors of the wrong size.

A text that is too long is an error unless the request asks for a cut: so Jina, OpenAI, Cohere and NVIDIA document it.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec
from msgspec import Meta

from edgeclip.families.tasks import list_tasks
from edgeclip.manifest import Modality, Space
from edgeclip.serve.api.served_model import ServedModel
from edgeclip.serve.errors import ApiError

Format = Literal["float", "base64", "binary", "ubinary"]
Formats = Annotated[list[Format], Meta(min_length=1)]
FORMATS: tuple[Format, ...] = get_args(Format)
Cut = Literal["NONE", "END", "START"]
CUTS: Mapping[Cut, bool] = {"NONE": False, "END": True, "START": False}
_FORMAT = {"wanted": "float, base64, binary or ubinary"}
_FORMATS = {"wanted": f"{_FORMAT['wanted']}, or a list of them"}
_FLAG = {"wanted": "true or false"}
_COUNT = {"wanted": "a whole number"}
_STRINGS = {"wanted": "a list of strings"}
_MODEL_CHARS = 256


class RequestBody(msgspec.Struct, frozen=True, kw_only=True):
    """Every field of a request with its type, its description, and what its error message says is wanted.

    What depends on the model is added by `edgeclip.serve.api.request_schema` and checked by the functions below.
    """

    model: Annotated[
        Annotated[str, Meta(max_length=_MODEL_CHARS)] | None,
        Meta(
            description="any name; it is echoed", extra={"wanted": f"a string of at most {_MODEL_CHARS} characters"}
        ),
    ] = None
    input: Any = None
    inputs: Annotated[Any, Meta(description="input, as Hugging Face calls it")] = None
    texts: Annotated[list[str] | None, Meta(description="input, as Cohere calls texts", extra=_STRINGS)] = None
    images: Annotated[list[str] | None, Meta(description="input, as Cohere calls images", extra=_STRINGS)] = None
    dimensions: Annotated[int | float | str | None, Meta(extra=_COUNT)] = None
    output_dimension: Annotated[
        int | float | str | None,
        Meta(description="dimensions, as Cohere, Voyage and Mistral call them", extra=_COUNT),
    ] = None
    encoding_format: Annotated[
        Literal["float", "base64"] | None, Meta(description="OpenAI's", extra={"wanted": "float or base64"})
    ] = None
    embedding_type: Annotated[Format | Formats | None, Meta(description="Jina's", extra=_FORMATS)] = None
    encoding_type: Annotated[Format | Formats | None, Meta(description="Jina's older name", extra=_FORMATS)] = None
    embedding_types: Annotated[Format | Formats | None, Meta(description="Cohere's", extra=_FORMATS)] = None
    output_dtype: Annotated[Format | None, Meta(description="Voyage's and Mistral's", extra=_FORMAT)] = None
    task: Any = None
    input_type: Annotated[Any, Meta(description="the task, as Cohere, Voyage, NVIDIA and Elasticsearch call it")] = (
        None
    )
    modality: Annotated[
        Modality | Annotated[list[Modality], Meta(min_length=1)] | None,
        Meta(
            description="NVIDIA's: what the inputs are; an error where they are not",
            extra={"wanted": "text or image, or a list with one of them for each input"},
        ),
    ] = None
    normalized: Annotated[bool | None, Meta(extra=_FLAG)] = None
    truncate: Annotated[
        bool | Cut | None,
        Meta(
            description="whether a text that is too long is cut at its end, and marked; else it is an error",
            extra={"wanted": f"true or false, or one of {', '.join(CUTS)}"},
        ),
    ] = None
    truncation: Annotated[bool | None, Meta(description="truncate, as Voyage calls it", extra=_FLAG)] = None
    user: Annotated[Any, Meta(description="ignored")] = None
    metadata: Annotated[Any, Meta(description="ignored")] = None
    late_chunking: Annotated[Any, Meta(extra_json_schema={"enum": [False, None]})] = None
    return_multivector: Annotated[
        bool | None, Meta(description="Jina's: a vector for each token, where the model has them", extra=_FLAG)
    ] = None


FIELDS = frozenset(RequestBody.__struct_fields__)
INPUT_FIELDS = ("input", "inputs", "texts", "images")
_WANTED = {
    field.name: field.type.extra["wanted"]
    for field in msgspec.inspect.type_info(RequestBody).fields  # type: ignore[attr-defined]
    if isinstance(field.type, msgspec.inspect.Metadata) and field.type.extra
}
_OF_CHATS = ("messages", "message", "content", "prompt", "instructions")
_SHOWN_CHARACTERS = 40

QUERY_TASK = "retrieval.query"
# Tasks that Jina's hosted API takes for its models of texts and images. jina-clip has no instruction for most of
# them, so there they change nothing. Code tasks (nl2code.query) belong to other models and are refused.
JINA_TASKS = (QUERY_TASK, "retrieval.passage", "text-matching", "classification", "separation", "clustering")
# The tasks that each input_type may stand for, of which the first one that the model has is meant. v3 calls the task
# for clustering "separation". "image" says what the inputs are, not what they are for.
INPUT_TYPES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("query", "search_query", "search"), (QUERY_TASK,)),
    **dict.fromkeys(("document", "search_document", "passage", "ingest"), ("retrieval.passage",)),
    "classification": ("classification",),
    "clustering": ("clustering", "separation"),
    "image": (),
}

_Answer = TypeVar("_Answer")


def read_body(document: Mapping[str, Any]) -> RequestBody:
    """The fields of a request; ApiError 400 for an unknown one and for a value of another type than declared."""
    unknown = [name for name in document if name not in FIELDS and document[name] is not None]
    if unknown:
        name = min(unknown)
        shown = printable(name)
        raise ApiError(
            400,
            f"the field {shown} is unknown{_suggestion(name)}; known are {', '.join(sorted(FIELDS))}",
            param=shown,
            code="unknown_parameter",
        )
    try:
        body = msgspec.convert(document, RequestBody)
    except msgspec.ValidationError as error:  # its message repeats the value, so only the place is taken from it
        place = re.search(r"`\$\.(\w+)", str(error))
        assert place is not None
        name = place[1]
        fault = invalid(name, f"found {kind_of(document[name])}, wanted {_WANTED[name]}")
    else:
        if body.late_chunking is not None and body.late_chunking is not False:
            raise invalid("late_chunking", "this model cannot do it; leave it out or send false")
        return body
    raise fault  # outside of the handler: an error that holds msgspec's would hold the document


def read_task(body: RequestBody, model: ServedModel) -> str | None:
    """The task of the request, one of the model's; None for no task.

    Any other task is an error, unless the model ignores the tasks that Jina's API has for models of its kind.
    """
    asked: dict[str, str | None] = {}
    if body.task is not None:
        taken = known_tasks(model)
        if not isinstance(body.task, str) or body.task not in taken:
            rest = (
                ""
                if model.refuses_other_tasks
                else f"; this model has an instruction for {', '.join(model.tasks) or 'none'}"
            )
            raise invalid("task", f"wanted one of {list_tasks(taken, body.task) or 'none'}{rest}")
        asked["task"] = body.task if body.task in model.tasks else None
    if (kind := body.input_type) is not None:
        if not isinstance(kind, str) or kind not in INPUT_TYPES:
            raise invalid("input_type", f"wanted one of {', '.join(INPUT_TYPES)}")
        meant = next((name for name in INPUT_TYPES[kind] if name in model.tasks), None)
        if meant is None and INPUT_TYPES[kind] and model.refuses_other_tasks:
            raise invalid(
                "input_type", f"this model has no task for it; send task, one of {list_tasks(tuple(model.tasks))}"
            )
        asked["input_type"] = meant
    return one_answer(asked, None)


def known_tasks(model: ServedModel) -> tuple[str, ...]:
    """The values that `task` may have: the model's, and Jina's others where they are harmless."""
    return tuple(dict.fromkeys((*model.tasks, *(() if model.refuses_other_tasks else JINA_TASKS))))


def known_input_types(model: ServedModel) -> tuple[str, ...]:
    """The values that `input_type` may have."""
    return tuple(
        kind
        for kind, tasks in INPUT_TYPES.items()
        if any(task in model.tasks for task in tasks)
        or not (model.is_task_always_required or (model.refuses_other_tasks and tasks))
    )


def read_space(body: RequestBody, model: ServedModel) -> Space:
    """The space of the vectors that are wanted: a single vector for each input unless the request says otherwise."""
    if not body.return_multivector:
        return "single"
    if model.spaces.multi is None:
        raise invalid("return_multivector", "this model gives no multi vectors; leave it out or send false")
    return "multi"


def read_dimensions(body: RequestBody, model: ServedModel, space: Space) -> int:
    """The number of dimensions that are wanted, all of them where nothing is said; multi vectors have one number."""
    asked: dict[str, int] = {}
    for name, found in (("dimensions", body.dimensions), ("output_dimension", body.output_dimension)):
        if found is None:
            continue
        if space == "multi":
            raise invalid(name, f"multi vectors always have {model.dim_of(space)} dimensions; leave it out")
        number = int(found) if isinstance(found, str) and re.fullmatch(r"[0-9]{1,9}", found) else found
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if not isinstance(number, int) or not 1 <= number <= model.dim:
            raise invalid(name, f"wanted a whole number from 1 to {model.dim}")
        if model.only_dims is not None and number not in model.only_dims:
            raise invalid(name, f"wanted one of {', '.join(map(str, model.only_dims))}: this model takes no other")
        asked[name] = number
    return one_answer(asked, model.dim_of(space))


def read_cut(body: RequestBody) -> bool:
    """Whether a text that is too long is cut at its end; where nothing is said it is an error.

    Cutting the beginning ("START") is not offered: such a text is an error too.
    """
    asked: dict[str, bool] = {}
    if body.truncate is not None:
        asked["truncate"] = body.truncate if isinstance(body.truncate, bool) else CUTS[body.truncate]
    if body.truncation is not None:
        asked["truncation"] = body.truncation
    return one_answer(asked, False)


def read_formats(body: RequestBody) -> tuple[tuple[Format, ...], bool]:
    """The formats of each vector, and whether a list was asked for: then each vector is an object of them."""
    asked: dict[str, tuple[tuple[Format, ...], bool]] = {}
    for name in ("embedding_type", "encoding_type", "embedding_types", "encoding_format", "output_dtype"):
        found: Format | Formats | None = getattr(body, name)
        if found is None:
            continue
        asked[name] = (tuple(dict.fromkeys(found)), True) if isinstance(found, list) else ((found,), False)
    plain_floats: tuple[tuple[Format, ...], bool] = (("float",), False)
    # For Voyage and Mistral the two are two questions: which numbers, and how JSON carries them.
    if asked.get("output_dtype") == plain_floats and "encoding_format" in asked:
        del asked["output_dtype"]
    return one_answer(asked, plain_floats)


def read_input(body: RequestBody) -> Any:
    """The value of the field that holds the inputs, not yet looked at."""
    given = {name: found for name in INPUT_FIELDS if (found := getattr(body, name)) is not None}
    if not given:
        raise ApiError(400, "input is missing", param="input", code="missing_required_parameter")
    name, *others = given
    if others:
        raise invalid(others[0], f"{' and '.join(given)} are given; send one of them")
    return [{"image": image} for image in given[name]] if name == "images" else given[name]


def one_answer(asked: Mapping[str, _Answer], default: _Answer) -> _Answer:
    """The answer that all fields of one question agree on, `default` without any; ApiError 400 where they differ."""
    if not asked:
        return default
    answers = list(asked.values())
    if any(answer != answers[0] for answer in answers[1:]):
        raise invalid(next(iter(asked)), f"{' and '.join(asked)} contradict each other; send one of them")
    return answers[0]


def invalid(where: str, message: str) -> ApiError:
    """The 400 for a value that cannot be taken, by the name of its field."""
    return ApiError(400, f"{where}: {message}", param=where, code="invalid_value")


def kind_of(value: object) -> str:
    """A JSON value's kind, for a message that must not show the value."""
    kinds = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def printable(name: str) -> str:
    """A field's name as a message may show it: short, and without control or invisible characters."""
    short = name[:_SHOWN_CHARACTERS] + ("..." if len(name) > _SHOWN_CHARACTERS else "")
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in short)


def _suggestion(name: str) -> str:
    from difflib import get_close_matches

    if name in _OF_CHATS:
        return "; there is no chat here: send texts and images in input"
    near = get_close_matches(name[:_SHOWN_CHARACTERS], FIELDS, 1)
    return f", did you mean {near[0]}?" if near else ""
