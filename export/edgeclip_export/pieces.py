"""Running a written graph with the weights of a few layers in memory, however many it has.

A large graph is cut into pieces, each a model of its own over the same file of weights. What a piece gives that later
pieces take is kept. The nodes are the same as in one session; only what onnxruntime would fuse across a cut is not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from numpy.typing import NDArray

from edgeclip.engine.devices import Device, usable_cpus
from edgeclip.engine.ort import start_session
from edgeclip.engine.products import adds_in_16_bits
from edgeclip.engine.providers import Plan, plan_session
from edgeclip_export.adapters import Feed, Later
from edgeclip_export.families.family import Arrays, Progress

# The bytes of weights that a piece has at most, unless one node has more. A session keeps a second copy of some.
MOST_BYTES = 192 << 20

# Threads that wait do not spin: between the pieces they would wait for long.
_NO_SPINNING = ("session.intra_op.allow_spinning", "0")

_State = dict[str, NDArray[Any] | Later]


def run_in_pieces(
    path: Path, feeds: Sequence[Feed], what: str, progress: Progress, *, most_bytes: int = MOST_BYTES
) -> list[Arrays]:
    """What the graph gives for each feed, by the names of its outputs. Raises what onnxruntime raises.

    A graph with a choice (If) is run as a whole, and so is one whose weights are at most `most_bytes`.
    """
    graph = ir.load(path).graph
    nodes, wanted = list(graph), [str(value.name) for value in graph.outputs]
    pieces = list(_cut(nodes, most_bytes))
    # As the runtime does: integer products that would overflow on this processor are guarded.
    plan = plan_session(Device(kind="cpu"), "fp32", threads=usable_cpus(), adds_in_16_bits=adds_in_16_bits())
    if len(pieces) == 1 or any(node.op_type == "If" for node in nodes):
        session = start_session(path, plan=plan)
        found: list[Arrays] = []
        for done, feed in enumerate(feeds):
            progress(what, done, len(feeds))
            found.append(dict(zip(wanted, session.run(wanted, _read(feed)), strict=True)))
        return found
    plan = replace(plan, entries=(*plan.entries, _NO_SPINNING))
    states: list[_State] = [dict(feed) for feed in feeds]
    for number, piece in enumerate(pieces):
        progress(what, number, len(pieces))
        later = {value for node in nodes[piece.stop :] for value in node.inputs if value} | set(graph.outputs)
        _run_piece(path, graph, nodes[piece.start : piece.stop], later, states, plan)
        kept = {str(value.name) for value in later}
        states = [{name: array for name, array in state.items() if name in kept} for state in states]
    return [_read({name: state[name] for name in wanted}) for state in states]


def _cut(nodes: Sequence[ir.Node], most_bytes: int) -> Iterator[range]:
    """Consecutive nodes whose new weights together are at most so many bytes."""
    start, size = 0, 0
    for index, node in enumerate(nodes):
        own = sum(_bytes(value) for value in node.inputs if value is not None)
        if index > start and size + own > most_bytes:
            yield range(start, index)
            start, size = index, 0
        size += own
    yield range(start, len(nodes))


def _read(feed: Feed) -> dict[str, NDArray[Any]]:
    return {name: array.read() if isinstance(array, Later) else array for name, array in feed.items()}


def _bytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.is_initializer() and value.const_value is not None else 0


def _run_piece(
    path: Path, graph: ir.Graph, nodes: Sequence[ir.Node], later: set[ir.Value], states: Sequence[_State], plan: Plan
) -> None:
    """Add to each of the states what the nodes give that is needed later."""
    made = {value for node in nodes for value in node.outputs}
    taken = [value for node in nodes for value in node.inputs if value and value not in made]
    inputs = dict.fromkeys(str(value.name) for value in taken if not value.is_initializer())
    outputs = sorted(str(value.name) for value in made & later)
    piece = ir.convenience.extract(graph, list(inputs), outputs)
    for value in piece.inputs:
        (array,) = _read({"": states[0][str(value.name)]}).values()
        value.dtype, value.shape = ir.DataType.from_numpy(array.dtype), ir.Shape([None] * array.ndim)
    file = path.with_name(f"{path.stem}.piece.onnx")
    try:
        ir.save(ir.Model(piece, ir_version=10), file)
        session = start_session(file, plan=plan)
    finally:
        file.unlink(missing_ok=True)
    for state in states:
        state.update(zip(outputs, session.run(outputs, _read({name: state[name] for name in inputs})), strict=True))
