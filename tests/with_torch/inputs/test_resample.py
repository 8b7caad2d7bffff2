"""`resample.resize_like_torch` gives torch's pixels to the last bit."""

import numpy as np
import pytest
import torch

from edgeclip.inputs import resample
from tests.runtime.inputs.test_resample import noise


@pytest.mark.parametrize("seed", range(3))
def test_equals_torch_on_random_sizes(seed: int) -> None:
    """torch resizes uint8 tensors with antialiasing so; torchvision's and transformers' image processors call it."""
    rng = np.random.default_rng(seed)
    for _ in range(40):
        width, height, to_width, to_height = (int(side) for side in np.exp(rng.uniform(0, 5.6, 4)))
        pixels = noise(rng, width, height)
        planes = torch.from_numpy(pixels).permute(2, 0, 1)[None]
        resized = torch.nn.functional.interpolate(planes, (to_height, to_width), mode="bicubic", antialias=True)
        found = resample.resize_like_torch(pixels, (to_width, to_height))
        case = f"{width} x {height} -> {to_width} x {to_height}"
        np.testing.assert_array_equal(found, resized[0].permute(1, 2, 0).numpy(), err_msg=case)
