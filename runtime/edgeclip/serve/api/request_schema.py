"""The JSON schema of an embedding request: the declared fields, completed by what the model and the limits say."""

from typing import Any

import msgspec

from edgeclip.serve.api.request import RequestLimits
from edgeclip.serve.api.request_fields import INPUT_FIELDS, RequestBody, known_input_types, known_tasks
from edgeclip.serve.api.served_model import ServedModel

Schema = dict[str, Any]
_NOT_EMPTY = {"type": "string", "minLength": 1}


def request_schema(limits: RequestLimits) -> Schema:
    """What `edgeclip.serve.api.request.parse_request` takes under these limits."""
    model = limits.model
    declared: Schema = msgspec.json.schema(RequestBody)["$defs"]["RequestBody"]
    fields: dict[str, Schema] = {name: _without_null_default(field) for name, field in declared["properties"].items()}
    inputs = _inputs(limits)
    for name in ("input", "inputs"):
        fields[name] = {**inputs, **fields[name]}
    fields["texts"] = fields["texts"] | {"anyOf": [_list_of(_NOT_EMPTY, limits), {"type": "null"}]}
    fields["images"] = fields["images"] | {"anyOf": [_list_of(_NOT_EMPTY, limits), {"type": "null"}]}
    for name in ("dimensions", "output_dimension"):
        fields[name] = {**_dimensions(model), **fields[name], "anyOf": _dimensions(model)["anyOf"]}
    null = [] if model.is_task_always_required else [None]
    fields["task"] |= {"enum": [*known_tasks(model), *null], "description": _tasks(model)}
    fields["normalized"] |= {"default": True}
    fields["truncate"] |= {"default": False}
    fields["input_type"] |= {"enum": [*known_input_types(model), *null]}
    for modality, name in (("image", "images"), ("text", "texts")):
        if modality not in model.modalities:
            del fields[name]
    needed: list[Schema] = [{"anyOf": [{"required": [name]} for name in INPUT_FIELDS if name in fields]}]
    if model.is_task_always_required:
        needed.append({"anyOf": [{"required": ["task"]}, {"required": ["input_type"]}]})
    single = {"enum": [False, None]}
    if model.spaces.multi is None:
        fields["return_multivector"] = single
    else:  # whose dimensions are what they are
        whole = {name: {"type": "null"} for name in ("dimensions", "output_dimension")}
        needed.append({"anyOf": [{"properties": {"return_multivector": single}}, {"properties": whole}]})
    return {"type": "object", "allOf": needed, "additionalProperties": {"type": "null"}, "properties": fields}


def _inputs(limits: RequestLimits) -> Schema:
    """The shapes of `input`: one item or a list of them, and token ids where they are allowed."""
    model, item = limits.model, _item(limits)
    shapes: list[Schema] = [item, _list_of(item, limits)]
    if limits.allow_token_ids:
        ids: Schema = {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": model.vocabulary - 1},
            "minItems": 1,
            "description": "token ids of this model's tokenizer",
        }
        shapes += [ids, _list_of(ids, limits)]
    together = f"texts of at most {limits.max_request_chars} characters together, written in NFKC"
    return {"anyOf": [*shapes, {"type": "null"}], "description": together if "text" in model.modalities else "images"}


def _item(limits: RequestLimits) -> Schema:
    """A text or an image, as far as the model takes them."""
    texts, images = ("text" in limits.model.modalities, "image" in limits.model.modalities)
    strings = [f"a text of at most {limits.max_text_chars} characters"] if texts else []
    strings += ["an image: a data URI, or the base64 of its file"] if images else []
    string: Schema = {**_NOT_EMPTY, "description": ", or ".join(strings)}
    shapes = [string, _object_of("text", string)]
    if images:
        url = "an https:// URL or " if limits.allow_urls else ""
        described = {"image": f"{url}base64 or a data URI", "url": f"{url}a data URI", "bytes": "base64"}
        shapes += [_object_of(name, {**_NOT_EMPTY, "description": text}) for name, text in described.items()]
    return {"anyOf": shapes}


def _dimensions(model: ServedModel) -> Schema:
    """The numbers of dimensions that a vector may be cut to."""
    if model.only_dims is not None:
        taken = [*model.only_dims, *map(str, model.only_dims), None]
        return {"anyOf": [{"enum": taken}], "description": f"the first so many of {model.dim}"}
    return {
        "anyOf": [
            {"type": ["integer", "null"], "minimum": 1, "maximum": model.dim},
            {"type": "string", "pattern": "^[0-9]{1,9}$"},
        ],
        "description": f"the first so many of {model.dim}",
    }


def _tasks(model: ServedModel) -> str:
    """The description of `task`."""
    if model.refuses_other_tasks:
        return "what the vectors are for, one of the model's tasks"
    return f"this model has an instruction for: {', '.join(model.tasks) or 'none'}. The others change nothing"


def _list_of(items: Schema, limits: RequestLimits) -> Schema:
    return {"type": "array", "items": items, "minItems": 1, "maxItems": limits.max_items}


def _object_of(name: str, schema: Schema) -> Schema:
    return {"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": False}


def _without_null_default(field: Schema) -> Schema:
    """The schema of a field without "default": null, which says nothing."""
    return {key: value for key, value in field.items() if key != "default" or value is not None}
