"""What the service says of itself: the OpenAPI document, and the page at /docs that shows it.

The document is written by hand, since the request is read by `edgeclip.serve.api.request` and not by a model class: a
union of both dialects says little, and wrongly, when it is derived. Swagger's files come from the package
fastapi-offline, so the page works without a network; none of its script is inline, so the policy can forbid that.
"""

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edgeclip.errors import MissingExtraError
from edgeclip.host.installation import install_command
from edgeclip.serve.api.request import RequestLimits
from edgeclip.serve.api.request_fields import (
    CUTS,
    FORMATS,
    IGNORED_FIELDS,
    INPUT_FIELDS,
    INPUT_TYPES,
    JINA_TASKS,
    OPENAI_FORMATS,
)

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css", "favicon.png": "image/png"}
# Everything is relative to where it was loaded from: a proxy may have put a prefix before the paths.
START_SCRIPT = """SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#docs", deepLinking: true, tryItOutEnabled: true,
  presets: [SwaggerUIBundle.presets.apis],
});
"""
_DOCS_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>edgeclip API</title>
<link rel="stylesheet" href="{folder}swagger-ui.css"><link rel="icon" href="{folder}favicon.png">
</head>
<body>
<div id="docs"></div>
<script src="{folder}swagger-ui-bundle.js"></script><script src="{folder}start.js"></script>
</body>
</html>
"""


def docs_page(*, is_folder: bool) -> str:
    """The page at /docs; `is_folder` where its address ends in a slash, and so stands among its files already."""
    return _DOCS_PAGE.replace("{folder}", "" if is_folder else "docs/")


@cache  # 1.5 MB, once somebody asks: a copy for each connection that does not read it would be gigabytes
def read_asset(name: str) -> bytes:
    """One of Swagger's files. The package that brings them would import FastAPI: it is looked up, not imported."""
    found = find_spec("fastapi_offline")
    if found is None or not found.submodule_search_locations:
        raise MissingExtraError(f"the page at /docs needs fastapi-offline; `{install_command('serve')}`")
    return (Path(found.submodule_search_locations[0]) / "static" / name).read_bytes()


def describe(*, version: str, model: str, limits: RequestLimits, is_key_needed: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a service of this model with these limits."""
    security: list[dict[str, list[str]]] = [{"key": []}] if is_key_needed else []
    json_of = partial(_json_of, "#/components/schemas/")
    errors = {
        status: {"description": text, **json_of("Error")}
        for status, text in {
            "400": "something in the request is wrong; the message names it",
            "401": "an API key is needed",
            "404": "another model was asked for, and the service was started with --check-model",
            "408": "the request was not sent in time",
            "413": "the body or an image is too large",
            "415": "the body is not JSON",
            "431": "the head of the request is too large",
            "429": "too much is waiting; Retry-After says when to come back",
            "500": "a bug",
            "503": "the device failed, the service is ending, or there are too many connections",
            "504": "the answer was not ready in time",
        }.items()
        if is_key_needed or status != "401"
    }
    example = {"model": model, "input": [{"text": "a red bicycle"}], "dimensions": min(64, limits.model.dim)}
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/EmbeddingRequest"}, "example": example}}
    embeddings = {
        "operationId": "embed",
        "summary": "Vectors of texts and images, in OpenAI's and in Jina's dialect",
        "requestBody": {"required": True, "content": body},
        "responses": {"200": {"description": "the vectors, in order", **json_of("EmbeddingResponse")}, **errors},
        "security": security,
    }
    refused = {"401": errors["401"]} if is_key_needed else {}
    models = {
        "operationId": "models",
        "summary": "The model that is served",
        "responses": {"200": {"description": "a list of one", **json_of("Models")}, **refused},
        "security": security,
    }
    one_model = {
        "operationId": "model",
        "summary": "The model, by its name",
        "parameters": [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
        ],
        "responses": {
            "200": {"description": "the model", **json_of("Model")},
            "404": {"description": "another one is served", **json_of("Error")},
            **refused,
        },
        "security": security,
    }
    health = json_of("Health")
    text = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "openapi": "3.1.0",
        "servers": [{"url": "./", "description": "this service, whatever prefix a proxy puts before its paths"}],
        "info": {"title": "edgeclip", "version": version, "description": _DESCRIPTION},
        "paths": {
            "/v1/embeddings": {"post": embeddings},
            "/v1/models": {"get": models},
            "/v1/models/{model}": {"get": one_model},
            "/health/live": {
                "get": {
                    "operationId": "live",
                    "summary": "Whether the process answers",
                    "responses": {"200": {"description": "it does", **health}},
                }
            },
            "/health/ready": {
                "get": {
                    "operationId": "ready",
                    "summary": "Whether the self-test passes on the device",
                    "responses": {
                        "200": {"description": "it does", **health},
                        "503": {"description": "it does not, or not yet", **health},
                    },
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Prometheus' metrics",
                    "responses": {"200": {"description": "the text format", "content": text}},
                }
            },
        },
        "components": {
            "schemas": {"EmbeddingRequest": _request(limits), **_ANSWERS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


_DESCRIPTION = (
    "Text and image embeddings of one bundle. A drop-in for the hosted embedding APIs: change the client's base URL."
)
_USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "total_tokens"],
    "properties": {"prompt_tokens": {"type": "integer"}, "total_tokens": {"type": "integer"}},
    "description": "tokens of texts; 4,000 for every 512 x 512 pixel tile of an image, partly filled ones counted",
}
_ONE_VECTOR = {
    "anyOf": [
        {"type": "array", "items": {"type": "number"}},
        {"type": "string", "description": "base64 of little-endian float32"},
    ]
}
_ANSWERS: dict[str, Any] = {
    "Embedding": {
        "type": "object",
        "required": ["object", "index", "embedding"],
        "properties": {
            "object": {"const": "embedding"},
            "index": {"type": "integer"},
            "embedding": {
                "anyOf": [
                    *_ONE_VECTOR["anyOf"],
                    {"type": "object", "additionalProperties": _ONE_VECTOR, "description": "one entry a format"},
                ]
            },
            "truncated": {"const": True, "description": "the text was cut to the model's length"},
        },
    },
    "EmbeddingResponse": {
        "type": "object",
        "required": ["object", "data", "model", "usage"],
        "properties": {
            "object": {"const": "list"},
            "model": {"type": "string"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Embedding"}},
            "usage": _USAGE,
        },
    },
    "Models": {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
        },
    },
    "Model": {
        "type": "object",
        "required": ["id", "object", "created", "owned_by"],
        "properties": {
            "id": {"type": "string"},
            "object": {"const": "model"},
            "created": {"type": "integer"},
            "owned_by": {"type": "string"},
            "dimensions": {"type": "array", "items": {"type": "integer"}},
            "max_length": {"type": "integer", "description": "tokens of a text, the opening and closing one counted"},
            "tasks": {"type": "array", "items": {"type": "string"}, "description": "with an instruction"},
            "tasks_without_instruction": {
                "type": "array",
                "items": {"type": "string"},
                "description": "taken too; they change nothing",
            },
        },
    },
    "Health": {
        "type": "object",
        "required": ["status"],
        "properties": {"status": {"enum": ["ok", "unavailable"]}, "reason": {"type": "string"}},
    },
    "Error": {
        "type": "object",
        "required": ["error", "detail"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {
                    "message": {"type": "string"},
                    "type": {"type": "string"},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
            },
            "detail": {"type": "string", "description": "the message, where Jina's clients look for it"},
        },
    },
}


def _json_of(prefix: str, name: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": prefix + name}}}}


def _request(limits: RequestLimits) -> dict[str, Any]:
    """The request of both dialects: what `parse_request` takes."""
    image_too = "or an image: a data URI, or the base64 of its file"
    text = {
        "type": "string",
        "minLength": 1,
        "description": f"a text of at most {limits.max_text_chars} characters, {image_too}",
    }
    ids = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": limits.model.vocabulary - 1},
        "minItems": 1,
        "description": "token ids of this model's tokenizer",
    }
    image = {"type": "string", "minLength": 1}
    url = "an https:// URL, " if limits.allow_urls else ""
    objects = [
        _object_of("text", text),
        _object_of("image", {**image, "description": f"{url}base64, or a data URI"}),
        _object_of("url", {**image, "description": f"{url}or a data URI"}),
        _object_of("bytes", {**image, "description": "base64"}),
    ]
    item = {"anyOf": [text, *objects]}
    shapes: list[dict[str, Any]] = [
        item,
        {"type": "array", "items": item, "minItems": 1, "maxItems": limits.max_items},
    ]
    if limits.allow_token_ids:
        shapes += [ids, {"type": "array", "items": ids, "minItems": 1, "maxItems": limits.max_items}]
    forms = {"enum": list(FORMATS)}
    some_forms = {"anyOf": [{"enum": [*FORMATS, None]}, {"type": "array", "items": forms, "minItems": 1}]}
    full = limits.model.dim
    inputs = {
        "anyOf": [*shapes, {"type": "null"}],
        "description": f"texts of at most {limits.max_request_chars} characters together, written in NFKC",
    }
    strings = {"type": ["array", "null"], "items": {"type": "string", "minLength": 1}, "minItems": 1}
    dimensions = {
        "anyOf": [
            {"type": ["integer", "null"], "minimum": 1, "maximum": full},
            {"type": "string", "pattern": "^[0-9]{1,9}$"},
        ],
        "description": f"the first so many of {full}",
    }
    tasks = ", ".join(limits.model.tasks) or "none"
    return {
        "type": "object",
        "anyOf": [{"required": [name]} for name in INPUT_FIELDS],
        "additionalProperties": {"type": "null"},
        "properties": {
            "model": {"type": ["string", "null"], "maxLength": 256, "description": "any name; it is echoed"},
            "input": inputs,
            "inputs": {**inputs, "description": "input, as Hugging Face calls it"},
            "texts": {**strings, "description": "input, as Cohere calls texts"},
            "images": {**strings, "description": "input, as Cohere calls images"},
            "dimensions": dimensions,
            "output_dimension": {**dimensions, "description": "dimensions, as Cohere, Voyage and Mistral call them"},
            "encoding_format": {"enum": [*OPENAI_FORMATS, None], "description": "OpenAI's"},
            "embedding_type": {**some_forms, "description": "Jina's"},
            "encoding_type": {**some_forms, "description": "Jina's older name"},
            "embedding_types": {**some_forms, "description": "Cohere's"},
            "output_dtype": {"enum": [*FORMATS, None], "description": "Voyage's and Mistral's"},
            "task": {
                "enum": [*dict.fromkeys((*limits.model.tasks, *JINA_TASKS)), None],
                "description": f"this model has an instruction for: {tasks}. The others change nothing",
            },
            "input_type": {
                "enum": [*INPUT_TYPES, None],
                "description": "the task, as Cohere, Voyage, NVIDIA and Elasticsearch call it",
            },
            "modality": {
                "anyOf": [
                    {"enum": ["text", "image", None]},
                    {"type": "array", "items": {"enum": ["text", "image"]}, "minItems": 1},
                ],
                "description": "NVIDIA's: what the inputs are; an error where they are not",
            },
            "normalized": {"type": ["boolean", "null"], "default": True},
            "truncate": {
                "enum": [True, False, *CUTS, None],
                "default": False,
                "description": "whether a text that is too long is cut at its end, and marked; else it is an error",
            },
            "truncation": {"type": ["boolean", "null"], "description": "truncate, as Voyage calls it"},
            **{name: {"description": "ignored"} for name in IGNORED_FIELDS},
            "late_chunking": {"enum": [False, None]},
            "return_multivector": {"enum": [False, None]},
        },
    }


def _object_of(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": [name], "properties": {name: schema}, "additionalProperties": False}
