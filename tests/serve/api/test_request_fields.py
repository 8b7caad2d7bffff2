"""Fields of several vendors mean one thing each; a misspelt one, and two that contradict each other, are errors."""

from typing import Any

import pytest

from edgeclip.serve.api.request import EmbeddingRequest, ImageItem, TextItem, parse_request
from edgeclip.serve.errors import ApiError
from tests.serve.api.test_request import LIMITS, MODEL, PIXEL


def parse(**fields: Any) -> EmbeddingRequest:
    given = fields if any(name in fields for name in ("inputs", "texts", "images")) else {"input": "a", **fields}
    return parse_request(given, LIMITS)


def refusal(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(**fields)
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    "task", ["retrieval.passage", "text-matching", "classification", "separation", "clustering", None]
)
def test_a_task_without_an_instruction_changes_nothing(task: str | None) -> None:
    """LangChain.js, pymilvus, Weaviate and Elasticsearch send them to every model of Jina's API."""
    assert parse(task=task) == parse()


def test_a_task_that_the_hosted_api_does_not_have_is_refused_with_those_it_has() -> None:
    for task in ("retrieval.passages", "RETRIEVAL.QUERY", "", "nl2code.query"):
        error = refusal(task=task)
        assert (error.param, error.code) == ("task", "invalid_value")
        assert "retrieval.query, retrieval.passage, text-matching" in error.message


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        *((kind, "retrieval.query") for kind in ("query", "search_query", "search")),
        *((kind, None) for kind in ("document", "search_document", "passage", "ingest")),
        *(("classification", None), ("clustering", None), (None, None)),
    ],
)
def test_input_types_of_other_vendors(kind: str | None, task: str | None) -> None:
    """A query gets the model's instruction for queries, a document none."""
    assert parse(input_type=kind).task == task


def test_a_model_of_texts_whose_one_task_is_merged_refuses_the_others() -> None:
    """Its vectors are that task's, whatever a request says."""
    import dataclasses

    model = dataclasses.replace(MODEL, modalities=("text",), refuses_other_tasks=True)
    limits = dataclasses.replace(LIMITS, model=model)
    assert parse_request({"input": "a", "task": "retrieval.query"}, limits).task == "retrieval.query"
    for fields in ({"task": "separation"}, {"input_type": "document"}):
        with pytest.raises(ApiError, match="retrieval.query"):
            parse_request({"input": "a", **fields}, limits)


def test_a_model_without_instructions_takes_every_task() -> None:
    import dataclasses

    limits = dataclasses.replace(LIMITS, model=dataclasses.replace(MODEL, tasks={}))
    for fields in ({"task": "retrieval.query"}, {"input_type": "query"}):
        assert parse_request({"input": "a", **fields}, limits).task is None


@pytest.mark.parametrize(
    ("fields", "is_cut"),
    [
        ({}, False),
        ({"truncate": None}, False),
        ({"truncate": False}, False),
        ({"truncate": True}, True),
        ({"truncate": "NONE"}, False),
        ({"truncate": "END"}, True),
        ({"truncate": "START"}, False),
        ({"truncation": True}, True),
        ({"truncation": False}, False),
        ({"truncate": "END", "truncation": True}, True),
    ],
)
def test_a_text_is_cut_only_when_that_is_asked_for(fields: dict[str, Any], is_cut: bool) -> None:
    assert parse(**fields).is_cut is is_cut


def test_dimensions_of_other_vendors() -> None:
    assert parse(output_dimension=16).dim == parse(output_dimension=16, dimensions="16").dim == 16


@pytest.mark.parametrize(
    ("fields", "formats", "is_keyed"),
    [
        ({"output_dtype": "ubinary"}, ("ubinary",), False),
        ({"output_dtype": "float", "encoding_format": "base64"}, ("base64",), False),
        ({"output_dtype": "float", "encoding_format": None}, ("float",), False),
        ({"embedding_types": ["float", "binary"]}, ("float", "binary"), True),
        ({"embedding_types": ["float"], "embedding_type": ["float"]}, ("float",), True),
    ],
)
def test_formats_of_other_vendors(fields: dict[str, Any], formats: tuple[str, ...], is_keyed: bool) -> None:
    found = parse(**fields)
    assert (found.formats, found.is_keyed) == (formats, is_keyed)


def test_inputs_of_other_vendors() -> None:
    texts = (TextItem(text="a"), TextItem(text="b"))
    assert parse(texts=["a", "b"]).items == parse(inputs=["a", "b"]).items == texts
    assert parse(inputs="a").items == texts[:1]
    assert parse(images=[f"data:image/gif;base64,{PIXEL}"]).items == (ImageItem(data=PIXEL),)
    assert parse(texts=["a", "b"], input=None, images=None).items == texts


def test_what_the_inputs_are_said_to_be_is_checked() -> None:
    image = {"image": PIXEL}
    assert parse(input=[image], input_type="image") == parse(input=[image], modality="image") == parse(input=[image])
    assert parse(input=["a", image], modality=["text", "image"]) == parse(input=["a", image])
    for fields in ({"input_type": "image"}, {"modality": "image"}, {"modality": ["text", "text"]}, {"modality": "x"}):
        assert refusal(**fields).param == next(iter(fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"task": "retrieval.query", "input_type": "document"},
        {"task": "retrieval.passage", "input_type": "search_query"},
        {"truncate": True, "truncation": False},
        {"truncate": "NONE", "truncation": True},
        {"dimensions": 16, "output_dimension": 32},
        {"output_dtype": "binary", "encoding_format": "base64"},
        {"embedding_types": ["float"], "embedding_type": "binary"},
    ],
    ids=repr,
)
def test_fields_that_contradict_each_other_are_refused_by_both_names(fields: dict[str, Any]) -> None:
    error = refusal(**fields)
    assert error.param in fields
    assert "contradict each other" in error.message and all(name in error.message for name in fields)


def test_two_fields_of_inputs_are_refused() -> None:
    assert refusal(input="a", texts=["b"]).param == "texts"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_type": "queries"}, "input_type"),
        ({"input_type": ["query"]}, "input_type"),
        ({"truncate": "end"}, "truncate"),
        ({"truncate": 0}, "truncate"),
        ({"truncation": "END"}, "truncation"),
        ({"output_dimension": 65}, "output_dimension"),
        ({"output_dimension": True}, "output_dimension"),
        ({"output_dtype": "int8"}, "output_dtype"),
        ({"output_dtype": ["float"]}, "output_dtype"),
        ({"embedding_types": ["int8"]}, "embedding_types"),
        ({"texts": "a"}, "texts"),
        ({"texts": [{"text": "a"}]}, "texts"),
        ({"images": [PIXEL, 3]}, "images"),
        ({"late_chunking": 0}, "late_chunking"),
        ({"return_multivector": True}, "return_multivector"),
    ],
    ids=repr,
)
def test_values_that_cannot_be_taken_are_refused_by_the_name_of_their_field(
    fields: dict[str, Any], param: str
) -> None:
    assert refusal(**fields).param == param


def test_unknown_fields_that_are_null_are_ignored() -> None:
    assert parse(dimension=None, anything=None) == parse()
    assert parse(input=[{"text": "a", "image": None, "id": None}]) == parse(input=["a"])


def test_fields_that_say_nothing_of_the_vectors_are_ignored() -> None:
    assert parse(user="me", metadata={"a": [1]}) == parse(user=3)


@pytest.mark.parametrize(
    ("name", "param"),
    [
        ("dimension", "dimension"),
        ("max tokens", "max tokens"),
        ("größe", "größe"),
        ('it\'s "so"', 'it\'s "so"'),
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
        ("a\u202eb\u200b", r"a\u202eb\u200b"),
        ("", ""),
        ("x" * 5000, "x" * 40 + "..."),
    ],
    ids=ascii,
)
def test_an_unknown_field_is_named_as_it_is_short_and_printable(name: str, param: str) -> None:
    error = refusal(**{name: 1})
    assert (error.param, error.code) == (param, "unknown_parameter")
    assert f"the field {param} is unknown" in error.message and error.message.isprintable()


def test_a_misspelt_field_is_told_with_the_nearest_one() -> None:
    assert "did you mean dimensions?" in refusal(dimension=16).message
    assert "did you mean" not in refusal(frequency_penalty=16).message
