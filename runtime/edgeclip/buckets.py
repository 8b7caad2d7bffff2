"""Which shapes a GPU is given: how many inputs at once, which shapes get a CUDA graph, TensorRT's profiles.

A short text is launch bound: its 24 layers are some 300 kernels of a few microseconds each, and starting them one by
one takes longer than running them. A CUDA graph starts all of them at once, but only for one shape. So single texts
up to CAPTURED_TOKENS, each length its own graph (no padding, so no mask), and a few sizes of image batches get one;
all other shapes run kernel by kernel. The set is finite, so it is the bound of what graphs hold; nothing is evicted.

Numbers here were chosen by reasoning, not measured on a GPU: `bench/gpu_check.sh` is what measures them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from edgeclip.batching import MOST_IMAGES_AT_ONCE
from edgeclip.manifest import Manifest, TowerName

Shape = tuple[int, ...]

# Tokens of a batch of texts on a GPU. 16384 rows fill every tensor core's tile many times over, and their activations
# (about 20 kB a token at fp16) stay below half a gigabyte.
GPU_TOKEN_BUDGET = 16384
# A batch of shorter texts than this many tokens has no more rows than texts of this many would.
_FEWEST_TOKENS = 16
# Images of 1297 tokens each: 32 are 41504 rows.
GPU_IMAGES_AT_ONCE = MOST_IMAGES_AT_ONCE
# Texts up to this length, alone, get a CUDA graph.
CAPTURED_TOKENS = 64
# Batches of so many images get a CUDA graph.
CAPTURED_IMAGES = (1, 8, GPU_IMAGES_AT_ONCE)
# The longest text of each TensorRT profile; the model's limit ends the last one.
_PROFILE_TOKENS = (64, 512)
# The special tokens alone.
_SHORTEST_TEXT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """TensorRT's optimisation profiles of one input: the i-th is min[i], opt[i], max[i]."""

    min: tuple[Shape, ...]
    opt: tuple[Shape, ...]
    max: tuple[Shape, ...]

    def option(self, which: str, input_name: str) -> str:
        """`min`, `opt` or `max` as onnxruntime's trt_profile_*_shapes wants it: "name:1x2,name:1x65"."""
        shapes: Sequence[Shape] = getattr(self, which)
        return ",".join(f"{input_name}:{'x'.join(map(str, shape))}" for shape in shapes)


def is_captured(tower: TowerName, shape: Shape) -> bool:
    """Whether inputs of this shape, ids (B, T) or pixels (B, S, S, 3), are run by a CUDA graph."""
    if tower == "text":
        return shape[0] == 1 and shape[1] <= CAPTURED_TOKENS
    return shape[0] in CAPTURED_IMAGES


def captured_shapes(tower: TowerName, manifest: Manifest) -> tuple[Shape, ...]:
    """All the shapes that a CUDA graph is made for, the smallest first."""
    if tower == "text":
        longest = min(CAPTURED_TOKENS, manifest.tokenizer.max_length)
        return tuple((1, length) for length in range(_SHORTEST_TEXT, longest + 1))
    size = manifest.image.size_px
    return tuple((count, size, size, 3) for count in CAPTURED_IMAGES)


def texts_at_once(length: int) -> int:
    """How many texts of `length` tokens a GPU is given at once: as many as fit GPU_TOKEN_BUDGET, at least one."""
    return max(1, GPU_TOKEN_BUDGET // max(length, _FEWEST_TOKENS))


def most_rows(tower: TowerName) -> int:
    """The most inputs in a batch, whatever their length."""
    return texts_at_once(_SHORTEST_TEXT) if tower == "text" else GPU_IMAGES_AT_ONCE


def texts_in_profile(length: int, manifest: Manifest) -> int:
    """How many texts of `length` tokens fit TensorRT's profile for that length.

    TensorRT reserves memory for a profile's largest shape, so the budget is shared by its longest texts.
    """
    longest = next(edge for edge in _profile_edges(manifest) if length <= edge)
    return texts_at_once(longest)


def profile_shapes(tower: TowerName, manifest: Manifest) -> Profiles:
    """The profiles that a TensorRT engine is built with; every batch that the plans above make fits one.

    Best at what a query is: one text of 16 tokens, one image; else at the largest of the bucket.
    """
    if tower == "vision":
        size = manifest.image.size_px
        pixels = (size, size, 3)
        return Profiles(
            min=((1, *pixels), (2, *pixels)),
            opt=((1, *pixels), (GPU_IMAGES_AT_ONCE, *pixels)),
            max=((1, *pixels), (GPU_IMAGES_AT_ONCE, *pixels)),
        )
    edges = _profile_edges(manifest)
    shortest = (_SHORTEST_TEXT, *(edge + 1 for edge in edges[:-1]))
    return Profiles(
        min=tuple((1, length) for length in shortest),
        opt=((1, min(16, edges[0])), *((1, edge) for edge in edges[1:])),
        max=tuple((texts_at_once(edge), edge) for edge in edges),
    )


def _profile_edges(manifest: Manifest) -> tuple[int, ...]:
    limit = manifest.tokenizer.max_length
    return (*(edge for edge in _PROFILE_TOKENS if edge < limit), limit)
