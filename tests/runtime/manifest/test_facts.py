"""The manifest says everything a bundle knows, survives a round trip, and refuses what it does not know."""

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeclip.errors import BundleError
from edgeclip.manifest import MANIFEST_NAME, SCHEMA_VERSION, TOWERS, FileFacts, Manifest, RetrievalChange

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
    proved = manifest.measurement("text", "fp32 bundle", "made-up inputs")
    assert proved is not None and isinstance(proved.retrieval, RetrievalChange)
    assert '"retrieval": null' in manifest.to_json() and '"kernels": {\n' in manifest.to_json()


def test_of_two_measurements_with_one_name_the_first_is_given(int8_bundle: Path) -> None:
    """The bundle's own: a user's folder may be called as its data is."""
    manifest = Manifest.read(int8_bundle)
    (own,) = [one for one in manifest.measured if (one.tower, one.against) == ("vision", "fp32 bundle")]
    twice = dataclasses.replace(manifest, measured=(*manifest.measured, dataclasses.replace(own, samples=3)))
    assert twice.measurement("vision", "fp32 bundle", own.data) == own
    assert twice.measurement("vision", "fp32 checkpoint", own.data) is None


def test_json_numbers_become_the_types_of_the_fields(document: Document) -> None:
    """A whole number where a float is wanted is that float; lists become tuples."""
    changed = document | {"image": document["image"] | {"mean": [0, 1, 0.5]}}
    mean = Manifest.from_json(json.dumps(changed)).image.mean
    assert mean == (0.0, 1.0, 0.5)
    assert [type(number) for number in mean] == [float] * 3


def test_texts_in_any_script_stay_readable(document: Document) -> None:
    instructions = {"検索": "質問: "}
    changed = document | {"tokenizer": document["tokenizer"] | {"instructions": instructions}}
    manifest = Manifest.from_json(json.dumps(changed))
    assert manifest.tasks == instructions
    assert "検索" in manifest.to_json()


def test_nothing_in_a_manifest_can_be_changed(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    for part in (manifest, manifest.source, manifest.text, manifest.need_text(), manifest.image, manifest.files[0]):
        field = dataclasses.fields(part)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, field, getattr(part, field))


def test_a_tower_a_file_and_the_size_are_found(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    assert [manifest.tower(name) for name in TOWERS] == [manifest.text, manifest.vision]
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put(1, "colour"), "manifest: unknown colour"),
        (put(1, "text", "device"), "manifest.text: unknown device"),
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
        (put("8", "matryoshka_dims"), "manifest.spaces.single.matryoshka_dims: wanted a list, found a string"),
        (put("8", "matryoshka_dims", 0), "manifest.spaces.single.matryoshka_dims[0]: wanted int, found a string"),
        (put([1, 2], "image", "std"), "manifest.need_image().std: wanted 3 values, found 2"),
        (put(True, "image", "std", 0), "manifest.need_image().std[0]: wanted float, found True"),
        (put(float("nan"), "image", "mean", 0), "manifest.need_image().mean[0]: wanted a finite number"),
        (put(10**400, "image", "mean", 0), "manifest.need_image().mean[0]: wanted a finite number"),
        (put([], "built_with"), "manifest.built_with: wanted an object, found a list"),
        (put(3, "built_with", "torch"), "manifest.built_with.torch: wanted str, found 3"),
        (put("gpu", "target"), "manifest.target: 'gpu' is none of cpu, cuda, tensorrt"),
        (put(["cpu"], "target"), "manifest.target: ['cpu'] is none of cpu, cuda, tensorrt"),
        (put("fp8", "vision", "precision"), "manifest.vision.precision: 'fp8' is none of fp32, fp16, int8, int4"),
        (put("crop", "image", "resize_mode"), "manifest.need_image().resize_mode: 'crop' is none of"),
        (put("nearest", "image", "interpolation"), "manifest.need_image().interpolation: 'nearest' is none of"),
        (put(-1, "files", 0, "size_bytes"), "has a size of -1 bytes"),
        (put(0, "embedding_dim"), "embedding_dim is 0"),
        (put(0, "image", "size_px"), "images of 0 px"),
        (put(256, "image", "fill_color"), "fill_color 256"),
        (put([1, 0, 1], "image", "std"), "std (1.0, 0.0, 1.0)"),
        (put(1, "tokenizer", "max_length"), "max_length is 1"),
        (put("other.onnx", "text", "file"), "manifest: other.onnx named but not among its files"),
        (put("other.json", "tokenizer", "file"), "manifest: other.json named but not among its files"),
        (put("other.npz", "selftest"), "manifest: other.npz named but not among its files"),
        (put("other.npz", "proof"), "manifest: other.npz named but not among its files"),
        (drop("proof"), "manifest: proof missing"),
        (drop("text", "kernels"), "manifest.text: kernels missing"),
        (put({"int8": 1.5}, "text", "kernels"), "manifest.text.kernels.int8: wanted int, found 1.5"),
        (put("fp16 bundle", "measured", 0, "against"), "is none of fp32 checkpoint, fp32 bundle"),
        (drop("measured", 0, "retrieval"), "manifest.measured[0]: retrieval missing"),
        (put({}, "measured", 0, "retrieval"), "manifest.measured[0].retrieval: high, low, metric"),
        (put(float("nan"), "measured", 1, "sqnr_db"), "manifest.measured[1].sqnr_db: wanted a finite number"),
        (put(None, "measured", 1, "worst_cosine"), "manifest.measured[1].worst_cosine: wanted float, found null"),
        (drop("files", 0), "named but not among its files"),
    ],
)
def test_what_does_not_fit_is_refused_by_its_place(
    document: Document, change: Callable[[Document], None], message: str
) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    assert message in refusal(json.dumps(changed))


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
        (SCHEMA_VERSION - 1, "export it again"),
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
