"""onnxruntime: its import, on first use, and the one place in which the project starts a session.

Which options a session needs is decided in `edgeclip.engine.providers`; what is measured is opened as it will run.
"""

import mmap
import weakref
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from edgeclip.bundle.linked_weights import give_linked_weights
from edgeclip.engine.providers import Plan
from edgeclip.errors import MissingExtraError, OutOfMemoryError
from edgeclip.host.import_errors import explain_import
from edgeclip.host.installation import install_command
from edgeclip.host.out_of_memory import is_out_of_memory, naming_out_of_memory

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# onnxruntime prints an error that it then raises; only what it raises is reported.
_FATAL_ONLY = 4
_CPU = "CPUExecutionProvider"
# onnxruntime's own choice of everything, on the CPU.
DEFAULTS = Plan(providers=((_CPU, {}),))
# Mapped weights, which a session reads in place for as long as it lives.
_mapped: "weakref.WeakKeyDictionary[InferenceSession, mmap.mmap]" = weakref.WeakKeyDictionary()


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime; a MissingExtraError says why it cannot be, and how to install it."""
    try:
        import onnxruntime
    except ImportError as error:
        if is_out_of_memory(error):
            raise OutOfMemoryError(f"out of memory: onnxruntime cannot be loaded ({first_line(error)})") from error
        raise explain_import(error, package="onnxruntime") or error from error
    if not hasattr(onnxruntime, "InferenceSession"):  # an empty folder left by uninstalling one of two wheels
        raise MissingExtraError(
            "onnxruntime is broken, as it is when both of its wheels were installed and one removed: "
            "`pip uninstall onnxruntime onnxruntime-gpu`, then "
            f"`{install_command('cpu')}`, or [gpu] in place of [cpu]"
        )
    module: ModuleType = onnxruntime
    return module


def start_session(
    model: Path | bytes,
    *,
    plan: Plan = DEFAULTS,
    threads: int | None = None,
    optimise: Literal["all", "none"] = "all",
    by_priority: bool = False,
    keeps_patterns: bool = True,
    profile: Path | None = None,
    save_to: Path | None = None,
    weights_of: Path | None = None,
) -> "InferenceSession":
    """Start a session for a graph's file or bytes, with the providers, entries and optimisers of a plan.

    `threads=None` leaves the number to onnxruntime. `by_priority` runs nodes in the graph's own order, so that values
    do not wait for a node that only looks at them. Without `keeps_patterns` no memory pattern is kept for each shape
    that was seen. `profile` is the beginning of the name of a profile that the session writes, `save_to` the file
    that the optimised graph is written to. `weights_of` is the file whose weights lie beside it, where `model` is
    given as bytes; weights behind links are mapped and handed over (`edgeclip.bundle.linked_weights`).

    Raises OutOfMemoryError, and else what onnxruntime raises; its exceptions have no class in common (`first_line`
    gives their words). No other provider is tried in place of one that fails.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = _FATAL_ONLY
    options.enable_mem_pattern = keeps_patterns
    # A plan that reuses buffers keeps each for the next value of its size, however far off that is. The CPU's arena
    # alone needs half of the memory (0.65 GB, not 1.2, for 8,192 tokens of jina-embeddings-v4) and 2 % less time.
    options.enable_mem_reuse = any(name != _CPU for name, _ in plan.providers)
    for entry in plan.entries:
        options.add_session_config_entry(*entry)
    if optimise == "none":
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if by_priority:
        options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if save_to:
        options.optimized_model_filepath = str(save_to)
    path = weights_of or (model if isinstance(model, Path) else None)
    linked = give_linked_weights(options, path) if path else None
    with naming_out_of_memory(f"{path.name if path else 'a graph'} was opened"):
        session: InferenceSession = onnxruntime.InferenceSession(
            model,
            options,
            providers=[(name, dict(settings)) for name, settings in plan.providers],
            disabled_optimizers=list(plan.without),
            enable_fallback=0,  # else it prints on stdout and tries other providers
        )
    if linked:
        _mapped[session] = linked
    return session


def require_memory(count: int, what: str) -> None:
    """Raise OutOfMemoryError where this process may not have so many bytes more, because a library that cannot get
    memory ends the process. No page is used.
    """
    try:
        mmap.mmap(-1, max(1, count)).close()
    except (OSError, MemoryError) as error:
        raise OutOfMemoryError(f"out of memory: {what} takes {count / 1e6:.0f} MB; raise `ulimit -v`") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def run_options(**entries: str) -> Any:
    """onnxruntime's RunOptions with these config entries."""
    options = import_onnxruntime().RunOptions()
    for name, value in entries.items():
        options.add_run_config_entry(name, value)
    return options
