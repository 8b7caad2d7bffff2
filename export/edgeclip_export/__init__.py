"""Checkpoint in, bundle out: torch towers, their ONNX graphs, and the proof that they agree.

`export_checkpoint` is the whole way. The modules behind it, in the order a checkpoint passes them:
`hub`, `checkpoint`, `jina_clip` (configuration, names of weights, folding, towers), `tracing`, `passes`, `bundle`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeclip.host.installation import missing_package
from edgeclip.manifest import Manifest, Target


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    target: Target = "cpu",
    revision: str | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Manifest:
    """Write the bundle of a checkpoint (a folder, or a Hub id with an optional revision) to `out`.

    `progress(what, done, total)` is called often. A CheckpointWarning says which wrappers in names were left out, and
    that LoRA was merged already. Raises BuildError, with nothing left at `out`, when
    the checkpoint is not as it should be, the graphs do not answer as the torch towers do, or `out`
    exists or cannot be written; MissingExtraError when the extra `export`, or an onnxruntime, is missing.
    """
    try:
        from edgeclip_export.export import export
    except ModuleNotFoundError as error:
        raise missing_package(error, "export") from error

    return export(str(checkpoint), Path(out), target, revision, progress or (lambda what, done, total: None))


def jina_clip_tensor_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a checkpoint with this (parsed) config.json."""
    from edgeclip_export.families.jina_clip.config import parse_config
    from edgeclip_export.families.jina_clip.tensors import tensor_shapes

    return tensor_shapes(parse_config(config))


__all__ = ["export_checkpoint", "jina_clip_tensor_shapes"]
