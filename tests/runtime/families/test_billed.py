"""Usage counts as the hosted API does: a text by its tokens, an image by the tiles of 512 x 512 pixels it begins."""

import numpy as np
import pytest

from edgeclip import Encoder


@pytest.mark.parametrize(
    ("width", "height", "tokens"),
    [
        (512, 512, 4000),
        (720, 720, 16000),
        (1080, 1080, 36000),
        (1, 1, 4000),
        (513, 512, 8000),
        (512, 1025, 12000),
        (4000, 40, 32000),
    ],
)
def test_images_count_the_tiles_they_begin(encoder: Encoder, width: int, height: int, tokens: int) -> None:
    item = encoder.prepare_image(np.zeros((8, 8, 3), np.uint8))
    assert encoder.family.billed(item, (width, height)) == tokens


def test_texts_count_their_tokens_with_the_instruction(encoder: Encoder) -> None:
    plain, asked = (encoder.prepare_texts("a red bicycle", task=task).items[0] for task in (None, "retrieval.query"))
    assert encoder.family.billed(plain, None) == len(plain.arrays["input_ids"])
    assert encoder.family.billed(asked, None) == len(asked.arrays["input_ids"]) > plain.tokens
