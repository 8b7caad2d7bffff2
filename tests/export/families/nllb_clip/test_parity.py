"""nllb-clip-siglip, checkpoint to vector, gives what transformers' encoder and timm's tower give; no mistake does."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeclip import Encoder, InputError, TruncationWarning
from edgeclip.manifest import TARGETS, Target
from edgeclip_export import export_checkpoint
from tests.conftest import DATA, made_once
from tests.scenes.nllb_goldens import CHECKPOINT, CONTROLS, FILES, SAME, TEXT, TEXTS, VISION, unit

IMAGES = DATA / "images"


@pytest.fixture(scope="module", params=TARGETS)
def opened(request: pytest.FixtureRequest, shared: Path) -> Iterator[Encoder]:
    """The bundle for each target, run on the CPU."""
    target: Target = request.param
    folder = made_once(shared / "nllb" / target, lambda out: export_checkpoint(CHECKPOINT, out, target=target))
    with Encoder.open(folder, device="cpu", selftest=True) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def cpu(shared: Path) -> Iterator[Encoder]:
    folder = made_once(shared / "nllb" / "cpu", lambda out: export_checkpoint(CHECKPOINT, out))
    with Encoder.open(folder, device="cpu") as encoder:
        yield encoder


@pytest.mark.filterwarnings("ignore::edgeclip.TruncationWarning")
@pytest.mark.parametrize("code", TEXTS)
def test_texts_give_the_encoders_vectors(opened: Encoder, code: str) -> None:
    found = opened.encode_text(TEXTS[code], task=code)
    assert np.abs(found - unit(TEXT[f"{code}/features"])).max() <= SAME


@pytest.mark.parametrize("code", TEXTS)
def test_texts_become_the_tokenizers_ids(cpu: Encoder, code: str) -> None:
    for item, wanted in zip(cpu.prepare_texts(TEXTS[code], task=code).items, TEXT[f"{code}/input_ids"], strict=True):
        ids = item.arrays["input_ids"]
        assert ids.tolist() == wanted[: len(ids)].tolist()
        assert set(wanted[len(ids) :].tolist()) <= {1}


@pytest.mark.parametrize("file", FILES)
def test_images_give_the_towers_vectors(opened: Encoder, file: str) -> None:
    assert np.abs(opened.encode_image(IMAGES / file) - unit(VISION[f"{file}/features"])).max() <= SAME


@pytest.mark.parametrize("file", FILES)
def test_images_become_squashed_pixels(cpu: Encoder, file: str) -> None:
    pixels = cpu.prepare_image(IMAGES / file).arrays["pixel_values"]
    assert np.array_equal(pixels, VISION[f"{file}/pixels"])


@pytest.mark.parametrize("name", [name for name in CONTROLS.files if name.startswith("text/")])
def test_a_mistake_with_texts_is_seen(cpu: Encoder, name: str) -> None:
    found = cpu.encode_text(TEXTS["deu_Latn"], task="deu_Latn")
    assert np.abs(found - unit(CONTROLS[name])).max(axis=1).min() > 10 * SAME


@pytest.mark.parametrize("name", [name for name in CONTROLS.files if name.startswith("vision/")])
def test_a_mistake_with_images_is_seen(cpu: Encoder, name: str) -> None:
    file = "rgba.png" if "rgb" in name else "rgb_tall.png"
    assert np.abs(cpu.encode_image(IMAGES / file) - unit(CONTROLS[name])).max() > 10 * SAME


def test_a_text_is_cut_with_its_closing_token(cpu: Encoder) -> None:
    with pytest.warns(TruncationWarning):
        cpu.encode_text(TEXTS["jpn_Jpan"], task="jpn_Jpan")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (None, "this model needs a task, the code of a text's language, one of 'eng_Latn', "),
        ("de", "task is 'de', wanted one that the model knows, the code of a text's language: 'eng_Latn', "),
        ("retrieval.query", "task is 'retrieval.query', "),
        ("deu_latn", "task is 'deu_latn', "),
    ],
)
def test_a_text_without_its_language_is_refused(cpu: Encoder, task: str | None, said: str) -> None:
    for texts in (["Berlin"], []):
        with pytest.raises(InputError) as caught:
            cpu.encode_text(texts, task=task)
        assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_an_image_has_no_language(cpu: Encoder) -> None:
    with pytest.raises(InputError, match="none, this model has no tasks for images"):
        cpu.encode_image(IMAGES / FILES[0], task="deu_Latn")
