"""Predict how much memory a bundle's graphs take on the CPU, from the sizes of their weights, without opening them.

onnxruntime copies the right operand of most products into a layout of its own when a session is opened; these copies
are memory of the process alone. Other weights (token tables, products that are laid out to be read in place, and all
that `edgeclip prepack` packed) are read from the mapped file, whose pages the kernel may drop. So a graph needs the
bytes of the copied weights, the values between its nodes for a short text or one image, and some for the process.

The constants were measured with onnxruntime 1.31 on x86-64; docs/memory.md has the predictions beside the smallest
limits under which bundles answered.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgeclip.engine.prepack.packed_weights import WORTH_SHARE
from edgeclip.engine.protobuf import Field, all_values, read_fields, read_text, read_varint
from edgeclip.manifest import FIRST_GRAPH, ImageFacts, Manifest, PatchFacts

# Python, numpy, onnxruntime and edgeclip: memory of the process alone, and the pages of libraries and weights without
# which it would read the same pages from the disk again and again.
PROCESS_BYTES, HOT_FILE_BYTES = 36_000_000, 26_000_000
# The same, as `ulimit -d` and `ulimit -v` count it: with stacks, heaps and libraries that are not in memory.
PROCESS_DATA, PROCESS_ADDRESSES = 118_000_000, 218_000_000
# What the service's server, starlette, Pillow and their threads add to it.
SERVICE_BYTES, SERVICE_ADDRESSES = 50_000_000, 500_000_000
# The heaps that malloc reserves for the threads that load a graph and tokenise: data, and addresses.
HEAP_DATA, HEAP_ADDRESSES = 40_000_000, 300_000_000
# The fewest addresses that a session takes beside its weights: a heap or a thread's stack.
SURE_ADDRESSES = 16_000_000
# A parsed tokenizer beside its file: 118 MB for 8.7 MB of Unigram, 4 for 0.5 of WordPiece, 100 for 5 of BPE.
_TOKENIZER_FACTOR, _MERGING_FACTOR, _SURE_TOKENIZER_FACTOR = 13.6, 22.0, 8.0
# A session beside its graph's file without weights: 13 MB for 106 kB.
_SESSION_BYTES, _SESSION_FACTOR = 6_000_000, 60
# The numbers between two nodes that live at once for a token, in the arena: so many times the widest layer's outputs
# (100 MB for the 1,297 tokens of an image of jina-clip-v2, whose widest layer has 2,730).
_LIVE_LAYERS = 7.0
_SHORT_TEXT_TOKENS = 64
# The longest text of a self-test, and the numbers that live at once for a pair of its tokens where attention is
# computed in blocks with a bias (ALiBi): 312 MB in all for 1294 tokens of jina-clip-v1.
_LONG_TEXT_TOKENS, _SCORES = 1400, 14
# The patch of an image in pixels where the manifest does not say it, from the smallest that a family has.
_PATCH_PX = 14
# Operators whose constant weight is copied, by the place of the weight among their inputs; and how often the scales
# of blocks are stored beside them.
_COPIED: Mapping[str, int] = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat"), 1),
    **dict.fromkeys(("DynamicQuantizeMatMul", "MatMulNBits", "Attention", "QAttention"), 1),
}
_BLOCKED, _SCALES, _SCALE_COPIES = "MatMulNBits", 2, 2
# A right operand of three dimensions is read in place (`edgeclip_graph.passes.gemm`).
_MATRIX = 2
# onnx.proto's fields (`edgeclip.engine.protobuf`).
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER = 7, 1, 5
_NODE_INPUT, _NODE_TYPE, _NODE_ATTRIBUTE, _ATTRIBUTE_GRAPH = 1, 4, 5, 6
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _KEY, _VALUE = 1, 8, 9, 13, 1, 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNeed:
    """Bytes that a graph takes: copies of weights, what else its session and one input take, and its mapped files.

    `long_text_bytes` are what the longest text of the self-test takes, and gives back afterwards.
    """

    copied_bytes: int
    work_bytes: int
    mapped_bytes: int
    long_text_bytes: int = 0

    @property
    def private_bytes(self) -> int:
        """Memory of the process alone, which the kernel cannot drop."""
        return self.copied_bytes + self.work_bytes

    @property
    def in_place_bytes(self) -> int:
        """Weights that are read from the mapped file."""
        return max(0, self.mapped_bytes - self.copied_bytes)

    @property
    def is_worth_packing(self) -> bool:
        """Whether `edgeclip prepack` keeps packed weights of the graph."""
        return self.copied_bytes >= WORTH_SHARE * (self.copied_bytes + self.mapped_bytes)


def read_need(
    folder: Path, manifest: Manifest, graph: str, *, packed_bytes: int | None = None, follows: bool = False
) -> GraphNeed:
    """The need of a graph of the bundle in `folder`, with `packed_bytes` of packed weights if it has some.

    A graph that `follows` an image's computes its tokens, too.

    Where the graph's file cannot be read, all its weights count as copied: opening it says what is wrong.
    """
    facts = manifest.graphs[graph]
    weights = sum(file.size_bytes for file in manifest.files if file.name.startswith(f"{facts.file}_"))
    try:
        model = (folder / facts.file).read_bytes()
        copied, widest = _copied(model)
    except (OSError, ValueError, IndexError):
        model, copied, widest = b"", [weights], 0
    session = _SESSION_BYTES + _SESSION_FACTOR * len(model)
    work = session + int(4 * _LIVE_LAYERS * widest * _tokens(manifest, graph, follows=follows))
    long = 0
    if graph == FIRST_GRAPH["text"]:
        scores = _SCORES * _LONG_TEXT_TOKENS if "Loop" in facts.operators else 0
        long = int(4 * _LONG_TEXT_TOKENS * (_LIVE_LAYERS * widest + scores))
    if packed_bytes is not None:  # each weight is packed once more, compared and dropped
        copied, weights = [max(copied, default=0)], packed_bytes
    return GraphNeed(copied_bytes=sum(copied), work_bytes=work, mapped_bytes=weights, long_text_bytes=long)


def tokenizer_bytes(manifest: Manifest, folder: Path | None = None) -> int:
    """The bytes of the parsed tokenizer of the bundle in `folder`; without it the fewest of one of its size."""
    if manifest.text is None:
        return 0
    factor = _SURE_TOKENIZER_FACTOR
    if folder is not None:
        factor = _MERGING_FACTOR if _merges(folder / manifest.text.file) else _TOKENIZER_FACTOR
    return int(factor * manifest.file(manifest.text.file).size_bytes)


def _merges(path: Path) -> bool:
    """Whether a tokenizer merges pairs of pieces (BPE), of which it keeps a table."""
    try:
        return b'"merges"' in path.read_bytes()
    except OSError:
        return False


def _tokens(manifest: Manifest, graph: str, *, follows: bool) -> int:
    """The tokens of what is counted on: a short text, or one image as large as the model takes it."""
    image = manifest.image
    is_first = graph == FIRST_GRAPH["image"]
    if isinstance(image, PatchFacts) and (is_first or follows):
        pixels = image.max_pixels // (1 if is_first else image.merge**2)
        return pixels // image.patch_px**2 + _SHORT_TEXT_TOKENS
    if isinstance(image, ImageFacts) and is_first:
        return (image.size_px // _PATCH_PX) ** 2 + 1
    return _SHORT_TEXT_TOKENS


def _copied(model: bytes) -> tuple[list[int], int]:
    """The bytes of each copy of a weight that a session of the graph makes, and the outputs of the widest layer."""
    graph = next(iter(all_values(list(read_fields(model)), _MODEL_GRAPH)), b"")
    weights: dict[str, tuple[int, tuple[int, ...]]] = {}
    copies, widest = [], 0
    for operator, inputs in _nodes(graph, weights):
        place = _COPIED.get(operator)
        if place is None or len(inputs) <= place or inputs[place] not in weights:
            continue
        size, shape = weights[inputs[place]]
        if operator == _BLOCKED:
            scales = weights.get(inputs[_SCALES], (0, ()))[0] if len(inputs) > _SCALES else 0
            copies.append(size + _SCALE_COPIES * scales)
            widest = max(widest, shape[0])
        elif len(shape) == _MATRIX:
            copies.append(size)
            widest = max(widest, shape[-1])
    return copies, widest


def _nodes(graph: bytes, weights: dict[str, tuple[int, tuple[int, ...]]]) -> Iterator[tuple[str, list[str]]]:
    """The operator and the inputs of each node, those of graphs inside the graph among them.

    `weights` gets the size and the shape of every weight that lies beside the graph.
    """
    fields = list(read_fields(graph))
    for tensor in all_values(fields, _GRAPH_INITIALIZER):
        parts = list(read_fields(tensor))
        pairs = [list(read_fields(value)) for value in all_values(parts, _TENSOR_EXTERNAL)]
        length = next((read_text(pair, _VALUE) for pair in pairs if read_text(pair, _KEY) == "length"), None)
        size = int(length) if length else sum(map(len, all_values(parts, _TENSOR_RAW)))
        weights[read_text(parts, _TENSOR_NAME)] = size, _shape(parts)
    for node in all_values(fields, _GRAPH_NODE):
        parts = list(read_fields(node))
        yield read_text(parts, _NODE_TYPE), [value.decode() for value in all_values(parts, _NODE_INPUT)]
        for attribute in all_values(parts, _NODE_ATTRIBUTE):
            for inner in all_values(list(read_fields(attribute)), _ATTRIBUTE_GRAPH):
                yield from _nodes(inner, weights)


def _shape(tensor: list[Field]) -> tuple[int, ...]:
    """A tensor's dimensions, which are written as numbers one by one or all in one field."""
    dims = []
    for value in all_values(tensor, _TENSOR_DIMS):
        at = 0
        while at < len(value):
            dim, at = read_varint(value, at)
            dims.append(dim)
    return tuple(dims)
