"""Bundles of several models on the same data: one table with each one's recall@5 and what its authors published."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from edgeclip.cli import main
from edgeclip.manifest import Target
from edgeclip_bench.quality.beside import _BENCHMARKS, _published
from edgeclip_bench.quality.published import OF_MODELS, model_of, published_for
from edgeclip_export import export_checkpoint
from tests.conftest import DATA, made_once
from tests.scenes.nllb_goldens import CHECKPOINT

PICTURES = ("rgb_tall", "rgb_odd", "gray")


@pytest.fixture(scope="module")
def nllb(shared: Path) -> Path:
    return made_once(shared / "nllb" / "cpu", lambda out: export_checkpoint(CHECKPOINT, out))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in PICTURES:
        (tmp_path / f"{name}.png").write_bytes((DATA / "images" / f"{name}.png").read_bytes())
    lines = [{"image": f"{name}.png", "captions": {"en": ["a wall"], "de": ["eine Wand"]}} for name in PICTURES]
    (tmp_path / "captions.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def test_both_models_stand_in_one_table(
    bundles: Mapping[Target, Path], nllb: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(bundles["cpu"]), str(data), "--beside", str(nllb), "--no-cache"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    start = next(index for index, line in enumerate(lines) if line.endswith("text to image: recall@5, per cent"))
    header, first, second = lines[start + 1 : start + 4]
    assert header.split() == ["bundle", "here", "COCO", "Flickr30k", "XM3600", "XTD10"]
    assert first.startswith(str(bundles["cpu"])) and second.startswith(str(nllb))
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["evaluations"]
    assert [one["data"][0]["task"] for one in found] == [None, "eng_Latn, deu_Latn"]


def test_one_bundle_is_not_held_against_another_models(
    bundles: Mapping[Target, Path], nllb: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--beside", str(nllb), "--against", str(nllb)]
    with pytest.raises(SystemExit) as caught:
        main(["eval", str(bundles["cpu"]), str(data), *both])
    assert caught.value.code == 2
    assert main(["eval", str(bundles["cpu"]), str(data), "--beside", str(nllb), "--task", "deu_Latn"]) == 1
    assert "task is 'deu_Latn', wanted None or one that the model knows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("family", "dim", "model", "figures"),
    [
        ("jina_clip", 1024, "jina-clip-v2", (0.6835, 0.8984, 0.8143, 0.8487)),
        ("jina_clip", 768, "jina-clip-v1", (0.6644, 0.8902)),
        ("nllb_clip", 768, "nllb-clip-base-siglip", (0.6913, 0.9002, 0.7598, 0.8574)),
        ("nllb_clip", 1152, "nllb-clip-large-siglip", (0.7084, 0.9224, 0.7913, 0.8699)),
        ("jina_embeddings_v4", 2048, "jina-embeddings-v4", (0.7618, 0.9136, 0.7942, 0.8946)),
        ("jina_clip", 64, None, ()),
    ],
)
def test_each_model_has_what_its_own_authors_published(
    family: str, dim: int, model: str | None, figures: tuple[float, ...]
) -> None:
    assert model_of(family, dim) == model
    found = _published(family, dim, "text_to_image")
    assert {name: one.value for name, one in found.items()} == dict(zip(_BENCHMARKS, figures, strict=False))


@pytest.mark.parametrize("model", OF_MODELS)
def test_a_mean_is_that_of_its_languages(model: str) -> None:
    for dataset in ("xm3600", "xtd10"):
        for direction in ("text_to_image", "image_to_text"):
            figures = [one for one in OF_MODELS[model] if (one.dataset, one.direction) == (dataset, direction)]
            spoken = [one.value for one in figures if one.language is not None]
            if spoken:
                mean = published_for(dataset, "recall@5", direction, None, figures[0].dim, model)
                assert mean is not None
                assert mean.value == pytest.approx(sum(spoken) / len(spoken), abs=1.1e-4)
