"""The fields of an embedding request, in the words of several vendors. Pure: JSON values in, values out.

Each question has one answer here, whatever a vendor calls its field:

    which instruction     task (Jina); input_type (Cohere, Voyage, NVIDIA, Elasticsearch)
    how many dimensions   dimensions (OpenAI, Jina, NVIDIA); output_dimension (Cohere, Voyage, Mistral)
    which format          encoding_format (OpenAI); embedding_type, encoding_type (Jina);
                          output_dtype (Voyage, Mistral); embedding_types (Cohere)
    is a long text cut    truncate (Jina: true or false; Cohere, NVIDIA: "NONE", "END", "START"); truncation (Voyage)
    which inputs          input; texts and images (Cohere); inputs (Hugging Face); of which kind: modality (NVIDIA)

Two fields that answer one question differently are an error. A field that is null counts as left out, known or not.
A field that nobody knows is an error: a misspelt "dimension" would give vectors of the wrong size.

A text that is too long is an error unless the request asks for a cut: so Jina, OpenAI, Cohere and NVIDIA document it.
"""

import re
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args

from edgeclip.serve.api.served_model import ServedModel
from edgeclip.serve.errors import ApiError

Format = Literal["float", "base64", "binary", "ubinary"]
FORMATS: tuple[Format, ...] = get_args(Format)
OPENAI_FORMATS: tuple[Format, ...] = ("float", "base64")
INPUT_FIELDS = ("input", "inputs", "texts", "images")
QUERY_TASK = "retrieval.query"
# What Jina's hosted API takes as a task for its models of texts and images. For most of them jina-clip has no
# instruction, so there they change nothing. Code tasks (nl2code.query) belong to other models and are refused.
JINA_TASKS = (QUERY_TASK, "retrieval.passage", "text-matching", "classification", "separation", "clustering")
# What others call the same, by the task that it stands for; an image has no instruction.
# What others call the same: the tasks that each may stand for, of which the first one that the model has is meant.
# v3 calls the task for clustering "separation". "image" says what the inputs are, not what they are for.
INPUT_TYPES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("query", "search_query", "search"), (QUERY_TASK,)),
    **dict.fromkeys(("document", "search_document", "passage", "ingest"), ("retrieval.passage",)),
    "classification": ("classification",),
    "clustering": ("clustering", "separation"),
    "image": (),
}
CUTS = {"NONE": False, "END": True, "START": False}
# They say nothing about the vectors: who asks, and notes of the client.
IGNORED_FIELDS = ("user", "metadata")
# Jina's and NVIDIA's, of which one value alone can be had here.
_FIXED: dict[str, tuple[Any, ...]] = {"late_chunking": (False,), "return_multivector": (False,)}
FIELDS = frozenset(
    (
        *INPUT_FIELDS,
        *(
            "model",
            "dimensions",
            "output_dimension",
            "task",
            "input_type",
            "modality",
            "normalized",
            "truncate",
            "truncation",
        ),
        *("encoding_format", "embedding_type", "encoding_type", "output_dtype", "embedding_types"),
        *_FIXED,
        *IGNORED_FIELDS,
    )
)
_OF_CHATS = ("messages", "message", "content", "prompt", "instructions")
_SHOWN_CHARACTERS = 40

_Answer = TypeVar("_Answer")


def check_fields(document: Mapping[str, Any]) -> None:
    """ApiError 400 for a field that nobody knows, and for one that asks for what this model cannot do."""
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
    for name, values in _FIXED.items():
        found = document.get(name)
        if found is not None and not any(found is value for value in values):
            raise invalid(name, "this model cannot do it; leave it out or send false")


def read_task(document: Mapping[str, Any], model: ServedModel) -> str | None:
    """The task of the request, one of the model's; None for no task.

    A task that Jina's API has and this model does not changes nothing where tasks are instructions. Where they are
    adapters it is an error, for vectors without the adapter cannot be compared with vectors of the task.
    """
    asked: dict[str, str | None] = {}
    known = ", ".join(model.tasks) or "none"
    task = document.get("task")
    if task is not None:
        taken = (*model.tasks, *(() if model.has_adapters else JINA_TASKS))
        if not isinstance(task, str) or task not in taken:
            every = ", ".join(dict.fromkeys(taken)) or "none"
            rest = "" if model.has_adapters else f"; this model has an instruction for {known}"
            raise invalid("task", f"wanted one of {every}{rest}")
        asked["task"] = task if task in model.tasks else None
    kind = document.get("input_type")
    if kind is not None:
        if not isinstance(kind, str) or kind not in INPUT_TYPES:
            raise invalid("input_type", f"wanted one of {', '.join(INPUT_TYPES)}")
        meant = next((name for name in INPUT_TYPES[kind] if name in model.tasks), None)
        if meant is None and INPUT_TYPES[kind] and model.has_adapters:
            raise invalid("input_type", f"this model has no task for {kind}; send task, one of {known}")
        asked["input_type"] = meant
    return one_answer(asked, None)


def read_dimensions(document: Mapping[str, Any], model: ServedModel) -> int:
    """How many of the model's dimensions are wanted, all of them where nothing is said."""
    asked: dict[str, int] = {}
    for name in ("dimensions", "output_dimension"):
        found = document.get(name)
        if found is None:
            continue
        number = int(found) if isinstance(found, str) and re.fullmatch(r"[0-9]{1,9}", found) else found
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if type(number) is not int or not 1 <= number <= model.dim:
            raise invalid(name, f"wanted a whole number from 1 to {model.dim}")
        if model.only_dims is not None and number not in model.only_dims:
            raise invalid(name, f"wanted one of {', '.join(map(str, model.only_dims))}: this model takes no other")
        asked[name] = number
    return one_answer(asked, model.dim)


def read_cut(document: Mapping[str, Any]) -> bool:
    """Whether a text that is too long is cut at its end; without a word about it, it is an error.

    Cutting the beginning ("START") is not offered: such a text is an error too.
    """
    asked: dict[str, bool] = {}
    found = document.get("truncate")
    if isinstance(found, str) and found in CUTS:
        asked["truncate"] = CUTS[found]
    elif isinstance(found, bool):
        asked["truncate"] = found
    elif found is not None:
        raise invalid("truncate", f"wanted true or false, or one of {', '.join(CUTS)}")
    if document.get("truncation") is not None:
        asked["truncation"] = read_flag(document, "truncation", False)
    return one_answer(asked, False)


def read_formats(document: Mapping[str, Any]) -> tuple[tuple[Format, ...], bool]:
    """The formats of each vector, and whether they were asked for as a list: then it is an object of them."""
    asked: dict[str, tuple[tuple[Format, ...], bool]] = {}
    for name in ("embedding_type", "encoding_type", "embedding_types", "encoding_format", "output_dtype"):
        found = document.get(name)
        if found is None:
            continue
        known = OPENAI_FORMATS if name == "encoding_format" else FORMATS
        takes_list = name not in ("encoding_format", "output_dtype")
        is_keyed = isinstance(found, list) and takes_list
        names = found if is_keyed else [found]
        if not names or any(not isinstance(one, str) or one not in known for one in names):
            some = ", or a list of them" if takes_list else ""
            raise invalid(name, f"wanted {', '.join(known[:-1])} or {known[-1]}{some}")
        asked[name] = (tuple(dict.fromkeys(names)), is_keyed)
    plain_floats: tuple[tuple[Format, ...], bool] = (("float",), False)
    # For Voyage and Mistral the two are two questions: which numbers, and how JSON carries them.
    if asked.get("output_dtype") == plain_floats and "encoding_format" in asked:
        del asked["output_dtype"]
    return one_answer(asked, plain_floats)


def read_flag(document: Mapping[str, Any], name: str, default: bool) -> bool:
    """A field that is true, false, or left out."""
    found = document.get(name)
    if found is None:
        return default
    if not isinstance(found, bool):
        raise invalid(name, f"found {kind_of(found)}, wanted true or false")
    return found


def read_input(document: Mapping[str, Any]) -> Any:
    """What is to be embedded, not yet looked at, whichever field it came in."""
    given = [name for name in INPUT_FIELDS if document.get(name) is not None]
    if not given:
        raise ApiError(400, "input is missing", param="input", code="missing_required_parameter")
    name = given[0]
    if len(given) > 1:
        raise invalid(given[1], f"{' and '.join(given)} are given; send one of them")
    found = document[name]
    if name in ("texts", "images") and not (isinstance(found, list) and all(isinstance(one, str) for one in found)):
        raise invalid(name, "wanted a list of strings")
    return [{"image": image} for image in found] if name == "images" else found


def one_answer(asked: Mapping[str, _Answer], default: _Answer) -> _Answer:
    """What the fields of one question agree on, `default` where none was sent; ApiError 400 where they differ."""
    answers = list(asked.values())
    if any(answer != answers[0] for answer in answers[1:]):
        raise invalid(next(iter(asked)), f"{' and '.join(asked)} contradict each other; send one of them")
    return answers[0] if answers else default


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
