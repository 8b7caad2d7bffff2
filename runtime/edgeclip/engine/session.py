"""One tower in onnxruntime: open it, ask which provider took each node, run it.

The decisions are made in `edgeclip.engine.devices` and `edgeclip.engine.providers`. onnxruntime is imported here, on
first use.
"""

import contextlib
import dataclasses
import functools
import mmap
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeclip.bundle.files import weights_of
from edgeclip.bundle.linked_weights import give_linked_weights
from edgeclip.bundle.watched_files import FilesAtOpening, WatchedFiles
from edgeclip.engine.batch_policy import BatchPolicy, is_oversized
from edgeclip.engine.cuda.bound_runs import GATE
from edgeclip.engine.cuda.cuda_session import CudaTower, CudaWay
from edgeclip.engine.cuda.cudart import CudaStream
from edgeclip.engine.devices import Device, check_index, check_unit
from edgeclip.engine.prepack.packed_weights import (
    Packed,
    PackedFacts,
    find_packed,
    packed_root,
    saving_entries,
    tell_unused,
)
from edgeclip.engine.providers import EngineFacts, Node, Plan, cache_root, cached_engines, check_nodes, plan_session
from edgeclip.engine.tensorrt_cache import engine_folder
from edgeclip.errors import BundleError, DeviceError, MissingExtraError
from edgeclip.host.installation import install_command
from edgeclip.host.nvidia import Driver, read_driver, tensorrt_version
from edgeclip.host.processor import read_processor
from edgeclip.manifest import Manifest, TowerName

# y = MatMulInteger(x, w) as a model: x (1, 4) uint8, w (4, 4) int8, all 127.
_PRODUCT = (
    b'\x08\x08:f\n\x1a\n\x01x\n\x01w\x12\x01y"\rMatMulInteger:\x00\x12\x01g*\x1b\x08\x04\x08\x04\x10\x03*\x10'
    + b"\x7f" * 16
    + b"B\x01wZ\x13\n\x01x\x12\x0e\n\x0c\x08\x02\x12\x08\n\x02\x08\x01\n\x02\x08\x04"
    b"b\x13\n\x01y\x12\x0e\n\x0c\x08\x06\x12\x08\n\x02\x08\x01\n\x02\x08\x04B\x04\n\x00\x10\r"
)
_INPUTS = {"text": "input_ids", "vision": "pixel_values"}
# onnxruntime prints an error that it then raises; only what it raises is reported.
_FATAL_ONLY = 4
# Runs of a batch while its weights are touched, renamed or written.
_TRIES = 3
# Its exceptions that say what is wrong with a file, whatever the device.
_ABOUT_THE_GRAPH = ("InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NoModel")


def import_onnxruntime() -> ModuleType:
    """Import onnxruntime; a MissingExtraError says how to install it."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"onnxruntime is not installed: `{install_command('cpu')}`, for CUDA and TensorRT [gpu] in place of [cpu]"
        ) from error
    except ImportError as error:  # a library that it needs is missing
        raise MissingExtraError(
            f"onnxruntime is installed but cannot be loaded ({_first_line(error)}); "
            f"`{install_command('cpu', '--force-reinstall')}`, or [gpu] in place of [cpu]"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):  # an empty folder left by uninstalling one of two wheels
        raise MissingExtraError(
            "onnxruntime is broken, as it is when both of its wheels were installed and one removed: "
            "`pip uninstall onnxruntime onnxruntime-gpu`, then "
            f"`{install_command('cpu')}`, or [gpu] in place of [cpu]"
        )
    module: ModuleType = onnxruntime
    return module


@functools.cache
def adds_in_16_bits() -> bool:
    """Whether this processor's integer products overflow in 16 bits; computes one product to find out."""
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(_PRODUCT, options, providers=["CPUExecutionProvider"])
    found: NDArray[np.int32] = session.run(None, {"x": np.full((1, 4), 255, np.uint8)})[0]
    return bool((found != 4 * 255 * 127).any())


class TowerSession:
    """A graph with one input and one output, on the device that was asked for or not at all.

    `manifest` says the tower's precision (fp32 without one), and to TensorRT its shapes. Opening it there builds an
    engine, for minutes, the first time; stderr says so. `way` is how CUDA runs it
    (`edgeclip.engine.cuda.cuda_session`). Raises DeviceError when the device cannot run it or leaves a node that
    matters to another, BundleError for what is no graph. Calling it from several threads at once is safe.

    On the CPU it is opened from packed weights if `edgeclip prepack` made some, unless `is_packed` is False. For
    `edgeclip.engine.prepack.packing`: `packed` are such weights, and nothing else is opened; `save_to` is a folder to
    write them to. `since` are the bundle's files as they were when it was opened: a session that is opened later is
    of no other bundle, or a BundleError.
    """

    def __init__(
        self,
        path: Path,
        tower: TowerName,
        device: Device,
        threads: int,
        manifest: Manifest | None = None,
        *,
        way: CudaWay = "graphs",
        is_packed: bool = True,
        packed: Packed | None = None,
        save_to: Path | None = None,
        since: FilesAtOpening | None = None,
    ) -> None:
        self._path, self._tower, self._device = path, tower, device
        files = self.files = WatchedFiles(path.parent, weights_of(path.name, manifest.files) if manifest else ())
        if since:
            since.verify(path.name)
            files.verify_since(since)
        # What a GPU computes with are copies.
        self._is_mapped = device.kind in ("cpu", "openvino")
        self._linked: mmap.mmap | None = None
        self._policy = BatchPolicy.choose(device.kind, manifest, "throughput") if manifest else None
        driver = _load_nvidia(device) if device.kind in ("cuda", "tensorrt") else None
        if device.kind == "openvino" and device.provider in import_onnxruntime().get_available_providers():
            check_unit(device, import_onnxruntime().capi._pybind_state.get_available_openvino_device_ids())
        is_listed = device.provider in import_onnxruntime().get_available_providers()  # else `_start` says so
        stream = CudaStream(device.index) if device.kind == "cuda" and way != "plain" and is_listed else None
        cuda = CudaTower(path, tower, stream, captures=way == "graphs") if stream else None
        plan = plan_tower(tower, device, threads, manifest, stream.handle if stream else None)
        if manifest and device.kind == "tensorrt":
            self._session = self._build(path, plan, threads, manifest, driver)
        else:
            if cuda:
                plan = dataclasses.replace(plan, entries=plan.entries + cuda.entries)
            if packed:
                found = self._start_optimised(packed, plan, threads)
            else:
                found = self._start_packed(path, plan, threads, manifest) if is_packed and not save_to else None
            with self._gate():
                self._session = found or self._start(path, plan, threads, cuda.model if cuda else None, save_to)
        files.verify_mapped()
        if device.kind != "cpu":
            check_nodes(_nodes(self._session), device, tower)
        self._input = self._session.get_inputs()[0].name
        masked = functools.partial(TowerSession, path, tower, device, threads, manifest, way="plain", since=since)
        self._lane = cuda.bind(self._session, lambda: masked().run) if cuda else None
        # The CPU's arena keeps what the largest batch took: 240 MB of a text of 2048 tokens. Giving it back after
        # every run costs some 10 % at 300 and 512 tokens, so that is done after those that are larger than planned.
        # No arena at all is no answer: malloc keeps as much, and an image takes 10 % longer.
        self._shrinking = None
        if device.kind == "cpu":
            self._shrinking = import_onnxruntime().RunOptions()
            self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def _start_packed(self, path: Path, plan: Plan, threads: int, manifest: Manifest | None) -> Any:
        """Open packed weights that this onnxruntime made of this graph on this processor; None without them."""
        root = packed_root(os.environ)
        if self._device.kind != "cpu" or manifest is None or root is None:
            return None
        packed = find_packed(root, packed_facts(path.name, plan, manifest))
        if packed is None:
            return None
        try:
            return self._start_optimised(packed, plan, threads)
        except (BundleError, DeviceError) as error:
            tell_unused(error)
            return None

    def _start_optimised(self, packed: Packed, plan: Plan, threads: int) -> Any:
        files = WatchedFiles(packed.graph.parent, weights_of(packed.graph.name, packed.files))
        session = self._start(packed.graph, plan, threads, is_optimised=True)
        files.verify_mapped()
        self.files = files
        return session

    def _start(
        self,
        path: Path,
        plan: Plan,
        threads: int,
        model: Path | bytes | None = None,
        save_to: Path | None = None,
        *,
        is_optimised: bool = False,
    ) -> Any:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = _FATAL_ONLY
        # A pattern is kept for every shape ever seen (onnxruntime #13500), and texts have many.
        options.enable_mem_pattern = False
        for entry in plan.entries:
            options.add_session_config_entry(*entry)
        self._linked = give_linked_weights(options, path)
        if is_optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if save_to:
            options.optimized_model_filepath = str(save_to / path.name)
            for entry in saving_entries(path.name):
                options.add_session_config_entry(*entry)
        try:
            session = onnxruntime.InferenceSession(
                model or path,
                options,
                providers=[(name, dict(settings)) for name, settings in plan.providers],
                disabled_optimizers=list(plan.without),
                enable_fallback=0,  # else it prints on stdout and tries other providers
            )
        except Exception as error:  # onnxruntime's own share no base class
            if isinstance(error, RuntimeError) or (  # about a provider
                self._device.kind != "cpu" and type(error).__name__ not in _ABOUT_THE_GRAPH
            ):
                raise DeviceError(f"device {self._device} cannot be started ({_first_line(error)})") from error
            raise BundleError(
                f"{path}: onnxruntime cannot load the {self._tower} graph ({_first_line(error)})"
            ) from error
        # A provider whose libraries are missing is left out with a word in the log only.
        if (running := session.get_providers()[0]) != self._device.provider:
            raise DeviceError(
                f"device {self._device} asked for, but onnxruntime could start only {running}; "
                "`edgeclip doctor` says why"
            )
        return session

    def _build(self, path: Path, plan: Plan, threads: int, manifest: Manifest, driver: Driver | None) -> Any:
        """Open with TensorRT: use the engines on disk, or build and keep them."""
        facts = EngineFacts(
            files=_graph_hashes(path.name, manifest),
            onnxruntime=import_onnxruntime().__version__,
            tensorrt=tensorrt_version() or "unknown",
            gpu=driver.gpus[self._device.index] if driver and driver.gpus else "unknown",
            options=plan.providers[0][1],
        )
        with engine_folder(cache_root(os.environ) / "engines", facts.key) as (folder, is_built):
            started = time.monotonic()
            if not is_built:
                print(
                    f"edgeclip: TensorRT builds the {self._tower} engine for {facts.gpu}: minutes, this once",
                    file=sys.stderr,
                )
            session = self._start(path, cached_engines(plan, folder), threads)
            if not is_built:
                print(f"edgeclip: built in {time.monotonic() - started:.0f} s", file=sys.stderr)
        return session

    def allocate(self, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Memory for pixels (B, S, S, 3) that the device reads without another copy: page-locked for CUDA.

        Give it to `recycle` when it is no longer used.
        """
        return self._lane.bound.allocate(shape) if self._lane else np.empty(shape, np.uint8)

    def recycle(self, memory: NDArray[np.uint8]) -> None:
        """Keep memory of `allocate`, which nothing uses any more, for the next call."""
        if self._lane:
            self._lane.bound.recycle(memory)

    def run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """The tower's unit vectors for a batch (B, ...): (B, D) float32.

        A batch larger than TensorRT's profiles is run in parts; inputs that fit no profile are an InputError. Raises
        BundleError when weights that are read in place were overwritten, DeviceError for inputs that the graph cannot
        take.
        """
        parts = self._policy.parts(batch.shape) if self._policy else []
        before = self._check_files()  # reading beyond the new end of a file that was cut ends the process (SIGBUS)
        for _ in range(_TRIES):
            try:
                vectors = (
                    np.concatenate([self._run(batch[part]) for part in parts]) if parts[1:] else self._run(batch)
                )
            finally:
                after = self._check_files()
            if after == before:
                return vectors
            before = after  # right again, or only touched: but what was it when it was read?
        raise BundleError(f"{self._path.parent}: files of {self._path.name} change all the time while they are used")

    def _check_files(self) -> tuple[object, ...]:
        return self.files.check() if self._is_mapped else ()

    def _run(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        try:
            if self._lane:
                return self._lane.run(batch)
            options = self._shrinking if is_oversized(self._tower, batch.shape) else None
            with self._gate():
                output: NDArray[np.float32] = self._session.run(None, {self._input: batch}, options)[0]
        except BundleError:  # of the session for padded texts, which is opened when the first one comes
            raise
        except Exception as error:
            raise DeviceError(
                f"the {self._tower} graph failed on {self._device} with a batch of shape {batch.shape} "
                f"({_first_line(error)})"
            ) from error
        return output

    def _gate(self) -> contextlib.AbstractContextManager[None]:
        """Keep allocations on a GPU outside of a lane from running while a lane captures (`CaptureGate`)."""
        return GATE.together() if self._device.kind == "cuda" else contextlib.nullcontext()


def plan_tower(
    tower: TowerName, device: Device, threads: int, manifest: Manifest | None, stream: int | None = None
) -> Plan:
    """The plan of a tower's session on this machine; `stream` and the errors are those of `plan_session`."""
    profiles = BatchPolicy.choose(device.kind, manifest, "throughput").profiles(tower) if manifest else None
    return plan_session(
        device,
        manifest.tower(tower).precision if manifest else "fp32",
        threads=threads,
        adds_in_16_bits=device.kind == "cpu" and adds_in_16_bits(),
        profiles=profiles.options(_INPUTS[tower]) if profiles else None,
        stream=stream,
    )


def packed_facts(graph: str, plan: Plan, manifest: Manifest) -> PackedFacts:
    """The facts that packed weights of the bundle's graph with this file name depend on."""
    return PackedFacts(
        files=_graph_hashes(graph, manifest),
        onnxruntime=import_onnxruntime().__version__,
        processor=read_processor(),
        plan=plan,
    )


def _load_nvidia(device: Device) -> Driver | None:
    """Load CUDA's libraries, from wheels too; DeviceError when there is no GPU with this number."""
    with contextlib.redirect_stdout(sys.stderr):  # it prints on stdout what it did not find
        import_onnxruntime().preload_dlls()
    driver = read_driver()
    check_index(device, driver.gpus if driver else ())
    return driver


def _graph_hashes(graph: str, manifest: Manifest) -> tuple[str, ...]:
    """The sha256 of a graph and of its weights."""
    return tuple(file.sha256 for file in manifest.files if file.name.startswith(graph))


def _nodes(session: Any) -> list[Node]:
    """The provider that took each node, as the session recorded it."""
    return [
        Node(operator=".".join(filter(None, (node.domain, node.op_type))), provider=part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    ]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
