"""What is measured of a narrowed bundle is what happened to its vectors, and what proves it again is kept."""

import io
import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgeclip import BuildError, BundleError, Encoder, Manifest
from edgeclip.families.family import Arrays
from edgeclip.manifest import MODALITIES
from edgeclip_quant.graph_runner import Graphs, answer, open_run
from edgeclip_quant.inputs.made_up import Samples
from edgeclip_quant.proof import measurement as proof
from edgeclip_quant.proof.measurement import ask_source, graph_files, measure, proof_samples, prove, read_selftest
from edgeclip_quant.proof.timing import Timing, time_modality, time_ratio
from tests.scenes.graph_feeds import GRAPHS, feeds, open_feeder

MOST_BYTES = 2_000_000  # of proof.npz at 512 px


def figures(wanted: Any, found: Any, **rest: Any) -> Any:
    arrays = {"wanted": np.array(wanted, np.float32), "found": np.array(found, np.float32)}
    return measure("text", "single", against="fp32 bundle", data="photos", weight_bytes=30, **arrays, **rest)


def test_cosines_are_of_directions() -> None:
    """An answer of another length is as near as its direction: half precision gives such."""
    one = figures([[1, 0], [0, 1], [1, 0]], [[2, 0], [0.3, 0.4], [-1, 0]])
    assert one.worst_cosine == -1
    assert one.mean_cosine == pytest.approx((1 + 0.8 - 1) / 3)
    assert one.samples == 3 and one.largest_difference == 2
    assert (one.size_ratio, one.latency_ratio, one.machine, one.retrieval) == (None,) * 4


def test_the_first_percentile_is_not_the_worst_of_many() -> None:
    angles = np.zeros(201)
    angles[7] = 0.5
    found = np.stack((np.cos(angles), np.sin(angles)), axis=1)
    one = figures(np.tile([1.0, 0.0], (201, 1)), found)
    assert one.worst_cosine == pytest.approx(math.cos(0.5)) and one.p1_cosine == 1


def test_noise_is_in_decibels_of_the_whole() -> None:
    assert figures([[1, 0], [0, 1]], [[0.9, 0], [0, 0.9]]).sqnr_db == pytest.approx(20, abs=1e-5)
    assert figures([[1, 0], [0, 1]], [[1, 0], [0, 0.9]]).sqnr_db == pytest.approx(20 + 10 * math.log10(2), abs=1e-5)
    assert figures([[1, 0]], [[1, 0]]).sqnr_db is None


@pytest.mark.parametrize("bad", [[0.0, 0.0], [np.nan, 1.0]])
def test_what_is_no_vector_makes_the_worst_cosine_nan(bad: list[float]) -> None:
    assert math.isnan(figures([[1, 0], [1, 0]], [[1, 0], bad]).worst_cosine)


def test_ratios_are_to_the_source() -> None:
    timing = Timing(ratio=0.4, samples=12, input="1 image", machine="a machine")
    one = figures([[1, 0]], [[1, 0]], source_bytes=120, timing=timing)
    assert (one.size_ratio, one.latency_ratio, one.latency_samples) == (0.25, 0.4, 12)
    assert (one.latency_input, one.machine) == ("1 image", "a machine")


def sleeping(seconds: float) -> Any:
    return lambda: time.sleep(seconds)


def test_a_time_is_the_narrowed_ones_over_the_sources() -> None:
    ratio, pairs = time_ratio(sleeping(0.004), sleeping(0.001), rounds=7)
    assert 0.1 < ratio < 0.9 and pairs == 7
    ratio, pairs = time_ratio(sleeping(0.001), sleeping(0.004), rounds=40, seconds=0)
    assert ratio > 1.1 and pairs == 5


def test_both_take_turns_in_going_first() -> None:
    calls: list[str] = []
    time_ratio(lambda: calls.append("s"), lambda: calls.append("n"), rounds=3)
    assert "".join(calls) == "nnss" + "ssnn" + "nnss"  # the first of two does not count


def test_runs_of_seconds_are_few_and_stand_alone() -> None:
    """None is run for nothing, and three pairs are enough."""
    calls: list[str] = []
    run_of = {name: lambda name=name: calls.append(name) for name in "sn"}
    assert time_ratio(run_of["s"], run_of["n"], seconds=0, is_long=True)[1] == 3
    assert "".join(calls) == "ns" + "sn" + "ns"


def test_a_modality_is_timed_on_16_tokens_or_an_image(bundle: Path) -> None:
    feeder = open_feeder(bundle)
    made_up, facts = proof_samples(feeder), feeder.manifest.need_text()
    for modality in MODALITIES:
        seen: list[Arrays] = []

        class Watched(Graphs):
            """Graphs that note what they are run on."""

            def run(self, graph: str, feed: Arrays) -> Mapping[str, NDArray[Any]]:
                seen.append(feed)  # noqa: B023 - used within the turn
                return super().run(graph, feed)

        with Watched(feeder, graph_files(bundle, feeder.manifest)) as graphs:
            timing = time_modality(modality, feeder, graphs, graphs, made_up)
        assert timing.input == {"text": "16 tokens", "image": "1 image"}[modality]
        assert timing.machine.endswith("threads") and timing.samples >= 5
        assert len({id(feed) for feed in seen}) == 1
        (array,) = seen[0].values()
        if modality == "text":
            (ids,) = array
            assert len(ids) == 16 and (ids[0], ids[-1]) == (facts.bos_id, facts.eos_id) and len(set(ids.tolist())) > 8
        else:
            np.testing.assert_array_equal(array[0], made_up.image[0].arrays["pixel_values"])


def test_made_up_inputs_are_always_the_same_and_small(bundle: Path) -> None:
    once, again = (proof_samples(open_feeder(bundle)) for _ in range(2))
    for graph in GRAPHS:
        for one, other in zip(feeds(bundle, graph, once), feeds(bundle, graph, again), strict=True):
            np.testing.assert_equal(dict(one), dict(other))
    assert len({item.tokens for item in once.text}) > 10
    pictures = [proof._picture(512, draw) for draw in [np.random.default_rng(1)] for _ in range(8)]
    file = io.BytesIO()
    np.savez_compressed(file, pixel_values=np.stack(pictures))
    assert len(file.getvalue()) < MOST_BYTES
    assert min(picture.std() for picture in pictures) > 30


def test_a_proof_holds_the_sources_answers_to_what_it_asks(bundle: Path, int8_bundle: Path) -> None:
    with Encoder.open(bundle, device="cpu") as encoder, np.load(int8_bundle / "proof.npz") as arrays:
        runs = [encoder.run_graph("text", {"input_ids": arrays[f"input_ids_{index}"]}) for index in range(32)]
        texts = np.concatenate([run["text_embeds"] for run in runs])
        assert np.abs(texts - arrays["text_embeds"]).max() < 1e-6
        images = encoder.run_graph("vision", {"pixel_values": arrays["pixel_values"]})["image_embeds"]
        assert np.abs(images - arrays["image_embeds"]).max() < 1e-6
        assert arrays["text_adapters"].tolist() == [""] * 32
        assert len(arrays.files) == 32 + 4
    assert (int8_bundle / "proof.npz").stat().st_size < MOST_BYTES


def test_an_int8_bundle_holds_its_whole_proof(bundle: Path, int8_bundle: Path) -> None:
    source, manifest = Manifest.read(bundle), Manifest.read(int8_bundle)
    assert manifest.proof == "proof.npz" and manifest.file("proof.npz").size_bytes > 0
    assert [(one.modality, one.space, one.against, one.data) for one in manifest.measured] == [
        ("text", "single", "fp32 checkpoint", "self-test"),
        ("image", "single", "fp32 checkpoint", "self-test"),
        ("text", "single", "fp32 bundle", "made-up inputs"),
        ("image", "single", "fp32 bundle", "made-up inputs"),
    ]
    for one in manifest.measured:
        graph = manifest.first_graph(one.modality).file
        files = {
            name: [file.size_bytes for file in facts.files if file.name.startswith(graph)]
            for name, facts in (("source", source), ("int8", manifest))
        }
        assert len(files["int8"]) == 2 and one.weight_bytes == sum(files["int8"])
        assert 0.99 < one.worst_cosine <= one.p1_cosine <= one.mean_cosine < 1
        assert one.sqnr_db is not None and 20 < one.sqnr_db < 60
        if one.against == "fp32 checkpoint":
            assert one.size_ratio is one.latency_ratio is one.retrieval is None
            continue
        assert one.size_ratio == sum(files["int8"]) / sum(files["source"]) < 0.8
        assert one.latency_ratio is not None and one.latency_ratio > 0
        assert one.latency_samples is not None and 5 <= one.latency_samples <= 30
        assert one.retrieval is not None
        assert (one.retrieval.queries, one.retrieval.reference) == (one.samples, 1.0)
        assert one.retrieval.truth == "the source's first answers"


def test_what_a_user_gives_is_measured_and_not_stored(bundle: Path, int8_bundle: Path, tmp_path: Path) -> None:
    feeder = open_feeder(bundle)
    own = proof_samples(feeder)
    negatives = [255 - item.arrays["pixel_values"] for item in own.image[:6]]
    own = Samples(
        name="photos",
        text=own.text[:12],
        image=tuple(feeder.family.image(pixels, None, max_pixels=None, label="") for pixels in negatives),
        pairs=tuple(index // 2 for index in range(12)),
    )
    stage = shutil.copytree(int8_bundle, tmp_path / "stage")
    source = ask_source(feeder, own, lambda *_: None)
    measured = prove(feeder, stage, source, lambda *_: None, precisions=dict.fromkeys(GRAPHS, "int8")).measured
    assert (stage / "proof.npz").read_bytes() == (int8_bundle / "proof.npz").read_bytes()
    of_user = measured[-2:]
    assert [(one.modality, one.data, one.samples) for one in of_user] == [
        ("text", "photos", 12),
        ("image", "photos", 6),
    ]
    for one, queries in zip(of_user, (12, 6), strict=True):
        assert one.retrieval is not None and (one.retrieval.truth, one.retrieval.queries) == ("captions", queries)
        assert one.size_ratio is one.latency_ratio is None
        assert 0.9 < one.worst_cosine < 1
    made_up = [one.retrieval for one in measured[2:4]]
    assert [change.truth for change in made_up if change] == ["the source's first answers"] * 2


def test_only_what_changed_is_proved_again(bundle: Path, int8_bundle: Path, tmp_path: Path) -> None:
    """The other modality keeps its answers, and every figure is what a whole proof gives."""
    feeder, stage = open_feeder(bundle), shutil.copytree(int8_bundle, tmp_path / "stage")
    source = ask_source(feeder, None, lambda *_: None)
    said: set[str] = set()

    def ask(**rest: Any) -> proof.Proof:
        said.clear()
        precisions = dict.fromkeys(GRAPHS, "int8")
        return prove(feeder, stage, source, lambda what, *_: said.add(what), precisions=precisions, **rest)

    first = ask()
    for name in ("text.onnx", "text.onnx_data"):
        shutil.copyfile(bundle / name, stage / name)
    again = ask(before=first, changed=["text"])
    assert said == {"proving text vectors"}
    whole = ask()
    assert said == {"proving text vectors", "proving image vectors"} and again.measured == whole.measured
    assert again.measured != first.measured


def test_each_modality_is_judged_alone(bundle: Path, int8_bundle: Path) -> None:
    """With images that were turned about, image vectors alone spoil both searches, and text vectors none."""
    feeder = open_feeder(bundle)
    source = ask_source(feeder, None, lambda *_: None)
    found = prove(feeder, int8_bundle, source, lambda *_: None, precisions=dict.fromkeys(GRAPHS, "int8"))
    answers = dict(found.found[-1])
    answers["image"] = {"single": [-rows for rows in answers["image"]["single"]]}
    by_modality = proof.alone(source, replace(found, found=[*found.found[:-1], answers]))
    for modality, measured in by_modality.items():
        points = {one.modality: one.retrieval.points for one in measured if one.retrieval}
        worst = {one.modality: one.worst_cosine for one in measured}
        if modality == "image":
            assert min(points.values()) < -50 and worst["image"] < -0.9 and worst["text"] > 0.999999
        else:
            assert min(points.values()) > -20 and 0.99 < worst["text"] < 0.999999 < worst["image"]


def test_the_self_test_is_measured_against_the_checkpoint(bundle: Path, int8_bundle: Path) -> None:
    samples, wanted = read_selftest(open_feeder(bundle))
    assert (len(samples.text), len(samples.image)) == (6, 2)
    with np.load(bundle / "selftest.npz") as arrays:  # the family makes of the texts and images what export made
        for index, item in enumerate(samples.text):
            np.testing.assert_array_equal(item.arrays["input_ids"], arrays[f"input_ids_{index}"][0])
        for item, pixels in zip(samples.image, arrays["pixel_values"], strict=True):
            np.testing.assert_array_equal(item.arrays["pixel_values"], pixels)
    asked = feeds(bundle, "text", samples)
    found = answer(int8_bundle / "text.onnx", asked, "", lambda *_: None).astype(np.float64)
    recorded = Manifest.read(int8_bundle).measured[0]
    assert (found * wanted["text"]["single"]).sum(axis=1).min() == pytest.approx(recorded.worst_cosine, abs=1e-6)


def test_what_cannot_be_read_or_run_is_one_line(bundle: Path, copied_bundle: Path, tmp_path: Path) -> None:
    (copied_bundle / "selftest.npz").write_bytes(b"nothing")
    with pytest.raises(BundleError, match=r"selftest.npz: cannot be read"):
        read_selftest(open_feeder(copied_bundle))
    (tmp_path / "text.onnx").write_bytes(b"nothing")
    with pytest.raises(BuildError, match=r"onnxruntime cannot run text.onnx \(.*\)$"):
        open_run(tmp_path / "text.onnx")
    with pytest.raises(BuildError, match=r"onnxruntime cannot run text.onnx \(.*\)$"):
        open_run(bundle / "text.onnx")({"input_ids": np.zeros((1, 2, 3), np.int64)})
