"""The manifest says everything a bundle knows, survives a round trip, and refuses what it does not know."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclip.errors import BundleError, InputError
from edgeclip.manifest import (
    FIRST_GRAPH,
    MANIFEST_NAME,
    MODALITIES,
    SCHEMA_VERSION,
    AdapterFacts,
    FileFacts,
    Manifest,
    MultiSpace,
    RetrievalChange,
    SingleSpace,
    TaskFacts,
)

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document(bundle: Path) -> Document:
    return json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))


def refusal(text: str) -> str:
    """The one line that a manifest is refused with."""
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(text)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    return message


def test_writing_and_reading_gives_the_same_manifest(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert (bundle / MANIFEST_NAME).read_text(encoding="utf-8") == manifest.to_json()


def test_what_was_measured_survives_too(int8_bundle: Path) -> None:
    """Searches and timings, and where there are none, null."""
    manifest = Manifest.read(int8_bundle)
    assert Manifest.from_json(manifest.to_json()) == manifest
    proved = manifest.measurement("text", "single", "fp32 bundle", "made-up inputs")
    assert proved is not None and isinstance(proved.retrieval, RetrievalChange)
    assert '"retrieval": null' in manifest.to_json() and '"kernels": {\n' in manifest.to_json()


def test_of_two_measurements_with_one_name_the_first_is_given(int8_bundle: Path) -> None:
    """The bundle's own: a user's folder may be called as its data is."""
    manifest = Manifest.read(int8_bundle)
    (own,) = [one for one in manifest.measured if (one.modality, one.against) == ("image", "fp32 bundle")]
    twice = dataclasses.replace(manifest, measured=(*manifest.measured, dataclasses.replace(own, samples=3)))
    assert twice.measurement("image", "single", "fp32 bundle", own.data) == own
    assert twice.measurement("image", "single", "fp32 checkpoint", own.data) is None
    assert twice.measurement("image", "multi", "fp32 bundle", own.data) is None
    assert twice.measurement("text", "single", "fp32 bundle", own.data) != own


def test_json_numbers_become_the_types_of_the_fields(document: Document) -> None:
    """A whole number where a float is wanted is that float; lists become tuples."""
    changed = document | {"image": document["image"] | {"mean": [0, 1, 0.5]}}
    mean = Manifest.from_json(json.dumps(changed)).need_image().mean
    assert mean == (0.0, 1.0, 0.5)
    assert [type(number) for number in mean] == [float] * 3


def test_texts_in_any_script_stay_readable(document: Document) -> None:
    task = {"prompt": "質問: ", "adapter": None, "modalities": ["text"]}
    manifest = Manifest.from_json(json.dumps(document | {"tasks": {"検索": task}}))
    assert manifest.tasks == {"検索": TaskFacts(prompt="質問: ", adapter=None, modalities=("text",))}
    assert "検索" in manifest.to_json()


def test_nothing_in_a_manifest_can_be_changed(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    graph, task = manifest.graphs["text"], manifest.tasks["retrieval.query"]
    spaces = (manifest.spaces, manifest.spaces.single, MultiSpace(dim=1))
    inputs = (manifest.need_text(), manifest.need_image(), graph.inputs[0], graph.outputs[0])
    adapter = AdapterFacts(file="a.npz", graph="text", rank=4)
    for part in (manifest, manifest.source, graph, task, adapter, *spaces, *inputs, manifest.files[0]):
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, getattr(part, field))


def test_a_graph_a_file_and_the_size_are_found(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert manifest.modalities == MODALITIES == ("text", "image")
    assert [manifest.first_graph(modality) for modality in MODALITIES] == [
        manifest.graphs["text"],
        manifest.graphs["vision"],
    ]
    assert manifest.first_graph("image").file == "vision.onnx"
    assert manifest.file("tokenizer.json") == next(f for f in manifest.files if f.name == "tokenizer.json")
    assert manifest.weight_bytes == sum(
        path.stat().st_size for path in bundle.iterdir() if path.name != MANIFEST_NAME
    )


def drop(*path: str | int) -> Callable[[Document], None]:
    """A change that removes the value at a path."""

    def change(document: Document) -> None:
        *parents, last = path
        for key in parents:
            document = document[key]
        del document[last]

    return change


def put(value: object, *path: str | int) -> Callable[[Document], None]:
    """A change that puts a value at a path."""

    def change(document: Document) -> None:
        *parents, last = path
        for key in parents:
            document = document[key]
        document[last] = value

    return change


def together(*changes: Callable[[Document], None]) -> Callable[[Document], None]:
    """Several changes as one."""

    def change(document: Document) -> None:
        for one in changes:
            one(document)

    return change


LORA: Document = {"file": "lora.npz", "graph": "text", "rank": 8}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(1, "colour"), "manifest: unknown colour"),
        (put(1, "text", "device"), "manifest.text: unknown device"),
        (put(1, "graphs", "text", "device"), "manifest.graphs.text: unknown device"),
        (put(1, "files", 0, "mtime"), "manifest.files[0]: unknown mtime"),
        (drop("opset"), "manifest: opset missing"),
        (drop("image", "mean"), "manifest.image: mean missing"),
        (drop("files", 1, "sha256"), "manifest.files[1]: sha256 missing"),
        (put("23", "opset"), "manifest.opset: wanted int, found a string"),
        (put(23.0, "opset"), "manifest.opset: wanted int, found 23.0"),
        (put(True, "opset"), "manifest.opset: wanted int, found True"),
        (put(None, "source", "name"), "manifest.source.name: wanted str, found null"),
        (put(None, "source"), "manifest.source: wanted an object, found null"),
        (put([], "source"), "manifest.source: wanted an object, found a list"),
        (put({}, "files"), "manifest.files: wanted a list, found an object"),
        (
            put("8", "spaces", "single", "matryoshka_dims"),
            "manifest.spaces.single.matryoshka_dims: wanted a list, found a string",
        ),
        (
            put("8", "spaces", "single", "matryoshka_dims", 0),
            "manifest.spaces.single.matryoshka_dims[0]: wanted int, found a string",
        ),
        (put([1, 2], "image", "std"), "manifest.image.std: wanted 3 values, found 2"),
        (put(True, "image", "std", 0), "manifest.image.std[0]: wanted float, found True"),
        (put(float("nan"), "image", "mean", 0), "manifest.image.mean[0]: wanted a finite number"),
        (put(10**400, "image", "mean", 0), "manifest.image.mean[0]: wanted a finite number"),
        (put([], "built_with"), "manifest.built_with: wanted an object, found a list"),
        (put(3, "built_with", "torch"), "manifest.built_with.torch: wanted str, found 3"),
        (put("gpu", "target"), "manifest.target: 'gpu' is none of cpu, cuda, tensorrt"),
        (put(["cpu"], "target"), "manifest.target: ['cpu'] is none of cpu, cuda, tensorrt"),
        (
            put("fp8", "graphs", "vision", "precision"),
            "manifest.graphs.vision.precision: 'fp8' is none of fp32, fp16, int8, int4",
        ),
        (put("crop", "image", "resize_mode"), "manifest.image.resize_mode: 'crop' is none of"),
        (put("nearest", "image", "interpolation"), "manifest.image.interpolation: 'nearest' is none of"),
        (put(-1, "files", 0, "size_bytes"), "has a size of -1 bytes"),
        (put(0, "spaces", "single", "dim"), "vectors of 0 dimensions"),
        (put(0, "image", "size_px"), "images of 0 px"),
        (put(256, "image", "fill_color"), "fill_color 256"),
        (put([1, 0, 1], "image", "std"), "std (1.0, 0.0, 1.0)"),
        (put(1, "text", "max_length"), "max_length is 1"),
        (put("other.onnx", "graphs", "text", "file"), "manifest: other.onnx named but not among its files"),
        (put("other.json", "text", "file"), "manifest: other.json named but not among its files"),
        (put("other.npz", "selftest"), "manifest: other.npz named but not among its files"),
        (put("other.npz", "proof"), "manifest: other.npz named but not among its files"),
        (drop("proof"), "manifest: proof missing"),
        (drop("graphs", "text", "kernels"), "manifest.graphs.text: kernels missing"),
        (put({"int8": 1.5}, "graphs", "text", "kernels"), "manifest.graphs.text.kernels.int8: wanted int, found 1.5"),
        (put("fp16 bundle", "measured", 0, "against"), "is none of fp32 checkpoint, fp32 bundle"),
        (drop("measured", 0, "retrieval"), "manifest.measured[0]: retrieval missing"),
        (put({}, "measured", 0, "retrieval"), "manifest.measured[0].retrieval: high, low, metric"),
        (put(float("nan"), "measured", 1, "sqnr_db"), "manifest.measured[1].sqnr_db: wanted a finite number"),
        (put(None, "measured", 1, "worst_cosine"), "manifest.measured[1].worst_cosine: wanted float, found null"),
        (drop("files", 0), "named but not among its files"),
        (put("square root", "image", "kind"), "manifest.image.kind: 'square root' is none of square"),
        (put("3", "image"), "manifest.image: wanted an object, found a string"),
        (put(False, "text"), "manifest.text: wanted an object, found False"),
        (drop("text"), "manifest: text missing"),
        (drop("graphs", "vision"), "manifest: no graph named vision"),
        (put({}, "graphs"), "manifest: no graph named text, vision"),
        (put([], "graphs"), "manifest.graphs: wanted an object, found a list"),
        (drop("graphs", "text", "inputs"), "manifest.graphs.text: inputs missing"),
        (put("batch", "graphs", "text", "inputs", 0, "axes"), "inputs[0].axes: wanted a list, found a string"),
        (put(True, "graphs", "text", "inputs", 0, "axes", 0), "axes[0]: wanted int or str, found True"),
        (put(1.0, "graphs", "text", "inputs", 0, "axes", 0), "axes[0]: wanted int or str, found 1.0"),
        (put(None, "graphs", "text", "outputs", 0, "axes", 1), "axes[1]: wanted int or str, found null"),
        (drop("spaces", "multi"), "manifest.spaces: multi missing"),
        (put(None, "spaces", "single"), "manifest.spaces.single: wanted an object, found null"),
        (put({"dim": 0}, "spaces", "multi"), "manifest: multi vectors of 0 dimensions cannot be"),
        (put([65], "spaces", "single", "matryoshka_dims"), "vectors of 64 dimensions, cut to (65,), cannot be"),
        (put([0], "spaces", "single", "matryoshka_dims"), "vectors of 64 dimensions, cut to (0,), cannot be"),
        (put(1, "spaces", "single", "is_strict"), "manifest.spaces.single.is_strict: wanted bool, found 1"),
        (put("x", "tasks", "retrieval.query"), "manifest.tasks.retrieval.query: wanted an object, found a string"),
        (put(["video"], "tasks", "retrieval.query", "modalities"), "modalities[0]: 'video' is none of text, image"),
        (put("lora", "tasks", "retrieval.query", "adapter"), "manifest: no adapter named lora, which tasks name"),
        (put(LORA, "adapters", "lora"), "manifest: lora.npz named but not among its files"),
        (
            put(LORA | {"file": "text.onnx", "graph": "head"}, "adapters", "lora"),
            "no graph named head, which adapters",
        ),
        (put(LORA | {"rank": "8"}, "adapters", "lora"), "manifest.adapters.lora.rank: wanted int, found a string"),
        (put(0, "task_required"), "manifest.task_required: wanted bool, found 0"),
        (together(put({}, "tasks"), put(True, "task_required")), "manifest: a task is required, and it has none"),
        (together(put(None, "text"), put(None, "image")), "manifest: it takes neither texts nor images"),
        (put("audio", "measured", 0, "modality"), "manifest.measured[0].modality: 'audio' is none of text, image"),
        (put("double", "measured", 0, "space"), "manifest.measured[0].space: 'double' is none of single, multi"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(
    document: Document, change: Callable[[Document], None], message: str
) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    assert message in refusal(json.dumps(changed))


@pytest.mark.parametrize(("gone", "left", "names"), [("image", "text", "texts"), ("text", "image", "images")])
def test_a_bundle_may_take_one_modality_alone(document: Document, gone: str, left: str, names: str) -> None:
    """As jina-embeddings-v3 takes texts alone. What it does not take is an error of the caller."""
    changed = copy.deepcopy(document)
    changed[gone] = None
    graph = FIRST_GRAPH[gone]  # type: ignore[index]
    del changed["graphs"][graph]
    manifest = Manifest.from_json(json.dumps(changed))
    assert manifest.modalities == (left,)
    assert list(manifest.graphs) == [FIRST_GRAPH[left]]  # type: ignore[index]
    with pytest.raises(InputError) as caught:
        {"text": manifest.need_text, "image": manifest.need_image}[gone]()
    assert str(caught.value) == f"this bundle (model) takes no {gone}s; it takes {names}"
    assert Manifest.from_json(manifest.to_json()) == manifest


def test_adapters_tasks_and_two_spaces_survive_a_round_trip(document: Document) -> None:
    """What jina-embeddings-v4 says of itself."""
    changed = copy.deepcopy(document)
    changed["files"].append({"name": "lora.npz", "size_bytes": 3, "sha256": "0"})
    changed["adapters"] = {"retrieval": LORA}
    both = {"prompt": "Query: ", "adapter": "retrieval", "modalities": ["text", "image"]}
    changed["tasks"] = {"retrieval.query": both, "images": {**both, "prompt": "", "modalities": ["image"]}}
    changed["task_required"] = True
    changed["spaces"] = {
        "single": {"dim": 64, "matryoshka_dims": [8, 64], "is_strict": True},
        "multi": {"dim": 16},
    }
    manifest = Manifest.from_json(json.dumps(changed))
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert manifest.adapters == {"retrieval": AdapterFacts(file="lora.npz", graph="text", rank=8)}
    assert (manifest.tasks_of("text"), manifest.tasks_of("image")) == (
        ("retrieval.query",),
        ("retrieval.query", "images"),
    )
    assert manifest.spaces.multi == MultiSpace(dim=16)
    assert manifest.spaces.single == SingleSpace(dim=64, matryoshka_dims=(8, 64), is_strict=True)
    assert manifest.embedding_dim == 64


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "/etc/passwd", "a/b", "a/", "..\\x", "C:\\x", "a\0b", "a\nb", "\ud800"],
)
def test_a_file_name_is_never_a_path(name: str) -> None:
    with pytest.raises(BundleError, match="is not a plain name") as caught:
        FileFacts(name=name, size_bytes=1, sha256="0")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("version", "advice"),
    [
        (SCHEMA_VERSION + 1, "upgrade edgeclip"),
        (SCHEMA_VERSION + 1000, "upgrade edgeclip"),
        (SCHEMA_VERSION - 1, "export it again"),
        (1, "export it again"),
        (0, "export it again"),
        (float(SCHEMA_VERSION), "export it again"),
        (str(SCHEMA_VERSION), "export it again"),
        (True, "export it again"),
        (None, "export it again"),
    ],
)
def test_another_schema_is_told_before_anything_else(version: object, advice: str) -> None:
    message = refusal(json.dumps({"schema_version": version, "who": "knows"}))
    assert f"schema_version is {version!r}, this edgeclip reads {SCHEMA_VERSION}" in message
    assert message.endswith(advice)


@pytest.mark.parametrize("text", ["", "{", "not json", '{"a": 1,}', "[" * 100_000, "1" * 5000])
def test_what_is_no_json_is_refused(text: str) -> None:
    assert "not valid JSON" in refusal(text)


@pytest.mark.parametrize(
    ("text", "found"), [("[]", "a list"), ("null", "null"), ('"x"', "a string"), ("3", "3"), ("true", "True")]
)
def test_what_is_no_object_is_refused(text: str, found: str) -> None:
    assert refusal(text) == f"manifest: wanted an object, found {found}"


def test_every_truncation_of_the_file_is_refused(bundle: Path) -> None:
    text = (bundle / MANIFEST_NAME).read_text(encoding="utf-8").rstrip()
    for length in range(0, len(text), 97):
        assert "not valid JSON" in refusal(text[:length])
