"""What the manifest knows about images: the pixels of one size, or the patches, that an image becomes."""

import dataclasses
from typing import Literal

from edgeclip.errors import BundleError

ResizeMode = Literal["shortest", "longest", "squash"]
Interpolation = Literal["bicubic", "bilinear"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImageFacts:
    """What turns an RGB image into pixels of one size: (size_px, size_px, 3) uint8.

    `mean` and `std` are folded into the graph; they stand here for users who want the float tensor
    of the reference: (pixels / 255 - mean) / std.
    """

    kind: Literal["square"]
    size_px: int
    resize_mode: ResizeMode
    interpolation: Interpolation
    fill_color: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.size_px < 1 or not 0 <= self.fill_color <= 255 or min(self.std) <= 0:
            raise BundleError(
                f"manifest: images of {self.size_px} px, fill_color {self.fill_color}, std {self.std} cannot be"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PatchFacts:
    """What turns an RGB image of any size into patches of `patch_px` a side, each a row of uint8 pixels.

    `merge` x `merge` patches become one token, and both sides of the resized image are multiples of that. The resized
    image has from `min_pixels` to `max_pixels` pixels; a call may give another upper limit. Attention stays within
    windows of `window_px`. `prompt_ids` are the tokens of the prompt that an image stands in, where `image_id` marks
    the place of the image's tokens. `mean` and `std` are folded into the graph, as in `ImageFacts`.
    """

    kind: Literal["patches"]
    patch_px: int
    merge: int
    window_px: int
    min_pixels: int
    max_pixels: int
    interpolation: Interpolation
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    prompt_ids: tuple[int, ...]
    image_id: int

    def __post_init__(self) -> None:
        if min(self.patch_px, self.merge) < 1 or self.window_px % self.token_px or self.window_px < 1:
            raise BundleError(
                f"manifest: patches of {self.patch_px} px, {self.merge} x {self.merge} to a token, in windows of "
                f"{self.window_px} px cannot be"
            )
        if not 1 <= self.min_pixels <= self.max_pixels or min(self.std) <= 0:
            raise BundleError(
                f"manifest: images of {self.min_pixels} to {self.max_pixels} pixels, std {self.std} cannot be"
            )
        if self.prompt_ids[1:-1].count(self.image_id) != 1 or self.prompt_ids.count(self.image_id) != 1:
            raise BundleError(f"manifest: prompt_ids {self.prompt_ids} hold {self.image_id} not once, between others")

    @property
    def token_px(self) -> int:
        """The pixels a side that become one token."""
        return self.patch_px * self.merge
