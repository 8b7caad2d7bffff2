"""Scenes become files that an evaluation reads back: every picture once, with its caption in every language."""

import json
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgeclip.errors import BuildError
from edgeclip_bench.demo.captions import LANGUAGES, captions
from edgeclip_bench.demo.dataset import CAPTIONS, FAMILY, IMAGES, write_dataset
from edgeclip_bench.demo.layout import IMAGE_SIZE_PX
from edgeclip_bench.demo.scenes import Scene, draw_scenes, split_of
from edgeclip_bench.quality.datasets import ImageTextData
from edgeclip_bench.quality.layouts import open_data
from tests.scenes.command import bench

COUNT, MEMBERS = 40, 5
# About what the four backgrounds are drawn in.
BACKGROUND_RGB = {
    "grey": (140, 145, 150),
    "pink": (245, 170, 195),
    "brown": (120, 80, 50),
    "turquoise": (95, 195, 195),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Scene]]:
    """A data set and its scenes. Read only."""
    out = tmp_path_factory.mktemp("dataset") / "made" / "test"
    return out, write_dataset(out, images=COUNT, family=MEMBERS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def refusal(out: Path, *, images: int, family: int) -> str:
    """The one line that writing fails with."""
    with pytest.raises(BuildError) as caught:
        write_dataset(out, images=images, family=family)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_are_the_pictures_and_their_captions(written: tuple[Path, list[Scene]]) -> None:
    out, scenes = written
    names = [f"{index:05}.png" for index in range(COUNT)]
    assert set(contents(out)) == {CAPTIONS, *names}
    lines = [json.loads(line) for line in (out / CAPTIONS).read_text(encoding="utf-8").splitlines()]
    assert [line["image"] for line in lines] == names
    for line, scene in zip(lines, scenes, strict=True):
        assert set(line) == {"image", "captions"}
        assert list(line["captions"]) == list(LANGUAGES)
        for language, [text] in line["captions"].items():
            assert text in captions(scene, language)


def test_wordings_vary(written: tuple[Path, list[Scene]]) -> None:
    out, scenes = written
    lines = [json.loads(line) for line in (out / CAPTIONS).read_text(encoding="utf-8").splitlines()]
    for language in LANGUAGES:
        wordings = [
            captions(scene, language).index(line["captions"][language][0])
            for scene, line in zip(scenes, lines, strict=True)
        ]
        assert len(set(wordings)) >= 6, language


def test_an_evaluation_reads_it_back(written: tuple[Path, list[Scene]]) -> None:
    out, scenes = written
    [data] = open_data(out)
    assert isinstance(data, ImageTextData)
    assert data.images == tuple(out / f"{index:05}.png" for index in range(COUNT))
    assert Counter(caption.language for caption in data.captions) == dict.fromkeys(LANGUAGES, COUNT)
    for told in data.captions:
        assert told.language is not None
        assert told.text in captions(scenes[told.image], told.language)


def test_every_scene_is_one_kept_for_test_in_families(written: tuple[Path, list[Scene]]) -> None:
    scenes = written[1]
    assert {split_of(scene) for scene in scenes} == {"test"}
    assert len({scene.canonical() for scene in scenes}) == COUNT
    drawn = draw_scenes("test", np.random.default_rng((0, 0, 2)), family=MEMBERS)  # the seed of the split
    assert scenes == list(islice(drawn, COUNT))


def test_another_split_and_another_seed_are_other_scenes(written: tuple[Path, list[Scene]], tmp_path: Path) -> None:
    validation = write_dataset(tmp_path / "validation", split="validation", images=4, family=2)
    assert {split_of(scene) for scene in validation} == {"validation"}
    other = write_dataset(tmp_path / "other", images=4, family=2, seed=1)
    assert not {scene.canonical() for scene in other} & {scene.canonical() for scene in written[1]}


def test_pictures_are_of_many_sizes_none_smaller_than_what_the_model_sees(
    written: tuple[Path, list[Scene]],
) -> None:
    sizes = [pixels_of(path).shape[:2] for path in sorted(written[0].glob("*.png"))]
    short, aspects = [min(size) for size in sizes], [max(size) / min(size) for size in sizes]
    assert min(short) >= IMAGE_SIZE_PX and max(short) <= 256
    assert max(short) - min(short) > 100 and len(set(sizes)) > COUNT / 2
    assert max(aspects) <= 1.6 + 0.005 and np.mean([aspect > 1.1 for aspect in aspects]) > 0.6
    wide = sum(width > height for height, width in sizes)
    assert COUNT * 0.5 < wide < COUNT * 0.9


def test_a_picture_shows_its_own_scene(written: tuple[Path, list[Scene]]) -> None:
    """By its background, which most of it is."""
    out, scenes = written
    for index, scene in enumerate(scenes):
        usual = np.median(pixels_of(out / f"{index:05}.png"), axis=(0, 1))
        away = {name: np.linalg.norm(usual - colour) for name, colour in BACKGROUND_RGB.items()}
        assert min(away, key=lambda name: away[name]) == scene.background, index


def test_the_same_arguments_give_the_same_files(tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        write_dataset(tmp_path / name, images=6, family=2, seed=seed)
    assert contents(tmp_path / "one") == contents(tmp_path / "same")
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "other").keys()
    assert not set(contents(tmp_path / "one").values()) & set(contents(tmp_path / "other").values())


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    write_dataset(tmp_path / "out", images=4, family=2, progress=lambda *step: told.append(step))
    assert told == [("drawing pictures", done, 4) for done in (1, 2, 3, 4)]


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    assert refusal(tmp_path / "there", images=2, family=2) == f"{tmp_path / 'there'}: cannot be written (File exists)"
    assert refusal(tmp_path / "file" / "under", images=2, family=2).startswith(
        f"{tmp_path / 'file' / 'under'}: cannot"
    )
    assert list((tmp_path / "there").iterdir()) == []


@pytest.mark.parametrize(("images", "family"), [(3, 2), (2, 4), (0, 2), (-2, 2), (2, 0), (2, -2)])
def test_images_are_whole_families(tmp_path: Path, images: int, family: int) -> None:
    message = refusal(tmp_path / "out", images=images, family=family)
    assert message == f"{images} images are no whole families of {family}, of which one has at most 20"
    assert not (tmp_path / "out").exists()


def test_a_seed_is_not_negative(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="seed is -1, wanted one from 0"):
        write_dataset(tmp_path / "out", images=2, family=2, seed=-1)
    assert not (tmp_path / "out").exists()


def test_the_usual_set_is_of_whole_families() -> None:
    assert IMAGES % FAMILY == 0


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "out"), "--split", "train", "--images", "4", "--family", "2", "--seed", "6"]
    assert bench("draw-scenes", *arguments) == 0
    wanted = write_dataset(tmp_path / "same", split="train", images=4, family=2, seed=6)
    assert {split_of(scene) for scene in wanted} == {"train"}
    assert contents(tmp_path / "out") == contents(tmp_path / "same")
    assert capsys.readouterr() == ("", "")
    assert bench("draw-scenes", *arguments) == 1
    assert capsys.readouterr() == ("", f"edgeclip: {tmp_path / 'out'}: cannot be written (File exists)\n")
    assert bench("draw-scenes", str(tmp_path / "uneven"), "--images", "5", "--family", "2") == 1
    assert capsys.readouterr() == ("", "edgeclip: 5 images are no whole families of 2, of which one has at most 20\n")
