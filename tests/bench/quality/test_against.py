"""A bundle equals itself; one that is a little off is told from it, query by query and input by input."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from edgeclip import BundleError, Encoder, InputError, Manifest, TruncationWarning
from edgeclip_bench.quality.against import WORST, CheckpointWarning, Comparison, compare
from edgeclip_bench.quality.datasets import Data, ImageTextData
from edgeclip_bench.quality.embeddings import Counts
from edgeclip_bench.quality.evaluate import evaluate
from tests.scenes.damage import reseal
from tests.scenes.evaluation_data import classification, image_text, perturbed, sts, text_retrieval

# A cosine of vectors whose length is 1 to float32, not divided by it. Measured: 1.5e-7.
UNIT = 1e-6
# A cosine of a vector with itself, in float64.
SELF = 1e-15
# A cosine summed in another order. Measured: 2e-16.
ROUNDING = 1e-9


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Data]:
    folder = tmp_path_factory.mktemp("data")
    return [image_text(folder / "a"), text_retrieval(), sts(), classification(folder / "b")]


@pytest.fixture(scope="module")
def other(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle with weights that are five per cent off."""
    return perturbed(bundle, tmp_path_factory.mktemp("other") / "other", "text", "vision")


@pytest.fixture(scope="module")
def found(bundle: Path, other: Path, data: list[Data]) -> Comparison:
    return compare(bundle, other, data, truncate_dims=[16], cache=None, device="cpu")


def test_a_bundle_equals_itself(bundle: Path, data: list[Data], tmp_path: Path) -> None:
    found = compare(bundle, bundle, data, truncate_dims=[16], cache=tmp_path, device="cpu")
    assert {one.points for one in found.differences} == {0.0}
    assert all(one.low <= 0 <= one.high for one in found.differences)
    assert {one.share for one in found.agreements} == {1.0}
    assert found.closeness and all(abs(one.worst - 1) <= SELF for one in found.closeness)
    assert found.worst and all(one.rank == one.reference_rank for one in found.worst)
    assert {one.embedded.computed for one in found.reference.data} == {0}  # all from the cache
    assert found.evaluation.data[0].embedded.computed > 0


def test_two_bundles_share_no_vector(bundle: Path, other: Path, data: list[Data], tmp_path: Path) -> None:
    found = compare(bundle, other, data[1:2], truncate_dims=[], cache=tmp_path, device="cpu")
    assert found.evaluation.data[0].embedded == found.reference.data[0].embedded == Counts(inputs=37, computed=37)


def test_a_change_of_one_graph_leaves_the_others_vectors(bundle: Path, data: list[Data], tmp_path: Path) -> None:
    vision = perturbed(bundle, tmp_path / "vision", "vision")
    found = compare(bundle, vision, data[:2], truncate_dims=[], cache=tmp_path / "cache", device="cpu")
    worst = {(one.data, one.modality): one.worst for one in found.closeness}
    assert worst.keys() == {("pictures", "text"), ("pictures", "image"), ("documents", "text")}
    assert worst["pictures", "image"] < 0.99
    assert abs(worst["pictures", "text"] - 1) <= SELF and abs(worst["documents", "text"] - 1) <= SELF
    assert {one.embedded.cached for one in found.reference.data} == {0}  # another manifest is another space


def test_it_holds_both_bundles_own_figures(found: Comparison, bundle: Path, other: Path, data: list[Data]) -> None:
    for side, path in ((found.evaluation, bundle), (found.reference, other)):
        alone = evaluate(path, data, truncate_dims=[16], cache=None, device="cpu")
        assert side == alone


def test_a_difference_is_of_the_figures_and_lies_in_its_interval(found: Comparison) -> None:
    """One for every score, in points."""
    for side, value in ((found.evaluation, "value"), (found.reference, "reference")):
        figures = {
            (data.label, score.metric, score.direction, score.language, score.is_overall, score.dim): score.value
            for data in side.data
            for score in data.scores
        }
        assert len(figures) == len(found.differences)
        for one in found.differences:
            key = (one.data, one.metric, one.direction, one.language, one.is_overall, one.dim)
            assert figures[key] == getattr(one, value)
    for one in found.differences:
        assert one.points == pytest.approx(100 * (one.value - one.reference))
        assert one.low <= one.points <= one.high
    assert any(one.points for one in found.differences)


def test_the_interval_is_paired(found: Comparison) -> None:
    """As wide as the changed hits make it; of 20 images what was not seen outweighs them, so captions search."""
    scores = {
        (score.metric, score.direction, score.language, score.is_overall, score.dim): score
        for score in found.evaluation.data[0].scores
    }
    wanted = ("pictures", "recall@10", "text_to_image", True)
    judged = [one for one in found.differences if (one.data, one.metric, one.direction, one.is_overall) == wanted]
    assert judged
    for one in judged:
        score = scores[one.metric, one.direction, one.language, one.is_overall, one.dim]
        assert one.high - one.low < 2 * 100 * (score.high - score.low)


def test_agreement_is_the_share_found_by_both(found: Comparison, bundle: Path, other: Path, data: list[Data]) -> None:
    pictures = data[0]
    assert isinstance(pictures, ImageTextData)
    tops = []
    for path in (bundle, other):
        with Encoder.open(path, device="cpu") as encoder:
            captions = encoder.encode_text([caption.text for caption in pictures.captions]).astype(np.float64)
            images = encoder.encode_image(list(pictures.images)).astype(np.float64)
        tops.append(np.argsort(-(captions @ images.T), axis=1)[:, :10].tolist())
    shares = [len(set(one) & set(two)) / 10 for one, two in zip(*tops, strict=True)]
    (overall,) = (
        one
        for one in found.agreements
        if (one.data, one.direction, one.is_overall, one.dim) == ("pictures", "text_to_image", True, 64)
    )
    assert (overall.metric, overall.samples) == ("agreement@10", len(pictures.captions))
    assert overall.share == pytest.approx(np.mean(shares)) and overall.share < 1
    chinese = [share for share, caption in zip(shares, pictures.captions, strict=True) if caption.language == "zh"]
    (its,) = (
        one.share for one in found.agreements if (one.direction, one.language, one.dim) == ("text_to_image", "zh", 64)
    )
    assert its == pytest.approx(np.mean(chinese))
    assert {one.metric for one in found.agreements if one.direction == "image_to_class"} == {"agreement@1"}
    assert not any(one.data == "pairs (en)" for one in found.agreements)


def test_closeness_and_the_worst_inputs(found: Comparison, bundle: Path, other: Path, data: list[Data]) -> None:
    pictures = data[0]
    assert isinstance(pictures, ImageTextData)
    texts = [caption.text for caption in pictures.captions]
    sides = []
    for path in (bundle, other):
        with Encoder.open(path, device="cpu") as encoder:
            sides.append((encoder.encode_text(texts), encoder.encode_image(list(pictures.images))))
    names = (texts, [str(path) for path in pictures.images])
    for index, modality in enumerate(("text", "image")):
        first, second = (side[index].astype(np.float64) for side in sides)
        cosines = (first * second).sum(axis=1)
        (close,) = (one for one in found.closeness if (one.data, one.modality) == ("pictures", modality))
        assert close.samples == len(cosines)
        assert close.worst == pytest.approx(cosines.min(), abs=UNIT) and close.worst < 1 - UNIT
        assert close.first_percentile == pytest.approx(np.percentile(cosines, 1), abs=UNIT)
        assert close.mean == pytest.approx(cosines.mean(), abs=UNIT)
        worst = [one for one in found.worst if (one.data, one.modality) == ("pictures", modality)]
        order = np.argsort(cosines)[:WORST]
        assert [one.input for one in worst] == [names[index][row] for row in order]
        assert [one.cosine for one in worst] == pytest.approx(cosines[order].tolist(), abs=UNIT)


def test_the_worst_inputs_ranks(found: Comparison, bundle: Path, other: Path, data: list[Data]) -> None:
    pictures = data[0]
    assert isinstance(pictures, ImageTextData)
    texts = [caption.text for caption in pictures.captions]
    of_caption = []
    for path in (bundle, other):
        with Encoder.open(path, device="cpu") as encoder:
            scores = encoder.encode_text(texts).astype(np.float64) @ encoder.encode_image(list(pictures.images)).T
        right = scores[np.arange(len(texts)), [caption.image for caption in pictures.captions]]
        of_caption.append((scores >= right[:, None]).sum(axis=1))
    for one in found.worst:
        if (one.data, one.modality) == ("pictures", "text"):
            row = texts.index(one.input)
            assert (one.rank, one.reference_rank) == (of_caption[0][row], of_caption[1][row])
            assert (one.direction, one.language) == ("text_to_image", pictures.captions[row].language)
    images = [one for one in found.worst if (one.data, one.modality) == ("pictures", "image")]
    uncaptioned = [one for one in images if one.rank is None]
    assert [one.input for one in uncaptioned] in ([], [str(pictures.images[-1])])
    assert {one.direction for one in images if one.rank} == {"image_to_text"}
    spoken = {str(pictures.images[caption.image]): set() for caption in pictures.captions}
    for caption in pictures.captions:
        spoken[str(pictures.images[caption.image])].add(caption.language)
    assert all(one.language in spoken[one.input] for one in images if one.rank)


def test_inputs_are_named_once_and_as_what_they_are(found: Comparison) -> None:
    named = [(one.data, one.modality, one.input) for one in found.worst]
    assert len(set(named)) == len(named)
    documents = {one.input: one for one in found.worst if one.data == "documents"}
    assert any(name.startswith("where is") for name in documents)
    for name, one in documents.items():
        if name.startswith("document "):
            assert one.rank is one.direction is None
    pairs = [one for one in found.worst if one.data == "pairs (en)"]
    assert sum(one.input == "one" for one in pairs) <= 1 and all(one.rank is None for one in pairs)


def test_a_comparison_is_json(found: Comparison) -> None:
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    lists = {"differences", "agreements", "closeness", "worst"}
    assert document.keys() == {"is_one_checkpoint", "evaluation", "reference", *lists}
    assert document["is_one_checkpoint"] is True


def test_two_checkpoints_are_compared_and_said(copied_bundle: Path, bundle: Path) -> None:
    source = dataclasses.replace(Manifest.read(bundle).source, name="another/model", weights_sha256="0" * 64)
    reseal(copied_bundle, source=source)
    with pytest.warns(CheckpointWarning, match=r"two checkpoints are compared: .* \(another/model\)$") as told:
        found = compare(bundle, copied_bundle, [sts()], truncate_dims=[], cache=None, device="cpu")
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert found.as_dict()["is_one_checkpoint"] is False


def test_texts_that_either_bundle_cut_are_one_warning(copied_bundle: Path, bundle: Path) -> None:
    facts = Manifest.read(bundle).need_text()
    reseal(copied_bundle, text=dataclasses.replace(facts, max_length=8))
    for sides in ((bundle, copied_bundle), (copied_bundle, bundle), (copied_bundle, copied_bundle)):
        with pytest.warns(TruncationWarning) as told:
            found = compare(*sides, [text_retrieval()], truncate_dims=[], cache=None, device="cpu")
        cuts = [side.data[0].embedded.cut for side in (found.evaluation, found.reference)]
        assert [cut > 0 for cut in cuts] == [side == copied_bundle for side in sides]
        (warning,) = told
        assert isinstance(warning.message, TruncationWarning) and warning.message.cut == sum(cuts)
        said = [f"{cut} texts were cut to 8 tokens by {copied_bundle}" for cut in cuts if cut]
        assert str(warning.message) == "; ".join(said)


def test_two_models_are_refused_before_anything_is_embedded(copied_bundle: Path, bundle: Path) -> None:
    spaces = Manifest.read(copied_bundle).spaces
    single = dataclasses.replace(spaces.single, dim=32, matryoshka_dims=(32,))
    reseal(copied_bundle, spaces=dataclasses.replace(spaces, single=single))
    with pytest.raises(InputError, match="vectors of 64 and of 32 dimensions: wanted two bundles of one model"):
        compare(bundle, copied_bundle, [sts()], cache=None)


def test_what_cannot_be_is_said_before_anything_is_embedded(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such bundle"):
        compare(bundle, tmp_path / "none", [sts()], cache=None)
    with pytest.raises(InputError, match="truncate_dim is 65"):
        compare(bundle, bundle, [sts()], cache=None, truncate_dims=[65])
    missing = dataclasses.replace(classification(tmp_path / "x"), images=())
    with pytest.raises(InputError, match="things: holds no images"):
        compare(bundle, bundle, [missing], cache=None)


def test_open_encoders_stay_open(encoder: Encoder, other: Path) -> None:
    with Encoder.open(other, device="cpu") as second:
        found = compare(encoder, second, [sts()], truncate_dims=[], cache=None)
        assert found.evaluation.bundle.name == Manifest.read(other).source.name
        second.encode_text("still open")
    encoder.encode_text("still open")
