"""Weights behind links, as DVC, git-annex, Nix and the Hub's cache lay them out.

onnxruntime refuses weights whose real folder is neither the graph's nor the real graph's (1.24 and later,
microsoft/onnxruntime #26776 and #27374), and all linked weights of a graph that is given as bytes, as for CUDA. Such
tools keep each file in a folder of its own. Mapped here and handed over, weights are read in place just the same: no
more anonymous memory than by path, measured with 1.31.1.
"""

import mmap
from pathlib import Path
from typing import Any


def give_linked_weights(options: Any, graph: Path) -> mmap.mmap | None:
    """Give a session's options the weights of a graph, if either is a link; None if neither, or without weights.

    What is returned must live as long as the session, which reads it in place.
    """
    weights = graph.with_name(f"{graph.name}_data")
    if not (graph.is_symlink() or weights.is_symlink()) or not weights.is_file():
        return None
    with weights.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    options.add_external_initializers_from_files_in_memory([weights.name], [mapped], [len(mapped)])
    options.add_session_config_entry("session.use_external_initializer_file_buffers_directly", "1")
    return mapped
