"""Writing a bundle: staged, each graph proved, the manifest last. Little of one graph is in memory at a time."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import InvariantError, PassError

from edgeclip.bundle.closeness import compare_vectors
from edgeclip.bundle.selftest import ANSWERS
from edgeclip.bundle.staging import file_facts, staged
from edgeclip.engine.ort import first_line
from edgeclip.errors import BuildError, CheckpointWarning
from edgeclip.host.malloc_bounds import give_back, trim
from edgeclip.manifest import (
    MANIFEST_NAME,
    SCHEMA_VERSION,
    SELFTEST_DATA,
    ArrayFacts,
    GraphFacts,
    Manifest,
    Measurement,
    Modality,
    Source,
    Space,
    Target,
)
from edgeclip_export.adapters import Change, Feed, adapter_feed, write_adapter
from edgeclip_export.checkpoint import TOKENIZER
from edgeclip_export.families.family import Arrays, Case, GraphPlan, ModelPlan, Progress
from edgeclip_export.pieces import run_in_pieces
from edgeclip_export.reference import answer
from edgeclip_export.tracing import OPSET, trace
from edgeclip_graph.census import count_operators
from edgeclip_graph.narrowing import Narrow, NarrowedTrace
from edgeclip_graph.passes import TENSORRT_OPSET, lower
from edgeclip_graph.passes.unmasked import has_choice, save_unmasked
from edgeclip_graph.portable import save_portable

SELFTEST = "selftest.npz"

# Largest difference between a graph's unit vectors and the torch tower's. Measured: 4e-7 at 64 wide,
# 6e-7 at full size; the smallest known mistake, tanh instead of erf in GELU, moves them by 1e-4.
PARITY = 5e-6
# The same of vectors of single tokens, which no mean smooths. Measured: 6e-6 of a token of the trained page model,
# where torch's own fp32 is 3.5e-6 from float64.
TOKEN_PARITY = 2e-5
# What a bundle needs on disk besides its fp32 weights: the graphs, a tokenizer of 17 MB, the rest.
_SPARE_BYTES = 64 << 20
_TRIMMED_AFTER = 32  # tensors, a decoder's block or two; malloc keeps what computing them left


def write_bundle(
    model: ModelPlan,
    family: str,
    source: Source,
    out: Path,
    target: Target,
    narrow: Narrow | None,
    progress: Progress,
) -> Manifest:
    """Write the bundle that a family planned to `out`, which must not exist yet; `narrow` rewrites its graphs.

    A CheckpointWarning says what of the checkpoint is not as in the official layout and was understood all the same.

    Raises BuildError, with nothing left at `out`, for a checkpoint that is not as its configuration says, a graph
    that does not answer as the torch tower does, and a disk that is full.
    """
    for note in model.notes:
        warnings.warn(CheckpointWarning(note), stacklevel=2)
    needed = _needed_bytes(model, narrow)
    give_back(needed)
    progress(f"needs {needed / 1e9:.2f} GB on disk", 0, 1)
    with staged(out, needed_bytes=needed) as stage:
        if model.tokenizer is not None:
            (stage / TOKENIZER).write_text(model.tokenizer, encoding="utf-8")
        built = _build_graphs(model, target, narrow, stage, partial(give_back, needed), progress)
        plans = {plan.name: plan for plan in model.graphs}
        written = {
            name: write_adapter(name, adapter, plans[adapter.graph], built.changes[adapter.graph], stage)
            for name, adapter in model.adapters.items()
        }
        np.savez_compressed(stage / SELFTEST, allow_pickle=False, **model.selftest, **built.vectors)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            family=family,
            source=source,
            target=target,
            opset=TENSORRT_OPSET if target == "tensorrt" else OPSET,
            graphs=built.graphs,
            spaces=model.spaces,
            text=model.text,
            image=model.image,
            tasks=model.tasks,
            task_required=model.task_required,
            adapters=written,
            selftest=SELFTEST,
            proof=None,
            files=file_facts(stage, progress),
            measured=tuple(built.measured),
            built_with={name: version(name) for name in ("edgeclip", "torch", "onnx-ir", "onnxscript")},
        )
        (stage / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Built:
    """The graphs that were written: their facts, what becomes of the arrays of each one's adapters, how near they
    came to the torch towers, and the towers' vectors.
    """

    graphs: dict[str, GraphFacts] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    measured: list[Measurement] = field(default_factory=list)
    vectors: dict[str, NDArray[Any]] = field(default_factory=dict)


def _build_graphs(
    model: ModelPlan,
    target: Target,
    narrow: Narrow | None,
    stage: Path,
    on_step: Callable[[], None],
    progress: Progress,
) -> _Built:
    """Write each graph to `stage` and hold it against its torch tower; `on_step` is called after each step."""
    built = _Built()
    wanted: dict[str, list[Arrays]] = {}
    found: dict[str, list[Arrays]] = {}
    for plan in model.graphs:
        cases = plan.cases(wanted)
        adapters = {name: adapter_feed(name, model.adapters, plan) for name in {case.adapter for case in cases}}
        feeds: list[Feed] = [{**case.feed, **adapters[case.adapter]} for case in cases]
        progress(f"asking the {plan.name} tower", 0, 1)
        wanted[plan.name] = list(answer(plan, feeds, progress))
        on_step()
        progress(f"tracing the {plan.name} tower", 0, 1)
        traced = trace(plan)
        on_step()
        is_followed = not any(plan.outputs.values())
        for attempt in range(1 if narrow is None or is_followed else narrow.attempts):
            written = _write_graph(plan, traced, target, narrow, attempt, stage, progress)
            on_step()
            if narrow is not None:  # it is judged by what it gives in a bundle, after a graph that was narrowed too
                changed = {name: adapter_feed(name, model.adapters, plan, written.change) for name in adapters}
                feeds = [{**case.feed, **changed[case.adapter]} for case in plan.cases(found)]
            found[plan.name] = _run(plan, stage, feeds, progress)
            on_step()
            measured = _compare(plan, cases, wanted[plan.name], found[plan.name], stage, is_exact=narrow is None)
            objections = () if narrow is None else narrow.objections(measured, written.facts.kernels)
            if not objections:
                break
        if narrow is not None and objections:
            raise BuildError(
                f"as {narrow.name}, {'; '.join(objections)}; export fp32, then edgeclip quantize with data of yours "
                "(--calibrate), or with another budget"
            )
        built.graphs[plan.name], built.changes[plan.name] = written.facts, written.change
        built.measured.extend(measured)
        for output, space in plan.outputs.items():
            if space is not None:
                built.vectors.update(_vectors(space, cases, [rows[output] for rows in wanted[plan.name]]))
    return built


def _compare(
    plan: GraphPlan,
    cases: Sequence[Case],
    wanted: Sequence[Arrays],
    found: Sequence[Arrays],
    stage: Path,
    *,
    is_exact: bool,
) -> list[Measurement]:
    """How near each output of vectors came to the torch tower's; BuildError where it `is_exact` and one is not."""
    measured: list[Measurement] = []
    for output, space in plan.outputs.items():
        one, other = ([rows[output] for rows in answers] for answers in (wanted, found))
        if is_exact:
            _check(plan, output, one, other)
        if space is not None:
            measured.extend(_measure(plan, space, cases, one, other, stage))
    return measured


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """One graph that was written: its facts, and what becomes of an adapter's arrays."""

    facts: GraphFacts
    change: Change


def _write_graph(
    plan: GraphPlan,
    traced: ir.Model,
    target: Target,
    narrow: Narrow | None,
    attempt: int,
    stage: Path,
    progress: Progress,
) -> _Written:
    """Lower and write one graph, narrowed or with its other forms over the same weights, which are read as they are
    written. The trace stays as it is.
    """
    narrowed = _lower(plan, traced.clone(), target, narrow, attempt, progress)
    model = narrowed.model

    def report(_: object, info: ir.external_data.CallbackInfo) -> None:
        progress(f"writing the {plan.name} graph", info.index + 1, info.total)
        if info.index % _TRIMMED_AFTER == 0:
            trim()

    file = f"{plan.name}.onnx"
    ir.save(model, stage / file, external_data=f"{file}_data", callback=report)
    if narrow is None:
        save_portable(traced.clone(), model, stage / file, plan.traits)
    if target == "cuda" and has_choice(model):
        save_unmasked(model, stage / file)
    own = [value for value in model.graph.inputs if value.name not in plan.adapter_inputs]
    facts = GraphFacts(
        file=file,
        precision=narrowed.precision,
        parameters=_count_parameters(plan),
        operators=count_operators(model),
        kernels=narrowed.kernels,
        inputs=_describe(own),
        outputs=_describe(model.graph.outputs),
    )
    return _Written(facts=facts, change=narrowed.change_adapter)


def _lower(
    plan: GraphPlan, model: ir.Model, target: Target, narrow: Narrow | None, attempt: int, progress: Progress
) -> NarrowedTrace:
    if narrow is None:
        lowered = lower(model, target, plan.name, plan.traits)
        return NarrowedTrace(model=lowered, precision="fp32", kernels={}, change_adapter=lambda name, array: array)
    progress(f"narrowing the {plan.name} graph", attempt, narrow.attempts)
    plain = lower(model, target, plan.name, plan.traits, layers="divided")
    try:
        return narrow(plain, plan.name, is_followed=not any(plan.outputs.values()), attempt=attempt)
    except (InvariantError, PassError) as error:
        raise BuildError(f"the {plan.name} graph cannot be narrowed ({error.__cause__ or error})") from error


def _describe(values: Sequence[ir.Value]) -> tuple[ArrayFacts, ...]:
    """The arrays that a graph takes or gives."""
    facts = []
    for value in values:
        assert value.dtype is not None
        assert value.shape is not None
        axes = tuple(axis if isinstance(axis, int) else str(axis.value) for axis in value.shape)
        facts.append(ArrayFacts(name=str(value.name), dtype=str(value.dtype.numpy()), axes=axes))
    return tuple(facts)


def _run(plan: GraphPlan, stage: Path, feeds: Sequence[Feed], progress: Progress) -> list[Arrays]:
    """What the written graph, run on the CPU, gives for each feed, by the names of its outputs."""
    try:
        return run_in_pieces(stage / f"{plan.name}.onnx", feeds, f"proving the {plan.name} graph", progress)
    except Exception as error:  # onnxruntime's share no base class
        raise BuildError(f"onnxruntime cannot run the {plan.name} graph ({first_line(error)})") from error


def _check(plan: GraphPlan, output: str, wanted: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> None:
    """BuildError for a graph that does not answer as the torch tower does; numbers above 1 are held as a share."""
    for one, other in zip(wanted, found, strict=True):
        difference = float(np.abs(other - one).max())
        parity = TOKEN_PARITY if plan.outputs[output] == "multi" else PARITY
        allowed = parity * max(1.0, float(np.abs(one).max()))
        if one.shape != other.shape or not difference <= allowed:  # NaN fails too
            raise BuildError(
                f"the {plan.name} graph differs from the torch tower by {difference:.1e} in {output}, allowed is "
                f"{allowed:.0e}"
            )


def _measure(
    plan: GraphPlan,
    space: Space,
    cases: Sequence[Case],
    wanted: Sequence[NDArray[Any]],
    found: Sequence[NDArray[Any]],
    stage: Path,
) -> list[Measurement]:
    """How close a graph's vectors of one space are to the torch tower's, for each modality that it answers."""
    measured = []
    for modality in dict.fromkeys(case.modality for case in cases):
        ours = [index for index, case in enumerate(cases) if case.modality == modality]
        before, after = (_rows([rows[index] for index in ours]) for rows in (wanted, found))
        measured.append(
            Measurement(
                modality=modality,
                space=space,
                against="fp32 checkpoint",
                data=SELFTEST_DATA,
                **{**asdict(compare_vectors(after, before)), "samples": len(ours)},  # inputs, of several rows each
                weight_bytes=sum(path.stat().st_size for path in stage.glob(f"{plan.name}.onnx*")),
            )
        )
    return measured


def _vectors(space: Space, cases: Sequence[Case], wanted: Sequence[NDArray[Any]]) -> Mapping[str, NDArray[Any]]:
    """The answers as the self-test keeps them, for each modality (`edgeclip.bundle.selftest.ANSWERS`)."""
    by_modality: dict[Modality, list[NDArray[Any]]] = {}
    for case, rows in zip(cases, wanted, strict=True):
        by_modality.setdefault(case.modality, []).append(rows)
    return {ANSWERS[space][modality]: _rows(rows) for modality, rows in by_modality.items()}


def _rows(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """All vectors as the rows of one array."""
    return np.concatenate([array.reshape(-1, array.shape[-1]) for array in arrays])


def _count_parameters(plan: GraphPlan) -> int:
    """The number of the tower's parameters; tables that are computed, which are buffers, do not count."""
    import torch

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in plan.build().parameters())


def _needed_bytes(model: ModelPlan, narrow: Narrow | None) -> int:
    """The disk that a bundle needs: matrices and tables in the bits of their graph, rows and adapters in fp32."""
    bits = 0.0
    for plan in model.graphs:
        is_followed = not any(plan.outputs.values())
        of_matrix = 32 if narrow is None else narrow.bits_per_weight(is_followed=is_followed)
        bits += sum(math.prod(one.shape) * (of_matrix if len(one.shape) > 1 else 32) for one in plan.weights.values())
    return math.ceil(bits / 8) + sum(adapter.size_bytes for adapter in model.adapters.values()) + _SPARE_BYTES
