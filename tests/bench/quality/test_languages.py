"""Where tasks are languages, each text of an evaluation has its own; a wrong or missing one is an error."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder, InputError
from edgeclip_bench.families.nllb_clip import LANGUAGES, tiny_config
from edgeclip_bench.families.random_checkpoint import write_checkpoint
from edgeclip_bench.quality.calibration_folder import read_samples
from edgeclip_bench.quality.datasets import Caption, ClassificationData, ImageTextData, StsData
from edgeclip_bench.quality.evaluate import evaluate, open_embedder
from edgeclip_bench.quality.languages import find_code
from edgeclip_bench.quality.searches import embed
from edgeclip_export import export_checkpoint
from tests.conftest import DATA, made_once

PICTURES = tuple(DATA / "images" / f"{name}.png" for name in ("rgb_tall", "rgb_odd", "gray"))


@pytest.fixture(scope="module")
def encoder(shared: Path) -> Iterator[Encoder]:
    def make(out: Path) -> None:
        write_checkpoint(out.parent / "checkpoint", tiny_config())
        export_checkpoint(out.parent / "checkpoint", out)

    with Encoder.open(made_once(shared / "nllb-languages" / "bundle", make), device="cpu") as opened:
        yield opened


def pairs(*languages: str | None, benchmark: str | None = None) -> ImageTextData:
    """The word Berlin for each picture, in these languages."""
    captions = tuple(
        Caption(text="Berlin", image=image, language=language)
        for language in languages
        for image in range(len(PICTURES))
    )
    return ImageTextData(name="mine", images=PICTURES, captions=captions, benchmark=benchmark)


@pytest.mark.parametrize(
    ("language", "code"),
    [
        ("de", "deu_Latn"),
        ("DE", "deu_Latn"),
        ("jp", "jpn_Jpan"),
        ("fil", "tgl_Latn"),
        ("quz", "quy_Latn"),
        ("no", "nob_Latn"),
        ("zh", "zho_Hans"),
        ("zh-TW", "zho_Hant"),
        ("pt-BR", "por_Latn"),
        ("deu", "deu_Latn"),
        ("zho_Hant", "zho_Hant"),
        ("arb-Arab", "arb_Arab"),
    ],
)
def test_a_language_is_found_by_its_names(encoder: Encoder, language: str, code: str) -> None:
    assert find_code(language, encoder.manifest) == code


@pytest.mark.parametrize("language", ["xx", "zho", "german", "en-de", "", "und"])
def test_a_language_without_one_code_is_refused(encoder: Encoder, language: str) -> None:
    with pytest.raises(InputError, match="the model has no code for it"):
        find_code(language, encoder.manifest)


def test_each_name_of_a_language_stands_for_a_code_of_the_model(encoder: Encoder) -> None:
    from edgeclip_bench.quality.languages import _CODES

    assert set(_CODES.values()) <= set(LANGUAGES) == set(encoder.tasks)


def test_each_caption_has_its_own_language(encoder: Encoder) -> None:
    """One word in two languages is two vectors, also where the cache knows one of them."""
    data = pairs("de", "en")
    with open_embedder(encoder, device="cpu", threads=None, cache=None, progress=False) as embedder:
        found = embed(embedder, data, None)
    german, english = (encoder.encode_text("Berlin", task=code) for code in ("deu_Latn", "eng_Latn"))
    assert np.abs(german - english).max() > 1e-3
    assert np.abs(found.queries - np.repeat([german, english], len(PICTURES), axis=0)).max() <= 1e-6
    assert (found.tasks.queries, found.tasks.items) == ("deu_Latn, eng_Latn", None)


def test_an_english_benchmark_needs_no_language(encoder: Encoder) -> None:
    (scores,) = evaluate(encoder, [pairs(None, benchmark="coco")], cache=None, progress=False).data
    assert scores.task == "eng_Latn"


def test_one_unnamed_language_may_be_given(encoder: Encoder) -> None:
    (scores,) = evaluate(encoder, [pairs(None)], task="deu_Latn", cache=None, progress=False).data
    assert scores.task == "deu_Latn"


def test_classes_are_named_in_english_and_pairs_have_their_language(encoder: Encoder) -> None:
    classes = ClassificationData(
        name="classes", images=PICTURES, labels=(0, 1, 0), classes=("a", "b"), templates=("a photo of {}",)
    )
    sentences = StsData(name="pairs", first=("a", "b", "c"), second=("d", "e", "f"), scores=(1, 2, 3), language="ru")
    found = evaluate(encoder, [classes, sentences], cache=None, progress=False)
    assert [data.task for data in found.data] == ["eng_Latn", "rus_Cyrl"]


@pytest.mark.parametrize(
    ("languages", "task", "said"),
    [
        ((None,), None, "mine: its texts name no language, and this model needs one: give --task, one of eng_Latn, "),
        (("xx",), None, "language 'xx': the model has no code for it"),
        (
            ("de", "en"),
            "deu_Latn",
            "mine: --task deu_Latn is one language, and the texts are in de, en; leave it out",
        ),
        (("de", None), None, "name no language"),
        (("de",), "de", "task is 'de', wanted one that the model knows, the code of a text's language: 'deu_Latn'"),
    ],
)
def test_a_mistake_with_languages_is_one_line(
    encoder: Encoder, languages: tuple[str | None, ...], task: str | None, said: str
) -> None:
    with pytest.raises(InputError) as caught:
        evaluate(encoder, [pairs(*languages)], task=task, cache=None, progress=False)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_calibration_takes_the_languages_of_captions(encoder: Encoder, tmp_path: Path) -> None:
    """A text whose language is not named is calibrated with the first."""
    lines = (
        '{"image": "a.png", "captions": {"de": ["Berlin"], "en": ["Berlin"]}}',
        '{"image": "b.png", "caption": "x"}',
    )
    for name, picture in zip(("a.png", "b.png"), PICTURES, strict=False):
        (tmp_path / name).write_bytes(picture.read_bytes())
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n")
    samples = read_samples(tmp_path, encoder.folder, encoder.manifest)
    first = [int(item.arrays["input_ids"][0]) for item in samples.text]
    texts = [encoder.prepare_texts(["a"], task=code) for code in ("deu_Latn", "eng_Latn")]
    german, english = (int(text.items[0].arrays["input_ids"][0]) for text in texts)
    assert first == [german, english, english]
