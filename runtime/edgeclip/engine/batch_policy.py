"""The one place that decides batch sizes, the shapes that CUDA graphs are captured for, and TensorRT's profiles.

The encoder, the service's queues, the Triton export and the benchmarks ask this module, so no batch lies outside of
the shapes that an engine was built for. All functions are pure: nothing here runs a graph.

Only items of one kind share a batch: of one graph, with one adapter, and of one shape. Nothing is padded, so no mask
is computed, and the other texts of a batch change a text's vector by no more than the order of a sum. A bigger batch
is not faster once the matrix products have enough rows, and costs memory, so texts are counted in tokens.

A short text on a GPU is launch bound: its 24 layers are some 300 kernels of a few microseconds each, and starting
them one by one takes longer than running them. A CUDA graph starts all of them at once, but only for one shape. So
single texts of up to CAPTURED_TOKENS tokens get a CUDA graph for each length, and so do a few sizes of image batches;
all other shapes run kernel by kernel. This set of shapes is finite, so no CUDA graph is ever evicted.

The GPU's numbers were chosen by reasoning, not measured: `bench/gpu_check.sh` measures them.
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.manifest import FIRST_GRAPH, ImageFacts, Manifest, PatchFacts, Space

Shape = tuple[int, ...]
# "throughput": all inputs are there. "latency": others wait for the batch that runs. "uniform": a batcher that has
# one number for inputs of every length, as Triton's.
Purpose = Literal["throughput", "latency", "uniform"]

# Texts of 16 tokens at full size on two cores: 574 tokens a second with 256 at once, 595 with 1024
# (bench/results/cpu_full_size.json).
CPU_TOKENS, _CPU_LATENCY_TOKENS = 1024, 256
# One image is 1297 tokens, so a batch of them gains nothing on a CPU and costs memory.
CPU_IMAGES = 1
# 16384 rows fill every tensor core's tile many times over, and their activations (about 20 kB a token at fp16) stay
# below half a gigabyte.
GPU_TOKENS = 16_384
# Images of 1297 tokens each: 32 are 41504 rows. A larger batch is quicker on no device, whatever batch_size says.
MOST_IMAGES = 32
_GPU_LATENCY_IMAGES = 16
# A batch of shorter texts than this many tokens has no more rows on a GPU than texts of this many would.
_FEWEST_TOKENS = 16
# TensorRT reserves memory for the largest shape of a profile, here 8 texts of 8192 tokens.
_UNIFORM_TEXTS = {"cpu": 16, "cuda": 64, "tensorrt": 8}
_UNIFORM_IMAGES = {"cpu": 4, "cuda": MOST_IMAGES, "tensorrt": MOST_IMAGES}
# The longest text of each TensorRT profile; the model's limit ends the last one.
_PROFILE_TOKENS = (64, 512)
# A longer text occupies a CPU for the time of many batches, so the service runs it in a thread of its own. One run
# fills a GPU and takes some tens of milliseconds there, so all texts share one queue.
_CPU_LONG_TOKENS = 512
# The special tokens alone.
_SHORTEST_TEXT = 2
# Texts up to this length, alone, get a CUDA graph.
CAPTURED_TOKENS = 64
# Batches of so many images get a CUDA graph.
CAPTURED_IMAGES = (1, 8, MOST_IMAGES)


class Kind(NamedTuple):
    """A kind of items: only items of the same kind share a batch. `cost` is `Item.tokens`.

    `is_handed_on` says that they are what another graph gave.
    """

    cost: int
    graph: str = ""
    adapter: str | None = None
    alike: Hashable = ()
    space: Space = "single"
    is_handed_on: bool = False


def kind_of(item: Item, space: Space = "single", *, is_handed_on: bool = False) -> Kind:
    """The kind of an item whose vectors are wanted in a space."""
    return Kind(max(1, item.tokens), item.graph, item.adapter, item.alike, space, is_handed_on)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """TensorRT's optimisation profiles of one input: the i-th is min[i], opt[i], max[i]."""

    min: tuple[Shape, ...]
    opt: tuple[Shape, ...]
    max: tuple[Shape, ...]

    def options(self, input_name: str) -> dict[str, str]:
        """onnxruntime's trt_profile_*_shapes, each as "name:1x2,name:1x65"."""
        ends = {"min": self.min, "opt": self.opt, "max": self.max}
        return {
            f"trt_profile_{end}_shapes": ",".join(f"{input_name}:{'x'.join(map(str, shape))}" for shape in shapes)
            for end, shapes in ends.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchPolicy:
    """The largest batches of a device and a bundle, and how items are divided into them. `BatchPolicy.choose` makes
    one.

    A batch of texts has at most `tokens` tokens (one longer text forms a batch alone) and at most `texts` texts; a
    batch of images has at most `images` images, with `counts_patches` also at most `tokens` patches. A text of less
    than `fewest_tokens` counts as `fewest_tokens`. `profile_tokens` are the longest texts of TensorRT's profiles,
    empty on other devices. Texts of more than `long_tokens` tokens are run by a thread of their own; None: there is
    no such thread. `max_batch` can lower every one of these numbers and raises none.
    """

    tokens: int
    images: int
    fewest_tokens: int = 1
    texts: int | None = None
    profile_tokens: tuple[int, ...] = ()
    long_tokens: int | None = None
    size_px: int = 0
    counts_patches: bool = False
    max_batch: int | None = None

    def __post_init__(self) -> None:
        counts = (self.tokens, self.images, self.fewest_tokens, self.texts, self.max_batch)
        if any(count is not None and count < 1 for count in counts):
            raise InputError(f"{self}: wanted every size to be 1 or more")

    @classmethod
    def choose(cls, kind: str, manifest: Manifest, purpose: Purpose, *, max_batch: int | None = None) -> Self:
        """The policy for a kind of device, as in `Device.kind`; every kind but CUDA and TensorRT counts as a CPU."""
        is_gpu = kind in ("cuda", "tensorrt")
        limit = manifest.text.max_length if manifest.text else _SHORTEST_TEXT
        is_profiled = all(has_lone_input(manifest, graph) for graph in manifest.graphs)
        sized = kind if is_gpu else "cpu"
        if is_gpu:
            tokens, images = GPU_TOKENS, _GPU_LATENCY_IMAGES if purpose == "latency" else MOST_IMAGES
        else:
            tokens, images = _CPU_LATENCY_TOKENS if purpose == "latency" else CPU_TOKENS, CPU_IMAGES
        return cls(
            tokens=tokens,
            images=_UNIFORM_IMAGES[sized] if purpose == "uniform" else images,
            fewest_tokens=_FEWEST_TOKENS if is_gpu else 1,
            texts=_UNIFORM_TEXTS[sized] if purpose == "uniform" else None,
            profile_tokens=_profile_tokens(limit) if kind == "tensorrt" and is_profiled else (),
            long_tokens=_CPU_LONG_TOKENS if kind == "cpu" and purpose == "latency" else None,
            size_px=manifest.image.size_px if isinstance(manifest.image, ImageFacts) else 0,
            counts_patches=isinstance(manifest.image, PatchFacts),
            max_batch=max_batch,
        )

    def rows(self, kind: Kind) -> int:
        """The most items in a batch of a kind; InputError for a text outside of every profile.

        With TensorRT all texts of a profile have the same limit, because memory is reserved for the longest one.
        """
        if kind.graph == FIRST_GRAPH["image"]:
            most = min(self.images, self._fitting_images(kind))
        elif self.texts is not None:
            most = self.texts
        else:
            most = max(1, self.tokens // max(self._longest_like(kind.cost), self.fewest_tokens))
        return min(most, self.max_batch or most)

    def plan(self, items: Sequence[Item], batch_size: int | None = None) -> Iterator[tuple[int, ...]]:
        """Divide items into batches of one kind each, by index; the costliest kind comes first, so that a lack of
        memory shows at once.

        `batch_size` can lower the size of a batch; for images it replaces that, up to MOST_IMAGES.
        """
        groups: dict[Kind, list[int]] = {}
        for index, item in enumerate(items):
            groups.setdefault(kind_of(item), []).append(index)
        for kind, members in sorted(groups.items(), key=lambda group: -group[0].cost):
            size = min(batch_size or self.rows(kind), self._most(kind))
            for start in range(0, len(members), size):
                yield tuple(members[start : start + size])

    def plan_images(self, count: int, batch_size: int | None = None) -> Iterator[range]:
        """Divide images of one size into batches of consecutive indices, `images` each; `batch_size` replaces that,
        up to MOST_IMAGES.
        """
        kind = Kind(1, FIRST_GRAPH["image"])
        size = min(batch_size or self.rows(kind), self._most(kind))
        for start in range(0, count, size):
            yield range(start, min(start + size, count))

    def parts(self, graph: str, shape: Shape) -> list[slice]:
        """Divide a batch that a caller formed, of ids (B, T) or pixels (B, S, S, 3), into parts that each fit a
        profile of the graph.

        One part where there are no profiles. InputError for inputs that fit no profile.
        """
        if not self.profile_tokens:
            return [slice(0, shape[0])]
        is_image = graph == FIRST_GRAPH["image"]
        if is_image and shape[1:] == (self.size_px, self.size_px, 3):
            step = self.images
        elif not is_image and len(shape) == 2:
            self._longest_like(shape[1])
            step = self.rows(Kind(shape[1], graph))
        else:
            wanted = f"pixels (B, {self.size_px}, {self.size_px}, 3)" if is_image else "ids (B, T)"
            raise InputError(f"found a batch of shape {shape}, wanted {wanted}; the engine takes nothing else")
        return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]

    def profiles(self, graph: str) -> Profiles | None:
        """The profiles that a graph's TensorRT engine is built with; None on other devices.

        Every batch of this policy fits one.

        The optimum of the first is a query (one text of 16 tokens, one image), that of the others the profile's
        largest shape.
        """
        edges = self.profile_tokens
        if not edges:
            return None
        if graph == FIRST_GRAPH["image"]:
            pixels = (self.size_px, self.size_px, 3)
            one, most = (1, *pixels), (self.images, *pixels)
            return Profiles(min=(one, (2, *pixels)), opt=(one, most), max=(one, most))
        shortest = (_SHORTEST_TEXT, *(edge + 1 for edge in edges[:-1]))
        return Profiles(
            min=tuple((1, length) for length in shortest),
            opt=((1, min(16, edges[0])), *((1, edge) for edge in edges[1:])),
            max=tuple((self.rows(Kind(edge, graph)), edge) for edge in edges),
        )

    def _most(self, kind: Kind) -> int:
        """The most items in a batch of a kind, whatever size a caller wants."""
        if kind.graph == FIRST_GRAPH["image"]:
            return min(MOST_IMAGES, self._fitting_images(kind), self.max_batch or MOST_IMAGES)
        return self.rows(kind)

    def _fitting_images(self, kind: Kind) -> int:
        """The most images whose patches a batch has room for."""
        return max(1, self.tokens // kind.cost) if self.counts_patches else MOST_IMAGES

    def _longest_like(self, length: int) -> int:
        """The longest text of the profile that holds a text of `length` tokens; `length` itself without profiles."""
        if not self.profile_tokens:
            return length
        longest = next((edge for edge in self.profile_tokens if _SHORTEST_TEXT <= length <= edge), None)
        if longest is None:
            wanted = f"{_SHORTEST_TEXT} to {self.profile_tokens[-1]}"
            raise InputError(f"found a text of {length} tokens, wanted {wanted}; the TensorRT engine takes no other")
        return longest


def _profile_tokens(limit: int) -> tuple[int, ...]:
    return (*(edge for edge in _PROFILE_TOKENS if edge < limit), limit)


def has_lone_input(manifest: Manifest, graph: str) -> bool:
    """Whether each call feeds a graph one array, so that its shape says how large a batch is.

    For graphs of several there are no TensorRT profiles and no buffers that are bound on CUDA: TensorRT builds an
    engine for each shape that comes, and on CUDA onnxruntime copies the arrays of each call by itself. Adapters are
    held on the GPU (`edgeclip.engine.cuda.held_adapters`).
    """
    return len(manifest.graphs[graph].inputs) == 1


def is_oversized(graph: str, shape: Shape) -> bool:
    """Whether a batch is larger than the default batches of a CPU: a long text, or a batch formed by the caller.

    `shape` is (B, T) of ids, (B, S, S, 3) of pixels or (B, P, values) of patches. The memory that such a batch takes
    is freed after it.
    """
    if graph == FIRST_GRAPH["image"] and not _is_patches(shape):
        return shape[0] > CPU_IMAGES
    return math.prod(shape[:2]) > CPU_TOKENS


def _is_patches(shape: Shape) -> bool:
    """Whether a batch of images is one of patches, (B, P, values), and not of pixels (B, S, S, 3)."""
    return len(shape) == 3


def is_captured(graph: str, shape: Shape) -> bool:
    """Whether inputs of this shape, ids (B, T) or pixels (B, S, S, 3), are run by a CUDA graph; patches are not."""
    if graph == FIRST_GRAPH["image"]:
        return shape[0] in CAPTURED_IMAGES and not _is_patches(shape)
    return shape[0] == 1 and shape[1] <= CAPTURED_TOKENS


def slot_rows(graph: str) -> int:
    """The most inputs of a batch on CUDA, whatever their length: the rows that a slot of `bound_runs` must hold."""
    return MOST_IMAGES if graph == FIRST_GRAPH["image"] else GPU_TOKENS // _FEWEST_TOKENS
