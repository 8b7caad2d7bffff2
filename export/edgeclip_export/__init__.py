"""Checkpoint in, bundle out: torch towers, their ONNX graphs, and the proof that they agree.

`export_checkpoint` is the whole way. The modules behind it, in the order a checkpoint passes them:
`hub`, `opening`, `families` (configuration, names of weights, folding, plans of graphs), `reference`, `tracing`,
`edgeclip_graph.passes`, `bundle`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.host.installation import missing_package
from edgeclip.manifest import Manifest, Target

if TYPE_CHECKING:
    from edgeclip_graph.narrowing import Narrow


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    target: Target = "cpu",
    revision: str | None = None,
    task: str | None = None,
    narrow: "Narrow | None" = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Write the bundle of a checkpoint (a folder, or a Hub id with an optional revision) to `out`.

    `task` is for models with an adapter for each task: that adapter is merged, and the bundle has this task alone.
    Without it, all adapters are in the bundle, one is chosen for each call.

    `narrow` writes the graphs for the CPU with fewer bits at once (`edgeclip_quant.narrow_without_data`); None: fp32.

    `progress(what, done, total)` is called often; once `what` is "found " and the checkpoint's layout, and once
    "needs " and the bytes on disk. A CheckpointWarning says which wrappers in names were left out, and that LoRA was
    merged already. Raises BuildError, with nothing left at `out`, when the checkpoint is not as it should be, the
    graphs do not answer as the torch towers do (narrowed ones as nearly as they must), or `out` exists or cannot be
    written; MissingExtraError when a package of the extra `export`, or an onnxruntime, is missing.
    """
    report = progress or (lambda what, done, total: None)
    try:
        import onnxruntime  # noqa: F401 - its absence is said before the work

        from edgeclip_export.export import export

        return export(str(checkpoint), Path(out), target, revision, task, narrow, report)
    except ModuleNotFoundError as error:  # a family's own modules are imported when its checkpoint is opened
        raise missing_package(error, "export") from error


def tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint, in the official layout, with this (parsed) config.json.

    Raises BuildError for the config.json of a model that cannot be exported.
    """
    from edgeclip_export.families import find_family

    return find_family(config).tensor_shapes(config)


__all__ = ["export_checkpoint", "tensor_shapes"]
