"""How images are prepared is read in each form that transformers writes; contradictions are refused."""

import json
import shutil
from pathlib import Path

import pytest

from edgeclip_export.checkpoint import read_json
from edgeclip_export.families.jina_clip.config import parse_config
from edgeclip_export.families.jina_clip.preprocessor import image_facts, read_image_facts
from tests.conftest import CHECKPOINT
from tests.export.test_saved_layouts import refusal

CONFIG = parse_config(read_json(CHECKPOINT / "config.json"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(CHECKPOINT, tmp_path / "model")


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_both_files_must_say_the_same(folder: Path) -> None:
    nested = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert read_image_facts(folder, CONFIG) == read_image_facts(CHECKPOINT, CONFIG)
    edit(folder / "preprocessor_config.json", resize_mode="squash")
    assert "resize_mode is 'shortest' in processor_config.json and 'squash' in preprocessor_config.json" in refusal(
        lambda: read_image_facts(folder, CONFIG)
    )


def test_a_processor_without_an_image_processor_is_passed_over(folder: Path) -> None:
    """transformers 4 saves such a one beside preprocessor_config.json."""
    (folder / "processor_config.json").write_text('{"processor_class": "JinaCLIPProcessor"}')
    assert read_image_facts(folder, CONFIG) == read_image_facts(CHECKPOINT, CONFIG)
    (folder / "preprocessor_config.json").unlink()
    assert "processor_config.json: has no image_processor; copy preprocessor_config.json" in refusal(
        lambda: read_image_facts(folder, CONFIG)
    )


SETTINGS = json.loads((CHECKPOINT / "preprocessor_config.json").read_text())


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 64},
        {"size": [64]},
        {"size": [64, 64]},
        {"size": {"height": 64, "width": 64}},
        {"size": {"shortest_edge": 64}},
        {"size": {"shortest_edge": 64, "longest_edge": None}},
        {"crop_size": {"height": 64, "width": 64}},
        {"size": None, "crop_size": 64},
        {"mean": None, "image_mean": SETTINGS["mean"]},
        {"image_std": SETTINGS["std"]},
        {"interpolation": None, "resample": 3},
        {"resample": "bicubic"},
        {"resize_mode": None},
        {"do_resize": True, "do_rescale": True, "do_normalize": None, "rescale_factor": 0.00392156862745098},
    ],
)
def test_a_setting_may_be_written_in_several_forms(changes: dict[str, object]) -> None:
    assert image_facts(SETTINGS | changes, CONFIG) == image_facts(SETTINGS, CONFIG)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"size": [64, 48]}, "size is [64, 48], wanted a square"),
        ({"size": {"height": 64, "width": 48}}, "wanted a square"),
        ({"size": [64, 64, 3]}, "wanted a number of pixels, a list of two or height and width"),
        ({"size": []}, "wanted a number of pixels"),
        ({"size": {}}, "wanted a number of pixels"),
        ({"size": "64"}, "size is '64', wanted a number of pixels"),
        ({"size": True}, "size is True, wanted a number of pixels"),
        ({"size": {"max_pixels": 64}}, "size has 'max_pixels', wanted height, longest_edge, shortest_edge, width"),
        ({"size": {"shortest_edge": 224}}, "size is 224, the vision tower wants 64"),
        ({"size": None}, "size is None, the vision tower wants 64"),
        ({"crop_size": 48}, "size says 64 and crop_size says 48; wanted one value"),
        ({"size": {"longest_edge": 64}}, "size has longest_edge and resize_mode is 'shortest'"),
        (
            {"size": {"shortest_edge": 64}, "resize_mode": "squash"},
            "size has shortest_edge and resize_mode is 'squash'",
        ),
        ({"image_mean": [0.5, 0.5, 0.5]}, "mean says [0.48145466, 0.4578275, 0.40821073] and image_mean says [0.5"),
        ({"resample": 2}, "interpolation says 'bicubic' and resample says 'bilinear'"),
        ({"interpolation": None, "resample": 0}, "interpolation is 0, wanted one of bicubic, bilinear"),
        ({"do_center_crop": False}, "do_center_crop is False; only True is supported"),
        (
            {"size": {"height": 64, "width": 64}, "resize_mode": None, "image_processor_type": "CLIPImageProcessor"},
            "resize_mode is missing; add it, jina-clip-v2 has 'shortest'",
        ),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, wanted 1/255"),
        ({"rescale_factor": "1/255"}, "rescale_factor is '1/255', wanted 1/255 as a number"),
        ({"mean": [0.5, True, 0.5]}, "wanted three numbers"),
    ],
)
def test_settings_that_contradict_or_do_not_fit_are_refused(changes: dict[str, object], said: str) -> None:
    assert said in refusal(lambda: image_facts(SETTINGS | changes, CONFIG, "processor_config.json"))


def test_a_refusal_names_the_file(folder: Path) -> None:
    nested = SETTINGS | {"size": 48}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": nested}))
    assert refusal(lambda: read_image_facts(folder, CONFIG)).startswith("processor_config.json: size is 48, ")
    (folder / "processor_config.json").unlink()
    edit(folder / "preprocessor_config.json", size=48)
    assert refusal(lambda: read_image_facts(folder, CONFIG)).startswith("preprocessor_config.json: size is 48, ")
