"""A torch tower in, an ONNX graph out, by torch's exporter.

The trace is the same for every target: plain ONNX, plus one node of the domain `edgeclip` for each
attention and each rotation. What becomes of those is `edgeclip_graph.passes`' work.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping

import onnx_ir as ir
import onnxscript  # noqa: F401 - torch's exporter needs it, and would miss it only once the weights are read
import torch
from torch import Tensor, nn

from edgeclip.errors import BuildError

OPSET = 23

_SHOWN_CHARACTERS = 200


def trace(
    tower: nn.Module, example: Tensor, *, input_name: str, output_name: str, dynamic: Mapping[int, str]
) -> ir.Model:
    """Trace `tower(example)`; `dynamic` names the axes of the input that may vary.

    The graph's weights are the tower's own tensors, not copies.
    """
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                tower,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[input_name],
                output_names=[output_name],
                dynamic_shapes=(dict(dynamic),),
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        first = _first_cause(error)
        if isinstance(first, KeyboardInterrupt):  # Ctrl-C while the exporter caught everything
            raise first from error
        words = " ".join(str(first).split())[:_SHOWN_CHARACTERS]
        raise BuildError(f"tracing {type(tower).__name__} failed: {type(first).__name__}: {words}") from error
    assert program is not None
    for node in program.model.graph:
        if node.domain not in ("", "edgeclip"):
            raise BuildError(f"tracing {type(tower).__name__} left a node {node.domain}::{node.op_type}")
    return program.model


def _first_cause(error: BaseException) -> BaseException:
    """What went wrong first: the exporter's own message is a banner."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks: torchvision is not installed, and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
