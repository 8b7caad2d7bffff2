"""Open a graph in onnxruntime on the device that was asked for, or not at all.

The decisions are made in `edgeclip.engine.devices` and `edgeclip.engine.providers`; `edgeclip.engine.session` runs
what is opened here.
"""

import contextlib
import dataclasses
import functools
import io
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeclip.bundle.files import unmasked_name, verify_hash, weights_of
from edgeclip.bundle.watched_files import FilesAtOpening, WatchedFiles
from edgeclip.engine.adapters import Adapters
from edgeclip.engine.batch_policy import BatchPolicy, has_lone_input
from edgeclip.engine.cuda.cuda_session import CudaGraph, CudaWay
from edgeclip.engine.cuda.cudart import CudaStream
from edgeclip.engine.devices import Device, check_index, check_unit
from edgeclip.engine.ort import first_line, import_onnxruntime, start_session
from edgeclip.engine.prepack.packed_weights import (
    Packed,
    PackedFacts,
    find_packed,
    packed_root,
    saving_entries,
    tell_unused,
)
from edgeclip.engine.products import adds_in_16_bits, pairs_overflow
from edgeclip.engine.providers import EngineFacts, Node, Plan, cache_root, cached_engines, check_nodes, plan_session
from edgeclip.engine.session import GraphSession, gate
from edgeclip.engine.tensorrt_cache import engine_folder
from edgeclip.errors import BundleError, DeviceError, OutOfMemoryError
from edgeclip.host.nvidia import Driver, read_driver, tensorrt_version
from edgeclip.host.processor import read_processor
from edgeclip.manifest import Manifest

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

# onnxruntime's exceptions that say what is wrong with a file, whatever the device.
_NOT_LOADED = re.compile(r"Failed to load ([^\s:]+)")  # what onnxruntime's preload_dlls prints of each library
_ABOUT_THE_GRAPH = ("InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NoModel")


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphToOpen:
    """A graph's file, its name in the manifest, and where it is to run.

    `manifest` says the graph's precision (fp32 without one), its adapters, and to TensorRT its shapes. `since` are
    the bundle's files as they were when it was opened: a session that is opened later is of no other bundle, or a
    BundleError. `cuda_way` is how CUDA runs it (`edgeclip.engine.cuda.cuda_session`).

    On the CPU it is opened from packed weights if `edgeclip prepack` made some, unless `uses_packed` is False. For
    `edgeclip.engine.prepack.packing`: `packed` are such weights, and nothing else is opened; `save_to` is a folder to
    write them to.
    """

    path: Path
    graph: str
    device: Device
    threads: int
    manifest: Manifest | None = None
    since: FilesAtOpening | None = None
    cuda_way: CudaWay = "graphs"
    uses_packed: bool = True
    packed: Packed | None = None
    save_to: Path | None = None


def open_graph(wanted: GraphToOpen) -> GraphSession:
    """Open a graph. With TensorRT the first time builds an engine, for minutes; stderr says so.

    Raises DeviceError when the device cannot run it or leaves a node that matters to another, BundleError for what is
    no graph.
    """
    path, device, manifest = wanted.path, wanted.device, wanted.manifest
    files = WatchedFiles(path.parent, weights_of(path.name, manifest.files) if manifest else ())
    if wanted.since:
        wanted.since.verify(path.name)
        files.verify_since(wanted.since)
    onnxruntime = import_onnxruntime()
    driver = _load_nvidia(device) if device.kind in ("cuda", "tensorrt") else None
    is_listed = device.provider in onnxruntime.get_available_providers()  # else `_start` says so
    if device.kind == "openvino" and is_listed:
        check_unit(device, onnxruntime.capi._pybind_state.get_available_openvino_device_ids())
    cuda = None
    is_bindable = manifest is None or has_lone_input(manifest, wanted.graph)
    if device.kind == "cuda" and wanted.cuda_way != "plain" and is_listed and is_bindable:
        unmasked = _verified_unmasked(path, manifest) if manifest else None
        cuda = CudaGraph(
            path,
            wanted.graph,
            CudaStream(device.index),
            unmasked=unmasked,
            pad_id=manifest.need_text().pad_id if manifest and unmasked else None,
            captures=wanted.cuda_way == "graphs",
        )
    plan = plan_graph(wanted.graph, device, wanted.threads, manifest, cuda.stream if cuda else None)
    session: InferenceSession | None = None
    if manifest and device.kind == "tensorrt":
        session = _build(wanted, plan, manifest, driver)
    else:
        if wanted.packed:
            session, files = _start_packed(wanted, plan, wanted.packed)
        elif wanted.uses_packed and not wanted.save_to:
            session, files = _find_packed(wanted, plan, files)
        if session is None:
            with gate(device):
                session = _start(wanted, plan, cuda.model if cuda else path)
    files.verify_mapped()
    if device.kind != "cpu":
        check_nodes(_nodes(session), device, wanted.graph)
    adapters = Adapters(path.parent, wanted.graph, manifest, _adapter_inputs(session, wanted))
    lane = None
    if cuda:
        masked = dataclasses.replace(wanted, cuda_way="plain")
        lane = cuda.bind(session, adapters, lambda: open_graph(masked).run)
    policy = BatchPolicy.choose(device.kind, manifest, "throughput") if manifest else None
    return GraphSession(session, path, wanted.graph, device, files=files, adapters=adapters, policy=policy, lane=lane)


def _verified_unmasked(path: Path, manifest: Manifest) -> Path | None:
    """The file of the form of a graph that never masks, if the bundle has it; BundleError for a damaged one."""
    name = unmasked_name(path.name)
    listed = next((file for file in manifest.files if file.name == name), None)
    if listed is None:
        return None
    verify_hash(path.parent, listed)
    return path.with_name(name)


def plan_graph(
    graph: str, device: Device, threads: int, manifest: Manifest | None, stream: int | None = None
) -> Plan:
    """The plan of a graph's session on this machine; `stream` and the errors are those of `plan_session`."""
    profiles = None
    if manifest and (found := BatchPolicy.choose(device.kind, manifest, "throughput").profiles(graph)):
        profiles = found.options(manifest.graphs[graph].inputs[0].name)
    on_cpu = device.kind in ("cpu", "openvino") and device.unit == "CPU"
    is_trusted = manifest is not None and on_cpu and not pairs_overflow()
    return plan_session(
        device,
        manifest.graphs[graph].precision if manifest else "fp32",
        threads=threads,
        adds_in_16_bits=on_cpu and adds_in_16_bits(),
        kernels=manifest.graphs[graph].kernels if manifest and is_trusted else None,
        profiles=profiles,
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


def _start(wanted: GraphToOpen, plan: Plan, model: Path, *, is_optimised: bool = False) -> "InferenceSession":
    device = wanted.device
    if wanted.save_to:
        plan = dataclasses.replace(plan, entries=plan.entries + saving_entries(wanted.path.name))
    try:
        session = start_session(
            model,
            plan=plan,
            threads=wanted.threads,
            optimise="none" if is_optimised else "all",
            keeps_patterns=False,  # one is kept for every shape ever seen (onnxruntime #13500), and texts have many
            save_to=wanted.save_to / wanted.path.name if wanted.save_to else None,
            weights_of=wanted.path,
        )
    except OutOfMemoryError:
        raise
    except Exception as error:  # onnxruntime's own share no base class
        if isinstance(error, RuntimeError) or (  # about a provider
            device.kind != "cpu" and type(error).__name__ not in _ABOUT_THE_GRAPH
        ):
            raise DeviceError(f"device {device} cannot be started ({first_line(error)})") from error
        raise BundleError(
            f"{wanted.path}: onnxruntime cannot load the {wanted.graph} graph ({first_line(error)})"
        ) from error
    # A provider whose libraries are missing is left out with a word in the log only.
    if (running := session.get_providers()[0]) != device.provider:
        missing = _missing_library() if device.kind in ("cuda", "tensorrt") else None
        why = f'{missing} is not there, `pip install "onnxruntime-gpu[cuda,cudnn]"` brings it; ' if missing else ""
        raise DeviceError(
            f"device {device} asked for, but onnxruntime could start only {running}; {why}`edgeclip doctor` says why"
        )
    return session


def _find_packed(
    wanted: GraphToOpen, plan: Plan, files: WatchedFiles
) -> "tuple[InferenceSession | None, WatchedFiles]":
    """Open packed weights that this onnxruntime made of this graph on this processor; no session without them."""
    root = packed_root(os.environ)
    if wanted.device.kind != "cpu" or wanted.manifest is None or root is None:
        return None, files
    packed = find_packed(root, packed_facts(wanted.path.name, plan, wanted.manifest))
    if packed is None:
        return None, files
    try:
        return _start_packed(wanted, plan, packed)
    except OutOfMemoryError:  # without them it would need more
        raise
    except (BundleError, DeviceError) as error:
        tell_unused(error)
        return None, files


def _start_packed(wanted: GraphToOpen, plan: Plan, packed: Packed) -> "tuple[InferenceSession, WatchedFiles]":
    files = WatchedFiles(packed.graph.parent, weights_of(packed.graph.name, packed.files))
    session = _start(dataclasses.replace(wanted, path=packed.graph), plan, packed.graph, is_optimised=True)
    files.verify_mapped()
    return session, files


def _build(wanted: GraphToOpen, plan: Plan, manifest: Manifest, driver: Driver | None) -> "InferenceSession":
    """Open with TensorRT: use the engines on disk, or build and keep them."""
    facts = EngineFacts(
        files=_graph_hashes(wanted.path.name, manifest),
        onnxruntime=import_onnxruntime().__version__,
        tensorrt=tensorrt_version() or "unknown",
        gpu=driver.gpus[wanted.device.index] if driver and driver.gpus else "unknown",
        options=plan.providers[0][1],
    )
    with engine_folder(cache_root(os.environ) / "engines", facts.key) as (folder, is_built):
        started = time.monotonic()
        if not is_built:
            print(
                f"edgeclip: TensorRT builds the {wanted.graph} engine for {facts.gpu}: minutes, this once",
                file=sys.stderr,
            )
        session = _start(wanted, cached_engines(plan, folder), wanted.path)
        if not is_built:
            print(f"edgeclip: built in {time.monotonic() - started:.0f} s", file=sys.stderr)
    return session


def _load_nvidia(device: Device) -> Driver | None:
    """Load CUDA's libraries, from wheels too; DeviceError when there is no driver, or no GPU with this number."""
    driver = read_driver()
    if driver is None and device.provider in import_onnxruntime().get_available_providers():
        raise DeviceError(
            f"device {device} asked for, but no NVIDIA driver is here, or the container has none of it (--gpus all); "
            "`edgeclip doctor` says how to install it, device cpu needs none"
        )
    _missing_library()
    check_index(device, driver.gpus if driver else ())
    return driver


@functools.cache
def _missing_library() -> str | None:
    """Load CUDA's libraries as far as they are there, once in a process; the name of the first that is not."""
    with contextlib.redirect_stdout(io.StringIO()) as words:
        import_onnxruntime().preload_dlls()
    found = _NOT_LOADED.search(words.getvalue())
    return found[1] if found else None


def _adapter_inputs(session: Any, wanted: GraphToOpen) -> dict[str, tuple[int, ...]]:
    """The shapes of the inputs that adapters fill: those that the manifest does not list as fed by every call.

    Without a manifest they are the inputs after the first.
    """
    inputs = session.get_inputs()
    fed = {inputs[0].name}
    if wanted.manifest:
        fed = {array.name for array in wanted.manifest.graphs[wanted.graph].inputs}
    return {found.name: tuple(found.shape) for found in inputs if found.name not in fed}


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
