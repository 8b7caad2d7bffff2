"""Quantise a bundle: narrow every graph, compare it with what it was, and write it only if it kept enough.

What a graph is narrowed to depends on its target (`WAYS`). The weights of one graph are in memory at a time.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import InvariantError, PassError

from edgeclip.bundle.staging import file_facts, staged
from edgeclip.engine.adapters import read_adapter
from edgeclip.engine.ort import import_onnxruntime
from edgeclip.engine.products import adds_in_16_bits
from edgeclip.errors import BuildError
from edgeclip.families.family import Arrays
from edgeclip.host.malloc_bounds import give_back
from edgeclip.manifest import (
    FIRST_GRAPH,
    MANIFEST_NAME,
    PROOF_DATA,
    GraphFacts,
    Manifest,
    Measurement,
    Precision,
    Target,
)
from edgeclip_graph.census import count_operators
from edgeclip_graph.passes import lower, lower_portable, read_portable
from edgeclip_graph.passes.unmasked import has_choice, save_unmasked
from edgeclip_quant.budget import Budget, judge
from edgeclip_quant.graph_runner import Graphs, Progress
from edgeclip_quant.inputs.feeder import Feeder
from edgeclip_quant.inputs.made_up import Samples, padded_pair
from edgeclip_quant.inputs.value_ranges import measure_ranges
from edgeclip_quant.passes.channels import edit_fed
from edgeclip_quant.passes.float16 import narrow_to_half
from edgeclip_quant.passes.integer_layers import IntegerNarrowing, plain_graph
from edgeclip_quant.passes.narrowing import Narrowed, Narrowing, prepare
from edgeclip_quant.passes.qdq import PairNarrowing
from edgeclip_quant.proof.allowance import Bounds, Losses, bounds_of, part_of, shares_to_keep
from edgeclip_quant.proof.measurement import (
    PROOF,
    Proof,
    add_times,
    alone,
    ask_source,
    graph_files,
    prove,
)
from edgeclip_quant.recipes import Cpu, CpuChoice, Recipe

WAYS: Mapping[Precision, tuple[Target, ...]] = {
    # A tensorrt graph can be narrowed too. It waits until an engine was built of it: onnxruntime's provider may
    # choose types of its own.
    "fp16": ("cuda",),
    "int8": ("cpu", "tensorrt"),
    "int4": ("cpu",),
}
_NAMED = 5
_ATTEMPTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The request: `to` and `recipes` (for the CPU) by graph; the user's own `proof` besides the made-up one.

    `is_made_up` says that `calibration` is not like real inputs. `kept` is the cosine that each graph must keep on
    it, None where the graph is written as its recipe has it; without `kept`, all must keep the budget's.
    """

    to: Mapping[str, Precision]
    recipes: Mapping[str, Recipe]
    calibration: Samples
    is_made_up: bool
    proof: Samples | None
    budget: Budget
    kept: Mapping[str, float | None] | None = None


def quantize(bundle: Path, out: Path, order: Order, progress: Progress) -> Manifest:
    """The work of `edgeclip_quant.quantize_bundle`, after the imports."""
    manifest = Manifest.read(bundle)
    for to in order.to.values():
        check_way(bundle, manifest, to)
    check_source(bundle, manifest, progress)
    feeder = Feeder(bundle, manifest)
    with staged(out, needed_bytes=2 * manifest.weight_bytes) as stage:
        for copied in copied_files(manifest):
            shutil.copyfile(bundle / copied, stage / copied)
        # The proof is on other inputs than the calibration, and what one graph loses, the next may enlarge. Where
        # that is too much, each may lose less, but for graphs that stand alone and are to be as their recipes say.
        is_chain = any(len(manifest.way(modality)) > 1 for modality in manifest.modalities)
        graphs = {name: open_graph(name, feeder, stage, order, progress) for name in manifest.graphs}
        source = ask_source(feeder, order.proof, progress)
        allowed = {name: _allowed(name, order, manifest) for name in graphs}
        narrowed: dict[str, Narrowed] = {}
        proof: Proof | None = None
        for _ in range(_ATTEMPTS if is_chain or order.kept is None else 1):
            before = narrowed
            narrowed = {name: _write(name, one, feeder, stage, *allowed[name]) for name, one in graphs.items()}
            changed = [name for name, one in narrowed.items() if before.get(name) != one]
            if not changed:  # nothing can be finer
                break
            _write_adapters(bundle, manifest, narrowed, stage)
            kernels = {name: one.kernels for name, one in narrowed.items()}
            proof = prove(
                feeder,
                stage,
                source,
                progress,
                precisions=order.to,
                kernels=kernels,
                before=proof,
                changed=changed,
            )
            judged = _judged(order, proof.measured)
            broken = judge(order.budget, judged, _bytes_in(stage))
            if not broken or not _may_be_finer(order, stage):
                break
            losses = {name: _losses(name, one, feeder, stage) for name, one in graphs.items()}
            counted = [name for name, one in narrowed.items() if one.kernels.keys() != {"fp32"}]
            shares = shares_to_keep(
                order.budget, manifest, judged, alone(source, proof), {one: losses[one] for one in counted}
            )
            allowed |= {name: bounds_of(losses[name], one, allowed[name]) for name, one in shares.items()}
        assert proof is not None  # before the first attempt, every graph is to be written
        if broken:
            raise _over_budget(order, broken, narrowed)
        measured = add_times(proof.measured, feeder, stage, progress, kernels)
        smaller = replace(
            manifest,
            graphs={name: _facts(facts, order.to[name], narrowed[name]) for name, facts in manifest.graphs.items()},
            files=file_facts(stage, progress),
            proof=PROOF,
            measured=tuple(measured),
            built_with={**manifest.built_with, "onnxruntime": import_onnxruntime().__version__},
        )
        (stage / MANIFEST_NAME).write_text(smaller.to_json(), encoding="utf-8")
    return smaller


def copied_files(manifest: Manifest) -> tuple[str, ...]:
    """The files of a bundle that its smaller bundle has too: tokenizer, self-test and adapters."""
    tokenizer = (manifest.text.file,) if manifest.text else ()
    return (*tokenizer, manifest.selftest, *(adapter.file for adapter in manifest.adapters.values()))


def _write_adapters(bundle: Path, manifest: Manifest, narrowed: Mapping[str, Narrowed], stage: Path) -> None:
    """Write the adapters of graphs whose channels were turned anew."""
    for adapter in manifest.adapters.values():
        if fed := narrowed[adapter.graph].fed:
            np.savez(stage / adapter.file, allow_pickle=False, **edit_fed(read_adapter(bundle / adapter.file), fed))


def precisions_of(manifest: Manifest) -> str:
    """The precisions of the graphs, as fp32/fp32."""
    return "/".join(facts.precision for facts in manifest.graphs.values())


def check_way(bundle: Path, manifest: Manifest, to: Precision) -> None:
    """BuildError for a source that is not fp32, or cannot be narrowed yet, or whose target has no such precision."""
    targets = WAYS[to]
    is_fp32 = all(facts.precision == "fp32" for facts in manifest.graphs.values())
    if not is_fp32 or manifest.target not in targets:
        raise BuildError(
            f"{bundle}: is {precisions_of(manifest)} for {manifest.target}; "
            f"{to} is made of an fp32 bundle for {' or '.join(targets)}"
        )


def check_cpu(bundle: Path, manifest: Manifest, cpu: CpuChoice | None) -> None:
    """BuildError where a kind of processor is chosen for a bundle that no CPU runs; None: none is chosen. OpenVINO
    runs those for tensorrt on one.
    """
    if cpu is not None and manifest.target == "cuda":
        raise BuildError(
            f"{bundle}: is for {manifest.target}, and --cpu {cpu} is for bundles for the cpu or tensorrt"
        )


def find_cpu(cpu: CpuChoice) -> Cpu:
    """The kind of processor; "auto" is this machine's, as onnxruntime sees it."""
    if cpu == "auto":
        return "avx2" if adds_in_16_bits() else "vnni"
    return cpu


def check_source(bundle: Path, manifest: Manifest, progress: Progress) -> None:
    """BuildError for a source that onnx cannot read, or a damaged one.

    The new manifest would hash a damaged graph's bytes as they are, and every proof would agree with it.
    """
    for file in manifest.files:
        path = bundle / file.name
        if path.is_symlink() or (path.is_file() and path.stat().st_nlink > 1):  # both are refused by onnx as weights
            raise BuildError(
                f"{bundle}: {file.name} is a link, and onnx reads no linked weights; "
                "copy the bundle without links (cp -rL --no-preserve=links) and quantise the copy"
            )
    found = {file.name: file for file in file_facts(bundle, progress)}
    for file in manifest.files:
        if found.get(file.name) != file:
            raise BuildError(
                f"{bundle}: {file.name} is not what was exported (its sha256 differs from the manifest's); "
                "export or copy the bundle again"
            )


def open_graph(
    name: str, feeder: Feeder, stage: Path, order: Order, progress: Progress
) -> Narrowing | Callable[[], Narrowed]:
    """What writes one graph to `stage`: in integers as finely as is asked, in fp16 in one form.

    BuildError for a graph that is not as an export leaves it.
    """
    manifest = feeder.manifest
    source, out = (folder / manifest.graphs[name].file for folder in (feeder.folder, stage))
    feeds = feeds_of(name, feeder, order.calibration)
    if manifest.target != "cpu" and name == FIRST_GRAPH["text"]:
        feeds = [*feeds, padded_pair(feeder, order.calibration.text)]
    if order.to[name] == "fp16":
        return lambda: _narrow_to_half(name, source, out, feeds, progress)
    with _as_exported(feeder, name):
        if manifest.target == "tensorrt":
            trace, traits = read_portable(source)
            lowering = partial(lower, target=manifest.target, name=name, traits=traits)
            prepared = prepare(name, trace, feeds, stage, progress, original=source, lower=lowering)
            return PairNarrowing(prepared, order.recipes[name].kernels[0], progress)
        prepared = prepare(name, plain_graph(name, source), feeds, stage, progress, original=source)
        return IntegerNarrowing(prepared, order.recipes[name], progress, may_fix=not order.is_made_up)


def _write(
    name: str,
    graph: Narrowing | Callable[[], Narrowed],
    feeder: Feeder,
    stage: Path,
    cosine: float | None,
    token_cosine: float | None,
) -> Narrowed:
    """Write one graph to `stage`; one in fp16 has no choice of what it loses."""
    with _as_exported(feeder, name):
        if not isinstance(graph, Narrowing):
            return graph()
        return graph.write(stage / feeder.manifest.graphs[name].file, cosine, token_cosine)


def _allowed(name: str, order: Order, manifest: Manifest) -> Bounds:
    """The cosines that a graph's vectors and its tokens' vectors must keep at first: its part of the budget."""
    budget = order.budget
    # Recipes are compared by single vectors alone: what tokens lose is for each graph to keep here.
    was_compared = order.kept is not None and budget.token_cosine is None
    kept = order.kept[name] if order.kept and was_compared else budget.cosine
    cosine, token_cosine = (
        None if least is None else part_of(manifest, name, least) for least in (kept, budget.token_cosine)
    )
    return cosine, token_cosine


def _losses(name: str, graph: Narrowing | Callable[[], Narrowed], feeder: Feeder, stage: Path) -> Losses:
    """What a graph loses as it lies in `stage` (`Narrowing.losses`); nothing of one in fp16, which has one form."""
    if not isinstance(graph, Narrowing):
        return 0.0, None
    return graph.losses(stage / feeder.manifest.graphs[name].file)


@contextmanager
def _as_exported(feeder: Feeder, name: str) -> Iterator[None]:
    """BuildError where a graph is not as an export leaves it."""
    try:
        yield
    except (InvariantError, PassError) as error:
        reason = error.__cause__ or error
        raise BuildError(f"{feeder.folder}: the {name} graph cannot be quantised ({reason})") from error
    finally:
        give_back(feeder.manifest.weight_bytes)


def feeds_of(name: str, feeder: Feeder, samples: Samples) -> list[Arrays]:
    """The feeds that a graph gets from the samples: of the modality that enters by it, and of those whose earlier
    graphs lead to it, which are run for that. Those of all modalities are spread evenly.
    """
    manifest = feeder.manifest
    placed: list[tuple[float, Arrays]] = []
    for modality in manifest.modalities:
        first, items = FIRST_GRAPH[modality], samples.of(modality)
        feeds: list[Arrays] = []
        if first == name:
            feeds = [feeder.feed([item]) for item in items]
        elif feeder.family.output(first, "single") not in {one.name for one in manifest.graphs[first].outputs}:
            with Graphs(feeder, graph_files(feeder.folder, manifest)) as graphs:
                feeds = [step.feed for item in items for step in graphs.steps(item) if step.graph == name]
        placed += [((place + 1) / len(feeds), feed) for place, feed in enumerate(feeds)]
    return [feed for _, feed in sorted(placed, key=lambda one: one[0])]


def _narrow_to_half(name: str, source: Path, out: Path, samples: Sequence[Arrays], progress: Progress) -> Narrowed:
    def report(what: str, done: int, total: int) -> None:
        progress(f"{what}, {name}", done, total)

    model = lower_portable(name, source, "cuda")
    narrow_to_half(model, measure_ranges(model, samples, out.parent, report))
    wide = sum(_is_wide(node) for node in model.graph)
    kernels = {"fp16": sum(_is_product(node) for node in model.graph) - wide, "fp32": wide}
    progress(f"writing the {name} graph", 0, 1)
    ir.save(model, out, external_data=f"{out.name}_data")
    if has_choice(model):
        save_unmasked(model, out)
    return Narrowed(
        kernels={kernel: count for kernel, count in kernels.items() if count},
        errors={},
        operators=count_operators(model),
    )


def _is_product(node: ir.Node) -> bool:
    weight = node.inputs[1] if node.op_type == "MatMul" else None
    return weight is not None and weight.is_initializer() and len(weight.shape or ()) == 2


def _is_wide(node: ir.Node) -> bool:
    return _is_product(node) and node.inputs[1] is not None and node.inputs[1].dtype == ir.DataType.FLOAT


def _facts(facts: GraphFacts, to: Precision, narrowed: Narrowed) -> GraphFacts:
    return replace(facts, precision=to, operators=narrowed.operators, kernels=narrowed.kernels)


def _judged(order: Order, measured: Sequence[Measurement]) -> list[Measurement]:
    """The figures that decide; where a user's own data were given, only theirs."""
    data = order.proof.name if order.proof else PROOF_DATA
    return [one for one in measured if one.against == "fp32 bundle" and one.data == data]


def _may_be_finer(order: Order, stage: Path) -> bool:
    """Whether graphs may lose less, and become larger; those in fp16 have one form."""
    room = order.budget.size_mb
    return "fp16" not in order.to.values() and (room is None or _bytes_in(stage) <= room * 1e6)


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def _over_budget(order: Order, broken: Sequence[str], narrowed: Mapping[str, Narrowed]) -> BuildError:
    """The error that says so, and names the worst layers; those in fp32 lose nothing."""
    errors = {f"{name} {layer}": error for name, one in narrowed.items() for layer, error in one.errors.items()}
    ranked = sorted(((one, error) for one, error in errors.items() if error), key=lambda item: -item[1])[:_NAMED]
    worst = f"; layers with the largest errors: {', '.join(f'{layer} {error:.1%}' for layer, error in ranked)}"
    advice = "calibrate on data like yours (--calibrate)" if order.is_made_up else "calibrate on more data"
    return BuildError(
        f"as {'/'.join(dict.fromkeys(order.to.values()))} {'; '.join(broken)}{worst if ranked else ''}; {advice}, "
        "or allow more (--budget), or try another precision"
    )
