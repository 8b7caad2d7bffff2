"""The OpenAPI document: the paths of the API, written by hand, with the schemas of what goes in and comes out.

`edgeclip.serve.api.request_schema` and `edgeclip.serve.api.answers` give the schemas.
"""

from typing import Any

from edgeclip.serve.api.answers import answer_schemas
from edgeclip.serve.api.request import RequestLimits
from edgeclip.serve.api.request_schema import request_schema


def describe(*, version: str, model: str, limits: RequestLimits, is_key_needed: bool) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a service of this model with these limits."""
    guarded: dict[str, Any] = {"security": [{"key": []}] if is_key_needed else []}
    return {
        "openapi": "3.1.0",
        "servers": [{"url": "./", "description": "this service, whatever prefix a proxy puts before its paths"}],
        "info": {"title": "edgeclip", "version": version, "description": _DESCRIPTION},
        "paths": {
            "/v1/embeddings": {"post": {**_embeddings(model, limits, is_key_needed), **guarded}},
            "/v1/models": {"get": {**_models(is_key_needed), **guarded}},
            "/v1/models/{model}": {"get": {**_one_model(model, is_key_needed), **guarded}},
            **_OPEN_PATHS,
        },
        "components": {
            "schemas": {"EmbeddingRequest": request_schema(limits), **answer_schemas(_SCHEMAS)},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _embeddings(model: str, limits: RequestLimits, is_key_needed: bool) -> dict[str, Any]:
    abilities = limits.model
    some_dim = abilities.only_dims[0] if abilities.only_dims else min(64, abilities.dim)
    given = {"text": "a red bicycle"} if "text" in abilities.modalities else {"image": _EXAMPLE_IMAGE}
    example: dict[str, Any] = {"model": model, "input": [given], "dimensions": some_dim}
    if abilities.is_task_required:
        example["task"] = next(iter(abilities.tasks))
    schema = {"$ref": _SCHEMAS + "EmbeddingRequest"}
    answers = ["EmbeddingResponse", *(["MultiEmbeddingResponse"] if abilities.spaces.multi else [])]
    errors = {status: _answer(text, "Error") for status, text in _ERRORS.items() if is_key_needed or status != "401"}
    return {
        "operationId": "embed",
        "summary": f"Vectors of {' and '.join(f'{one}s' for one in abilities.modalities)}",
        "requestBody": {"required": True, "content": {_JSON: {"schema": schema, "example": example}}},
        "responses": {"200": _answer("the vectors, in order", *answers), **errors},
    }


def _models(is_key_needed: bool) -> dict[str, Any]:
    return {
        "operationId": "models",
        "summary": "The model that is served",
        "responses": {"200": _answer("a list of one", "Models"), **_refused(is_key_needed)},
    }


def _one_model(model: str, is_key_needed: bool) -> dict[str, Any]:
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}, "example": model}
    return {
        "operationId": "model",
        "summary": "The model, by its name",
        "parameters": [name],
        "responses": {
            "200": _answer("the model", "Model"),
            "404": _answer("another one is served", "Error"),
            **_refused(is_key_needed),
        },
    }


def _refused(is_key_needed: bool) -> dict[str, Any]:
    return {"401": _answer(_ERRORS["401"], "Error")} if is_key_needed else {}


def _answer(description: str, *schemas: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = [{"$ref": _SCHEMAS + schema} for schema in schemas]
    return {
        "description": description,
        "content": {_JSON: {"schema": found[0] if len(found) == 1 else {"anyOf": found}}},
    }


_JSON, _SCHEMAS = "application/json", "#/components/schemas/"
# The smallest GIF: one pixel.
_EXAMPLE_IMAGE = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
_ERRORS = {
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
}
_OPEN_PATHS: dict[str, Any] = {
    "/health/live": {
        "get": {
            "operationId": "live",
            "summary": "Whether the process answers",
            "responses": {"200": _answer("it does", "Health")},
        }
    },
    "/health/ready": {
        "get": {
            "operationId": "ready",
            "summary": "Whether the self-test passes on the device",
            "parameters": [
                {
                    "name": "modality",
                    "in": "query",
                    "description": "for these inputs alone: texts are ready before an image's graph is loaded",
                    "schema": {"type": "string", "enum": ["text", "image"]},
                }
            ],
            "responses": {
                "200": _answer("it does", "Health"),
                "400": _answer("the service takes no such inputs", "Error"),
                "503": _answer("it does not, or not yet", "Health"),
            },
        }
    },
    "/metrics": {
        "get": {
            "operationId": "metrics",
            "summary": "Prometheus' metrics",
            "responses": {
                "200": {"description": "the text format", "content": {"text/plain": {"schema": {"type": "string"}}}}
            },
        }
    },
}
_DESCRIPTION = (
    "Text and image embeddings of one bundle. A drop-in for the hosted embedding APIs: change the client's base URL."
)
