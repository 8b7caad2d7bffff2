"""Move a written graph's weights to the beginning of pages, because onnxruntime's matrix products need aligned
copies.

onnxruntime aligns only tensors larger than 1 MiB when it writes packed weights, and the rest follow one after the
other (ModelSavingOptions::align_threshold). An fp32 product reads them with aligned instructions, and the process
dies when they are mapped from there (onnxruntime 1.31, SIGSEGV on AVX-512). Delete this module when onnxruntime
aligns all of them.
"""

from pathlib import Path
from typing import BinaryIO

from edgeclip.engine.protobuf import all_values, encode_bytes, read_fields, read_text

PAGE_BYTES = 4096
# onnx.proto's fields (`edgeclip.engine.protobuf`).
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_EXTERNAL, _KEY, _VALUE = 7, 5, 13, 1, 2
_COPY = "prepacked_"
_BLOCK_BYTES = 8 << 20


def align_weights(graph: Path, weights: Path) -> None:
    """Move every weight and packed copy to the beginning of a page, in files that replace the old ones.

    `weights` is the one file that holds the graph's weights. Raises ValueError for a graph that is not as onnxruntime
    writes it, OSError.
    """
    model = graph.read_bytes()
    moved = weights.with_name(f"{weights.name}.moved")
    with weights.open("rb") as old, moved.open("wb") as new:
        mover = _Mover(old, new)
        parts = []
        for field in read_fields(model):
            is_graph = field.number == _MODEL_GRAPH
            parts.append(encode_bytes(_MODEL_GRAPH, mover.move_graph(field.value)) if is_graph else field.whole)
    if mover.moved != model.count(weights.name.encode()):  # as those of a graph inside the graph
        raise ValueError(f"{graph.name}: {mover.moved} weights were found, it names {weights.name} more often")
    moved.replace(weights)
    graph.write_bytes(b"".join(parts))


class _Mover:
    """Copies from one file of weights to another, and changes the places that the graph names."""

    def __init__(self, old: BinaryIO, new: BinaryIO) -> None:
        self._old, self._new = old, new
        self.moved = 0

    def move_graph(self, graph: bytes) -> bytes:
        parts = []
        for field in read_fields(graph):
            is_weight = field.number == _GRAPH_INITIALIZER
            parts.append(
                encode_bytes(_GRAPH_INITIALIZER, self._move_weight(field.value)) if is_weight else field.whole
            )
        return b"".join(parts)

    def _move_weight(self, tensor: bytes) -> bytes:
        fields = list(read_fields(tensor))
        pairs = [list(read_fields(value)) for value in all_values(fields, _TENSOR_EXTERNAL)]
        if not pairs:
            return tensor
        entries = {read_text(pair, _KEY): read_text(pair, _VALUE) for pair in pairs}
        self.moved += 1
        entries["offset"] = str(self._move(int(entries["offset"]), int(entries["length"])))
        for name in entries:
            if name.startswith(_COPY):
                entries[name] = self._move_copies(entries[name])
        kept = b"".join(field.whole for field in fields if field.number != _TENSOR_EXTERNAL)
        return kept + b"".join(
            encode_bytes(_TENSOR_EXTERNAL, encode_bytes(_KEY, key.encode()) + encode_bytes(_VALUE, value.encode()))
            for key, value in entries.items()
        )

    def _move_copies(self, entry: str) -> str:
        """`kernel+hash|offset;bytes;checksum`, more of them by |."""
        key, *buffers = entry.split("|")
        for index, buffer in enumerate(buffers):
            offset, size, *rest = buffer.split(";")
            buffers[index] = ";".join((str(self._move(int(offset), int(size))), size, *rest))
        return "|".join((key, *buffers))

    def _move(self, offset: int, size: int) -> int:
        begin = -(-self._new.tell() // PAGE_BYTES) * PAGE_BYTES
        self._new.write(bytes(begin - self._new.tell()))
        self._old.seek(offset)
        left = size
        while left:
            block = self._old.read(min(left, _BLOCK_BYTES))
            if not block:
                raise ValueError(f"the file of weights ends {left} bytes early")
            self._new.write(block)
            left -= len(block)
        return begin
