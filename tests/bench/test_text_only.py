"""A bundle of texts alone, whose tasks choose adapters, goes through the benchmarks and the evaluation."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgeclip import Encoder, InputError, Manifest
from edgeclip_bench.families.jina_embeddings_v3 import tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_bench.measure.ceiling import profile_graph
from edgeclip_bench.quality.calibration_folder import read_samples
from edgeclip_bench.quality.evaluate import evaluate
from edgeclip_bench.quality.tasks import mteb_task
from edgeclip_export import export_checkpoint
from tests.scenes.command import Captured, bench, refusal, run
from tests.scenes.evaluation_data import image_text, sts, text_retrieval
from tests.scenes.layout_files import write_images, write_lines

# The same text in another batch. Measured: 3e-7.
SAME = 5e-6


@pytest.fixture(scope="module")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("v3")
    write_checkpoint(folder / "checkpoint", tiny_config())
    export_checkpoint(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


def test_it_is_benched_with_a_task(v3: Path, capsys: Captured) -> None:
    quick = ("--seconds", 0.02, "--tokens", 200, "--threads", 1, "--scenario", "single-stream", "--json")
    status, out, err = run("bench", v3, *quick, "--task", "retrieval.query", capsys=capsys)
    assert status == 0, err
    document = json.loads(out)
    (result,) = document["results"]
    assert (result["case"]["modality"], result["case"]["task"]) == ("text", "retrieval.query")
    assert result["ceiling"]["gflop"] > 0 and document["left_out"] == []
    assert document["bundles"][0]["precision"] == {"text": "fp32"}


def test_what_it_has_not_is_one_line(v3: Path, tmp_path: Path, capsys: Captured) -> None:
    assert "takes no images; it takes texts" in refusal("bench", v3, "--modality", "image", capsys=capsys)
    assert "--task x: wanted one of retrieval.query, " in refusal("bench", v3, "--task", "x", capsys=capsys)
    assert "takes no images" in refusal("bench", "image-folder", v3, capsys=capsys)
    short = ("--tokens", 3, "--task", "retrieval.query")
    assert "--tokens 3: special tokens and the prompt" in refusal("bench", v3, *short, capsys=capsys)
    with pytest.raises(InputError, match=r"^pictures: holds images, and .+ takes texts alone$"):
        evaluate(v3, [image_text(tmp_path)], cache=None, device="cpu")


def test_an_adapters_work_is_counted(v3: Path) -> None:
    """The base model feeds zeros of the same shapes, so its work is the same."""
    with Encoder.open(v3, device="cpu") as encoder:
        adapted, base = (encoder.prepare_texts("a red bicycle", task=task).items for task in ("separation", None))
        assert profile_graph(encoder, adapted, 1).flops == profile_graph(encoder, base, 1).flops > 0


def test_queries_documents_and_pairs_have_their_tasks(v3: Path) -> None:
    found = evaluate(v3, [text_retrieval(), sts()], cache=None, device="cpu")
    assert [(one.task, one.item_task) for one in found.data] == [
        ("retrieval.query", "retrieval.passage"),
        ("text-matching", "text-matching"),
    ]
    assert found.bundle.precision == {"text": "fp32"}


def test_a_task_of_ones_own_is_the_queries(v3: Path) -> None:
    found = evaluate(v3, [sts()], task="separation", cache=None, device="cpu")
    assert [(one.task, one.item_task) for one in found.data] == [("separation", "separation")]


@pytest.mark.parametrize(
    ("kind", "prompt_type", "task"),
    [
        ("Retrieval", "query", "retrieval.query"),
        ("Retrieval", "document", "retrieval.passage"),
        ("STS", None, "text-matching"),
        ("Clustering", None, "separation"),
        ("Classification", None, "classification"),
    ],
)
def test_mteb_gets_the_adapter_of_its_type_of_task(
    v3: Path, bundle: Path, kind: str, prompt_type: str | None, task: str
) -> None:
    pytest.importorskip("mteb")
    from edgeclip_bench.quality.mteb_model import BundleModel

    assert mteb_task(Manifest.read(bundle), kind, prompt_type) is None  # jina-clip's are only prompts
    assert mteb_task(Manifest.read(v3), kind, prompt_type) == task
    prompted = prompt_type and SimpleNamespace(value=prompt_type)
    metadata = SimpleNamespace(name="here", type=kind)
    model = BundleModel(v3, device="cpu")
    with model.encoder as encoder:
        found = model.encode(
            [{"text": ["a", "b c"]}],  # type: ignore[arg-type]
            task_metadata=metadata,  # type: ignore[arg-type]
            hf_split="test",
            hf_subset="default",
            prompt_type=prompted,  # type: ignore[arg-type]
        )
        np.testing.assert_allclose(found, encoder.encode_text(["a", "b c"], task=task), rtol=0, atol=SAME)
        with pytest.raises(InputError, match="task Pictures has image; a bundle reads text"):
            model.check_modalities("Pictures", {"text", "image"})


def test_texts_alone_calibrate_it_and_adapters_take_turns(v3: Path, tmp_path: Path) -> None:
    write_images(tmp_path, "a.png", "b.png")
    write_lines(tmp_path / "t.txt", [f"a line of text, number {index}" for index in range(8)])
    samples = read_samples(tmp_path, v3, Manifest.read(v3))
    assert (len(samples.text), samples.image, samples.pairs) == (8, (), None)
    assert len({item.adapter for item in samples.text}) > 3


def test_memory_is_soaked_and_starts_are_timed(v3: Path, tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    bench("memory-soak", v3, "--device", "cpu", "--threads", 1, "--seconds", 1, "--out", out)
    counts = json.loads(out.read_text(encoding="utf-8"))["counts"]
    assert counts["texts"] > 0 and counts["images"] == 0
    assert bench("cold-start", v3, "--rounds", 1, "--out", out) == 0
    ways = json.loads(out.read_text(encoding="utf-8"))["ways"]
    assert list(ways["bundle"]["modalities"]) == ["text"]
