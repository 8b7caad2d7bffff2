"""A plan in, an ONNX graph out, by torch's exporter and without the weights.

The tower is traced with tensors that hold nothing (FakeTensorMode), the exporter's optimisation runs while the
weights are not to be seen, and then each initializer is given the function that reads its weight. So a graph holds no
weight until it is written, and then one after the other.

The trace is the same for every target: plain ONNX, plus one node of the domain `edgeclip` for each
attention and each rotation. What becomes of those is `edgeclip_graph.passes`' work.
"""

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import onnxscript  # noqa: F401 - torch's exporter needs it, and would miss it only once the tower is traced
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from edgeclip.errors import BuildError
from edgeclip_export.families.family import GraphPlan
from edgeclip_export.towers.tower import Tower
from edgeclip_export.towers.weights import LazyWeight
from edgeclip_graph.lazy import InPieces, lazy

OPSET = 23

_SHOWN_CHARACTERS = 200


def trace(plan: GraphPlan) -> ir.Model:
    """Trace a plan's tower; the graph's weights are computed whenever they are read."""
    with FakeTensorMode(), _quiet():
        tower = plan.build().eval().requires_grad_(False)
        examples = tuple(torch.empty(example.shape, dtype=example.dtype) for example in plan.examples.values())
        program = _export(plan, tower, examples)
        assert program is not None
        weights = [value for name, value in program.model.graph.initializers.items() if name in plan.weights]
        for value in weights:
            value.const_value = None
        program.optimize()
    model = program.model
    for node in model.graph:
        if node.domain not in ("", "edgeclip"):
            raise BuildError(f"tracing the {plan.name} tower left a node {node.domain}::{node.op_type}")
    for value in weights:
        value.const_value = _tensor(str(value.name), plan.weights[str(value.name)])
    for value in model.graph.outputs:
        axes = plan.dynamic.get(str(value.name), {})
        assert value.shape is not None
        value.shape = ir.Shape([axes.get(axis, size) for axis, size in enumerate(value.shape)])
    return model


def _export(plan: GraphPlan, tower: Tower[Any], examples: tuple[torch.Tensor, ...]) -> torch.onnx.ONNXProgram | None:
    dynamic = [dict(plan.dynamic.get(name, {})) for name in plan.examples]
    named = sum(one.kind is not one.VAR_POSITIONAL for one in inspect.signature(tower.forward).parameters.values())
    shapes = (*dynamic[:named], tuple(dynamic[named:])) if dynamic[named:] else tuple(dynamic)
    try:
        with torch.no_grad():
            return torch.onnx.export(
                tower,
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(plan.examples),
                output_names=list(plan.outputs),
                dynamic_shapes=shapes,
                verbose=False,
                optimize=False,
            )
    except torch.onnx.OnnxExporterError as error:
        first = _first_cause(error)
        if isinstance(first, KeyboardInterrupt):  # Ctrl-C while the exporter caught everything
            raise first from error
        words = " ".join(str(first).split())[:_SHOWN_CHARACTERS]
        raise BuildError(f"tracing the {plan.name} tower failed: {type(first).__name__}: {words}") from error


def _tensor(name: str, weight: LazyWeight) -> ir.LazyTensor:
    if (table := weight.table) is not None:
        return InPieces(name, ir.DataType.FLOAT, weight.shape, lambda: (piece.numpy() for piece in table.pieces()))
    return lazy(name, ir.DataType.FLOAT, weight.shape, lambda: weight.read().numpy())


def _first_cause(error: BaseException) -> BaseException:
    """What went wrong first: the exporter's own message is a banner."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks on torchvision, which is not installed, on deprecations, and on weights that are not there."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
