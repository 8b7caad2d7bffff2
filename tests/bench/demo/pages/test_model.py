"""The trained page model that ships finds pages it was never shown, and nDCG sees what is computed wrong."""

import json
from pathlib import Path

import pytest

from edgeclip import Encoder, MultiVectors
from edgeclip_bench.demo.pages import CHECKPOINT
from edgeclip_bench.demo.pages.dataset import WrittenPage, write_pages
from edgeclip_bench.demo.pages.layout import MATRYOSHKA_DIMS
from edgeclip_bench.demo.pages.questions import LANGUAGES
from edgeclip_bench.demo.pages.run import PASSAGE, QUERY
from edgeclip_bench.demo.pages.train import Recipe
from edgeclip_bench.demo.training import LOG
from edgeclip_bench.quality.evaluate import evaluate
from edgeclip_bench.quality.layouts import open_data
from edgeclip_bench.quality.page_damage import DAMAGES, RIGHT, PageNdcg, judge_page_damages, judge_pages
from edgeclip_bench.quality.scores import Score
from edgeclip_export import export_checkpoint
from edgeclip_export.checkpoint import hash_file

MAX_BYTES, MAX_FILE_BYTES = 8_000_000, 3 << 20
# Of 120 pages in families of twelve, all with facts that training never combines with their topic.
LEAST_MULTI, LEAST_SINGLE = 0.85, 0.75
# What a mistake costs at least of one of the two. Those of FAINT cost less; the proof of an export shows them.
VISIBLE = 0.05
FAINT = (
    "the adapters' scale ignored",
    "no adapter at the projector",
    "every block sees the whole image",
    "windows of half the side",
    "the whole prompt pooled",
    "image tokens alone pooled",
    "bilinear resizing",
)
# Another draw of pages than the one the training was looked at with.
SEED = 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pages") / "bundle"
    export_checkpoint(CHECKPOINT, out)
    return out


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[WrittenPage]:
    return write_pages(tmp_path_factory.mktemp("drawn") / "pages", pages=120, seed=SEED)


@pytest.fixture(scope="module")
def damages(bundle: Path, written: list[WrittenPage]) -> dict[str, PageNdcg]:
    return judge_page_damages(bundle, written)


def test_the_checkpoint_is_small_and_that_of_its_log() -> None:
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < MAX_BYTES
    assert max(path.stat().st_size for path in files) < MAX_FILE_BYTES
    log = json.loads((CHECKPOINT / LOG).read_text())
    assert {name: hash_file(CHECKPOINT / name) for name in log["weights_sha256"]} == log["weights_sha256"]
    assert Recipe(**log["recipe"]) == Recipe()
    assert log["validation"]["multi"] > LEAST_MULTI and log["validation"]["single at 128"] > LEAST_SINGLE


def test_it_finds_pages_that_training_could_not_have(damages: dict[str, PageNdcg]) -> None:
    assert damages[RIGHT].multi >= LEAST_MULTI
    assert damages[RIGHT].single >= LEAST_SINGLE


@pytest.mark.parametrize("name", [name for name in DAMAGES if name not in FAINT])
def test_what_is_computed_wrong_finds_less(damages: dict[str, PageNdcg], name: str) -> None:
    right, wrong = damages[RIGHT], damages[name]
    assert max(right.single - wrong.single, right.multi - wrong.multi) > VISIBLE


def test_an_evaluation_gives_the_same_figures_by_dimension_pooling_and_language(
    bundle: Path, written: list[WrittenPage], damages: dict[str, PageNdcg]
) -> None:
    """The written files are read as pages with queries; every language finds, and cutting and pooling cost little."""
    found = evaluate(bundle, open_data(written[0].file.parents[1]), pooled=(2,), device="cpu", cache=None)
    (data,) = found.data
    assert (data.sizes["pages"], data.sizes["queries"], set(data.languages)) == (120, 960, set(LANGUAGES))

    def value(space: str, dim: int, pooled: int = 1, language: str | None = None) -> float:
        def is_asked(one: Score) -> bool:
            of_language = one.is_overall if language is None else one.language == language
            return (one.metric, one.space, one.dim, one.pooled) == ("ndcg@5", space, dim, pooled) and of_language

        return next(one.value for one in data.scores if is_asked(one))

    assert value("single", 128) == pytest.approx(damages[RIGHT].single, abs=2e-3)  # ties by id, not by place
    assert value("multi", 64) == pytest.approx(damages[RIGHT].multi, abs=2e-3)
    assert all(value("single", dim) > LEAST_SINGLE - 0.05 for dim in MATRYOSHKA_DIMS)
    assert value("multi", 64, pooled=2) > LEAST_SINGLE
    for language in LANGUAGES:
        assert value("multi", 64, language=language) > LEAST_MULTI - 0.05
        assert value("single", 128, language=language) > LEAST_SINGLE - 0.05


def test_a_page_at_half_its_size_is_read_less_well(
    bundle: Path, written: list[WrittenPage], damages: dict[str, PageNdcg]
) -> None:
    with Encoder.open(bundle, device="cpu") as encoder:
        files = [one.file for one in written]
        pages = encoder.encode_image_multivector(files, task=PASSAGE, max_pixels=28 * 28 * 9)
        assert isinstance(pages, MultiVectors) and pages.lengths.max() <= 9 + 11
        questions = encoder.encode_text_multivector([one.texts["en"] for one in written], task=QUERY)
        best = questions.maxsim(pages).argmax(axis=1)
        right = [one.question.is_answered_by(written[place].page) for one, place in zip(written, best, strict=True)]
        whole = judge_pages(encoder, written[:24])
    assert sum(right) / len(right) < 0.6 < whole.multi


def test_two_wordings_of_a_question_match(bundle: Path, written: list[WrittenPage]) -> None:
    """By the adapter text-matching, across languages, one question of each family."""
    some = written[::12]
    with Encoder.open(bundle, device="cpu") as encoder:
        first, second = (
            encoder.encode_text([one.texts[name] for one in some], task="text-matching") for name in ("zh", "es")
        )
    found = (first @ second.T).argmax(axis=1)
    assert (found == range(len(some))).sum() >= len(some) - 1
