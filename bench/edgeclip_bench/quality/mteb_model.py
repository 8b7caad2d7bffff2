"""Run mteb on a bundle: mteb brings tasks, data and scores, the bundle gives the vectors.

    mteb.evaluate(BundleModel("bundle"), tasks=mteb.get_tasks(["STSBenchmark"]))

Inputs are treated as mteb treats them for the model itself, so that scores compare (`edgeclip_bench.quality.tasks`).
What is text and image at once is the sum of both vectors, and of multi vectors the rows of both, which are compared
by the runtime's exact MaxSim. mteb takes seconds to import, so it is loaded when a model is made.
"""

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from edgeclip import Encoder, Manifest, MultiVectors
from edgeclip.errors import InputError
from edgeclip.families.tasks import find_task
from edgeclip.host.installation import needs_extra
from edgeclip.inputs.checks import check_truncate_dim
from edgeclip.inputs.tokenization import check_max_length
from edgeclip.manifest import Modality
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip.tables import format_table
from edgeclip_bench.quality.tasks import CODE, chooses_adapters, mteb_task

if TYPE_CHECKING:
    from mteb import AbsTask, TaskMetadata
    from mteb.models import ModelMeta
    from mteb.types import Array, BatchedInput, PromptType
    from torch.utils.data import DataLoader


class BundleModel:
    """An edgeclip bundle as mteb sees a model (its EncoderProtocol): for texts, images, and both fused.

    `query_task` is the task of what mteb calls a query, in place of the one that mteb's type of task has. With
    `multivector` each input has a vector for each token. Raises MissingExtraError without mteb, InputError for a
    wrong option, and what `Encoder.open` raises.
    """

    def __init__(
        self,
        bundle: str | Path,
        *,
        truncate_dim: int | None = None,
        device: str = "auto",
        threads: int | None = None,
        query_task: str | None = None,
        max_length: int | None = None,
        max_pixels: int | None = None,
        multivector: bool = False,
    ) -> None:
        _load_mteb()
        self.encoder = Encoder.open(bundle, device=device, threads=threads)
        # A wrong option is said now, not when the data is loaded.
        manifest = self.encoder.manifest
        check_truncate_dim(truncate_dim, manifest)
        if manifest.text:
            check_max_length(max_length, manifest.text)
        if query_task is not None:
            find_task(manifest, query_task, "text")
        if multivector and truncate_dim is not None:
            raise InputError(f"truncate_dim {truncate_dim} is for single vectors; leave it out, or multivector")
        self._truncate_dim, self._query_task, self._max_length = truncate_dim, query_task, max_length
        self._max_pixels, self._is_multi = max_pixels, multivector
        self.dim = manifest.need_multi().dim if multivector else truncate_dim or manifest.embedding_dim
        options = {"truncate_dim": truncate_dim, "query_task": query_task, "max_length": max_length}
        options |= {"max_pixels": max_pixels, "multivector": multivector or None}
        self.mteb_model_meta = describe(
            manifest, {name: value for name, value in options.items() if value is not None}
        )

    def encode(
        self,
        inputs: "DataLoader[BatchedInput]",
        *,
        task_metadata: "TaskMetadata",
        hf_split: str,
        hf_subset: str,
        prompt_type: "PromptType | None" = None,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Vectors (N, dim) float32 of everything in the loader, in its order; of multi vectors a list of matrices.

        Unit vectors, but of inputs with text and image the sum of the two: cosine takes no notice of length.
        InputError for audio and video.
        """
        role = prompt_type and str(prompt_type.value)
        # mteb says 32 where nobody said anything. On the CPU the runtime's own plan is as fast (texts) and
        # spares the memory of 32 images at once.
        at_once = None if self.encoder.device == "cpu" else batch_size
        texts: list[str] = []
        images: list[NDArray[np.float32]] = []  # of each batch, or of each image
        image_task = self._task(task_metadata, role, "image")
        with ProgressBar("batches", len(inputs), is_shown=is_wanted(show_progress_bar)) as bar:
            for batch in inputs:
                self.check_modalities(task_metadata.name, {"text", "image", "audio", "video"} & batch.keys())
                # All texts go to the runtime together, for it batches those of one length.
                texts += batch.get("text", ())
                if "image" in batch:
                    images += self._encode_images(batch["image"], image_task, at_once)
                bar.advance()
        if images and not texts:
            return images if self._is_multi else np.concatenate(images)
        options: dict[str, Any] = {
            "task": self._task(task_metadata, role, "text"),
            "max_length": self._max_length,
            "batch_size": at_once,
            "progress": show_progress_bar,
        }
        if self._is_multi:
            found = list(self.encoder.encode_text_multivector(texts, **options))
            return [np.concatenate(both) for both in zip(found, images, strict=True)] if images else found
        vectors = self.encoder.encode_text(texts, truncate_dim=self._truncate_dim, **options)
        return vectors + np.concatenate(images) if images else vectors

    def _task(self, task: "TaskMetadata", role: str | None, modality: Modality) -> str | None:
        """The task of an input: `role` is "query", "document" or None."""
        manifest = self.encoder.manifest
        if role == "query" and self._query_task in manifest.tasks_of(modality):
            return self._query_task
        is_code = CODE in manifest.tasks and _is_code(task)
        return mteb_task(manifest, task.type, role, modality, is_code=is_code)

    def _encode_images(self, images: Any, task: str | None, at_once: int | None) -> list[NDArray[np.float32]]:
        """The matrices of images, or in one array (N, dim) their vectors."""
        options: dict[str, Any] = {
            "task": task,
            "max_pixels": self._max_pixels,
            "batch_size": at_once,
            "progress": False,
        }
        if self._is_multi:
            return list(self.encoder.encode_image_multivector(images, **options))
        return [self.encoder.encode_image(images, truncate_dim=self._truncate_dim, **options)]

    def check_modalities(self, task: str, found: set[str]) -> None:
        """InputError for a task of mteb with inputs that the bundle does not take."""
        known = self.encoder.modalities
        if unread := sorted(found.difference(known)):
            raise InputError(f"task {task} has {', '.join(unread)}; a bundle reads {' and '.join(known)}")

    def similarity(self, embeddings1: "Array", embeddings2: "Array") -> "Array":
        """The cosine, or MaxSim, of every row of one with every row of the other, (N, dim), (M, dim) -> (N, M)."""
        if self._is_multi:
            return _maxsim(embeddings1, embeddings2)
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: "Array", embeddings2: "Array") -> "Array":
        """The cosine, or MaxSim, of each row of one with the same row of the other, (N, dim), (N, dim) -> (N,)."""
        if self._is_multi:
            import torch

            pairs = zip(embeddings1, embeddings2, strict=True)
            return torch.cat([torch.as_tensor(_maxsim([one], [other]))[0] for one, other in pairs])
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _is_code(task: "TaskMetadata") -> bool:
    """Whether a task of mteb is about programs, by its domain or a language of it."""
    from mteb.languages import PROGRAMMING_LANGS

    return "Programming" in (task.domains or ()) or not set(PROGRAMMING_LANGS).isdisjoint(task.languages)


def _maxsim(queries: Any, documents: Any) -> "Array":
    """The exact score of each query with each document, (N, M): matrices (T, dim), or arrays of such."""
    import torch

    rows, others = (MultiVectors.of(np.asarray(one, np.float32) for one in side) for side in (queries, documents))
    return torch.from_numpy(rows.maxsim(others))


def describe(manifest: Manifest, options: Mapping[str, Any]) -> "ModelMeta":
    """The facts that mteb writes beside the scores, from the manifest and the given options of a `BundleModel`."""
    from mteb.models import ModelMeta
    from mteb.models.model_meta import ScoringFunction
    from mteb.types import Licenses

    source = manifest.source
    multi = manifest.need_multi() if "multivector" in options else None
    full = manifest.embedding_dim if multi is None else multi.dim
    return ModelMeta.create_empty(
        {
            "name": f"edgeclip/{Path(source.name).name}",
            # mteb finds old results by name, revision and options. The manifest holds the hash of every file, so an
            # fp32 and an int8 bundle of one checkpoint are never taken for each other.
            "revision": hashlib.sha256(manifest.to_json().encode()).hexdigest()[:40],
            "n_parameters": sum(graph.parameters for graph in manifest.graphs.values()),
            "memory_usage_mb": manifest.weight_bytes / 2**20,
            "max_tokens": options.get("max_length") or (manifest.text.max_length if manifest.text else None),
            "embed_dim": options.get("truncate_dim") or full,
            "license": source.license if source.license in get_args(Licenses) else "not specified",
            "open_weights": True,
            "framework": ["ONNX"],
            "similarity_fn_name": ScoringFunction.COSINE if multi is None else ScoringFunction.MAX_SIM,
            "use_instructions": "query_task" in options or chooses_adapters(manifest),
            "adapted_from": source.name,
            "modalities": list(manifest.modalities),
            "experiment_kwargs": dict(options) or None,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The main score of one task at `dim` dimensions: the mean of its `parts`, named "split/subset"."""

    task: str
    metric: str
    dim: int
    main_score: float
    parts: dict[str, float]


def _load_mteb() -> ModuleType:
    with needs_extra("mteb"):
        import mteb
    return mteb


def find_tasks(names: Iterable[str]) -> list["AbsTask"]:
    """mteb's tasks of these names; InputError for one that it does not know."""
    mteb = _load_mteb()
    tasks: list[AbsTask] = []
    for name in names:
        try:
            tasks.append(mteb.get_task(name))
        except KeyError as error:  # its text names the nearest task
            raise InputError(f"mteb knows no such task ({str(error.args[0]).removeprefix('KeyError: ')})") from error
    return tasks


def score_tasks(model: BundleModel, tasks: Iterable["AbsTask"], results: Path | None = None) -> Iterator[Score]:
    """Run the tasks one by one. mteb keeps its results in the folder and does not run again what it finds there.

    InputError for a task that the bundle cannot do, for data that cannot be loaded, and for a folder that cannot be
    written.
    """
    mteb, tasks = _load_mteb(), list(tasks)
    for task in tasks:
        model.check_modalities(task.metadata.name, set(task.metadata.modalities))
    for task in tasks:
        name = task.metadata.name
        try:
            cache = mteb.ResultCache(results) if results else None
            found = mteb.evaluate(model, task, cache=cache, encode_kwargs={"show_progress_bar": is_wanted(None)})
        except OSError as error:
            raise InputError(f"task {name}: data or results cannot be read or written ({error})") from error
        if found.exceptions:  # of data that is not public mteb only warns
            raise InputError(f"task {name}: {found.exceptions[0].exception}")
        result = found.task_results[0]
        yield Score(
            task=name,
            metric=task.metadata.main_score,
            dim=model.dim,
            main_score=float(result.get_score()),
            parts={
                f"{split}/{part['hf_subset']}": float(part["main_score"])
                for split, parts in result.scores.items()
                for part in parts
            },
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this case on the command line."""
    add = parser.add_argument
    add("bundle", metavar="BUNDLE", type=Path, help="the folder of a bundle")
    add("--tasks", nargs="+", required=True, metavar="TASK", help="mteb's names of the tasks")
    add("--truncate-dim", type=int, action="append", metavar="N", help="keep the first N dimensions; may be repeated")
    add("--multivector", action="store_true", help="a vector for each token, compared by MaxSim")
    add("--max-pixels", type=int, metavar="N", help="scale images down to N pixels, where the model takes any size")
    add("--query-task", metavar="T", help="the task of queries (that of mteb's type of task)")
    add("--max-length", type=int, metavar="N", help="cut texts at N tokens")
    add("--out", type=Path, metavar="DIR", help="keep mteb's results here; what is there already is not run again")
    add("--device", default="auto", help="auto, cpu, cuda[:n] or tensorrt[:n] (auto)")
    add("--threads", type=int, metavar="N", help="threads (all that may be used; 1 where graphs are tiny)")
    add("--json", action="store_true", help="JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    """Run tasks at every width asked for and print their main scores; returns the exit status."""
    tasks = find_tasks(options.tasks)
    names = ("device", "threads", "query_task", "max_length", "max_pixels", "multivector")
    kept = {name: getattr(options, name) for name in names}
    scores: list[Score] = []
    for truncate_dim in options.truncate_dim or [None]:
        model = BundleModel(options.bundle, truncate_dim=truncate_dim, **kept)
        with model.encoder:
            scores += score_tasks(model, tasks, options.out)
    from edgeclip_bench.measure.documents import make_document  # psutil, which comes with the extra too

    report = make_document(
        __name__,
        {
            "model": model.mteb_model_meta.name,
            "revision": model.mteb_model_meta.revision,
            "precision": {graph: facts.precision for graph, facts in model.encoder.manifest.graphs.items()},
            **kept,
            "device": model.encoder.device,
            "scores": [asdict(score) for score in scores],
        },
    )
    print(json.dumps(report, indent=2) if options.json else _table(report["scores"]))
    return 0


def _table(scores: Sequence[dict[str, Any]]) -> str:
    cells = {(score["task"], score["metric"], score["dim"]): f"{score['main_score']:.4f}" for score in scores}
    dims = dict.fromkeys(dim for *_, dim in cells)
    tasks = dict.fromkeys((task, metric) for task, metric, _ in cells)
    rows = [(*task, *(cells[*task, dim] for dim in dims)) for task in tasks]
    return format_table(("task", "main score", *(f"{dim} dim" for dim in dims)), rows)
