"""A batch is of its seed alone and tells each picture twice; the rate warms up, stays and falls to nothing."""

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from edgeclip.errors import BuildError
from edgeclip_bench.demo import CHECKPOINT
from edgeclip_bench.demo.captions import LANGUAGES, caption, captions
from edgeclip_bench.demo.drawing import draw_picture
from edgeclip_bench.demo.scenes import Scene, draw_scenes
from edgeclip_bench.demo.train import Recipe, draw_batch


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    """The trained model's tokenizer, not padding or cutting."""
    opened = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    opened.no_padding()
    opened.no_truncation()
    return opened


def test_a_batch_is_of_its_seed_alone(plain: Tokenizer) -> None:
    one, same, other = (draw_batch(plain, "train", (0, 2, step), count=4, family=2) for step in (7, 7, 8))
    assert torch.equal(one.pixels, same.pixels) and torch.equal(one.ids, same.ids)
    assert not torch.equal(one.pixels, other.pixels)


@pytest.mark.parametrize("language", [None, "ru"])
def test_a_batch_tells_each_picture_twice(plain: Tokenizer, language: str | None) -> None:
    """In two languages, unless one is asked for; the second tellings follow all the first ones."""
    batch = draw_batch(plain, "validation", (5,), count=6, family=3, language=language)
    assert (batch.pixels.shape, batch.pixels.dtype) == ((6, 116, 116, 3), torch.uint8)
    assert (len(batch.ids), batch.ids.dtype) == (12, torch.int64)
    lengths = (batch.ids != 1).sum(dim=1)
    assert lengths.max() == batch.ids.shape[1]
    rows = [row[:length].tolist() for row, length in zip(batch.ids, lengths, strict=True)]
    draw = np.random.default_rng((5,))
    scenes = draw_scenes("validation", draw, family=3)
    for index, pixels in enumerate(batch.pixels.numpy()):
        scene = next(scenes)
        assert np.array_equal(pixels, draw_picture(scene, draw, side_px=116, width_px=116, height_px=116))
        if language is None:
            draw.choice(len(LANGUAGES), 2, False)
        told = [language_of(row, scene, plain) for row in (rows[index], rows[index + 6])]
        assert told == [language] * 2 if language else len(set(told)) == 2
        for name in told:
            caption(scene, name, draw)


def language_of(ids: list[int], scene: Scene, plain: Tokenizer) -> str:
    """The only language that the ids tell the scene in."""
    told = [name for name in LANGUAGES if ids in [plain.encode(text).ids for text in captions(scene, name)]]
    assert len(told) == 1
    return told[0]


def test_the_rate_warms_up_stays_and_falls_to_nothing() -> None:
    recipe = Recipe(steps=100, warmup=0.04, decay_from=0.4)
    rates = [recipe.rate(step) for step in range(100)]
    full = recipe.learning_rate
    assert rates[:4] == pytest.approx([full / 4, full / 2, full * 3 / 4, full])
    assert rates[3:41] == pytest.approx([full] * 38)
    assert rates[41:] == sorted(rates[41:], reverse=True) and rates[41] < full
    assert 0 < rates[-1] < 0.02 * full


@pytest.mark.parametrize("options", [{"seed": -1}, {"steps": 0}, {"batch": 1}])
def test_a_recipe_that_cannot_be_followed_is_refused(options: dict[str, int]) -> None:
    with pytest.raises(BuildError, match="wanted a seed from 0, steps from 1 and batches from 2"):
        Recipe(**options)
