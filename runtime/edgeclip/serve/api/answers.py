"""The answers of the API, declared once: their OpenAPI schemas come from these classes.

`edgeclip.serve.api.response` writes the JSON of vectors by itself, because they are arrays.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edgeclip.manifest import Modality, Source, Spaces, TaskFacts
from edgeclip.serve.api.request_fields import JINA_TASKS
from edgeclip.serve.api.served_model import ServedModel

_Numbers = list[float]
_Encoded = Annotated[str, Meta(description="base64 of little-endian float32")]


class Embedding(msgspec.Struct, kw_only=True):
    """The vector of one input; an object with an entry for each format where several were asked for."""

    object: Literal["embedding"]
    index: int
    embedding: _Numbers | _Encoded | dict[str, _Numbers | _Encoded]
    truncated: Annotated[bool, Meta(description="the text was cut to the model's length")] | UnsetType = UNSET


class MultiEmbedding(msgspec.Struct, kw_only=True):
    """The vectors of one input, one for each token; an object of such lists where several formats were asked for."""

    object: Literal["embedding"]
    index: int
    embeddings: list[_Numbers | _Encoded] | dict[str, list[_Numbers | _Encoded]]
    truncated: Annotated[bool, Meta(description="the text was cut to the model's length")] | UnsetType = UNSET


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of texts; 4,000 for every 512 x 512 pixel tile of an image in jina-clip, partly filled ones counted.

    Models that divide images into tokens count those, and the tokens of the prompt around them.
    """

    prompt_tokens: int
    total_tokens: int


class EmbeddingResponse(msgspec.Struct, kw_only=True):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class MultiEmbeddingResponse(msgspec.Struct, kw_only=True):
    """Multi vectors in the order of the inputs: the answer to `return_multivector`."""

    object: Literal["list"]
    data: list[MultiEmbedding]
    model: str
    usage: Usage


class Model(msgspec.Struct, kw_only=True):
    """OpenAI's fields of a model, and what it takes, its tasks and its vectors."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str
    modalities: tuple[Modality, ...]
    dimensions: Annotated[tuple[int, ...], Meta(description="those that the model was trained to be cut to")]
    spaces: Spaces
    max_length: (
        Annotated[int, Meta(description="tokens of a text, the opening and closing one counted")] | UnsetType
    ) = UNSET
    max_pixels: Annotated[int, Meta(description="larger images are scaled down to so many")] | UnsetType = UNSET
    tasks: tuple[str, ...]
    task_required: Annotated[bool, Meta(description="without a task the vectors would be wrong")]
    task_details: Mapping[str, TaskFacts]
    tasks_without_instruction: Annotated[tuple[str, ...], Meta(description="taken too; they change nothing")]

    @classmethod
    def of(cls, name: str, source: Source, model: ServedModel) -> Self:
        """The model that is served under this name."""
        ignored = () if model.refuses_other_tasks else JINA_TASKS
        return cls(
            id=name,
            owned_by=source.name.rpartition("/")[0] or "edgeclip",
            modalities=model.modalities,
            dimensions=model.spaces.single.matryoshka_dims,
            spaces=model.spaces,
            max_length=model.max_length or UNSET,
            max_pixels=model.max_pixels or UNSET,
            tasks=tuple(model.tasks),
            task_required=model.is_task_required,
            task_details=model.tasks,
            tasks_without_instruction=tuple(task for task in ignored if task not in model.tasks),
        )


class Models(msgspec.Struct, kw_only=True):
    """A list of the one model."""

    object: Literal["list"] = "list"
    data: list[Model]


class Health(msgspec.Struct, kw_only=True):
    """Whether the service can answer, and why not; `ready` are the inputs that it can answer all the same."""

    status: Literal["ok", "unavailable"]
    reason: str | UnsetType = UNSET
    ready: tuple[Modality, ...] | UnsetType = UNSET


class ErrorFacts(msgspec.Struct, kw_only=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct, kw_only=True):
    """An error as OpenAI's clients read it, with `detail` for Jina's."""

    error: ErrorFacts
    detail: str


def answer_schemas(prefix: str) -> dict[str, Any]:
    """The schemas of all answers by name; references to them begin with `prefix`."""
    answers = (EmbeddingResponse, MultiEmbeddingResponse, Models, Health, Error)
    _, schemas = msgspec.json.schema_components(answers, ref_template=prefix + "{name}")
    return schemas
