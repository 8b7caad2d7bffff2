"""Measure the quality of a bundle on a user's data, at several truncate_dims in one pass.

Every input is embedded once, at full width (`embeddings`); a smaller truncate_dim is a cut of that. What is
measured, and what "overall" means, stands in `searches` and `samples`; comparing two bundles is `against`.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np

from edgeclip import Encoder, InputError, Manifest, TruncationWarning
from edgeclip.families.tasks import find_task
from edgeclip.progress import ProgressBar, is_wanted
from edgeclip_bench.measure.documents import versions
from edgeclip_bench.measure.machine_facts import machine
from edgeclip_bench.quality.cache import EmbeddingCache, default_folder
from edgeclip_bench.quality.datasets import (
    ClassificationData,
    Data,
    ImageTextData,
    PageData,
    StsData,
    TextRetrievalData,
    count_judged,
)
from edgeclip_bench.quality.embeddings import Embedder
from edgeclip_bench.quality.pages.averages import PageAverage, average_pages
from edgeclip_bench.quality.pages.scoring import check_options, page_sizes, score_pages
from edgeclip_bench.quality.pages.search import PageOptions, search_pages
from edgeclip_bench.quality.published import OF_MODELS, Published, model_of, published_for
from edgeclip_bench.quality.samples import Sample, judge
from edgeclip_bench.quality.scores import DataScores, Score
from edgeclip_bench.quality.searches import (
    Embedded,
    embed,
    label_of,
    languages_of,
    own_documents,
    searches,
    takes_task,
    tasks_of,
)

CacheFolder = Path | Literal["default"] | None

_KINDS = {
    ImageTextData: "image-text retrieval",
    TextRetrievalData: "text retrieval",
    StsData: "text similarity",
    ClassificationData: "zero-shot classification",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleIdentity:
    """The identity of a bundle: the source of its checkpoint, how it was made, and the hashes of its files."""

    name: str
    family: str
    source: str
    revision: str | None
    checkpoint_sha256: str
    target: str
    precision: Mapping[str, str]
    max_length: int | None
    files: Mapping[str, str]


class Opening(TypedDict, total=False):
    """How a bundle is opened for an evaluation.

    `device` and `threads` as in Encoder.open; an Encoder brings its own. `cache` is the folder that keeps vectors
    between evaluations, None for none. `progress=None` shows bars when stderr is a terminal.
    """

    device: str
    threads: int | None
    cache: CacheFolder
    progress: bool | None


class Documented:
    """A dataclass that is a JSON document."""

    def as_dict(self) -> dict[str, Any]:
        """The document, as JSON has it."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation(Documented):
    """A bundle's figures, and what they depend on."""

    bundle: BundleIdentity
    device: str
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    dims: tuple[int, ...]
    data: tuple[DataScores, ...]
    page_averages: tuple[PageAverage, ...] = ()


def evaluate(
    bundle: Path | Encoder,
    data: Sequence[Data],
    *,
    truncate_dims: Sequence[int] | None = None,
    task: str | None = None,
    max_pixels: Sequence[int] = (),
    pooled: Sequence[int] = (),
    **opening: Unpack[Opening],
) -> Evaluation:
    """Every metric of the bundle on each data set, at each of `truncate_dims` and at full width.

    Without `truncate_dims`, at those the model was trained for. `task` is that of captions and queries; for None see
    `edgeclip_bench.quality.tasks`. Pages are searched at each of `max_pixels` (none: the model's own), and by multi
    vectors too where the model has some, as they are and pooled by each factor of `pooled`. Raises InputError for
    options and data that cannot be, and what Encoder.open raises. Texts that were cut are counted in one
    TruncationWarning; a cache that fails is a CacheWarning.
    """
    with open_embedder(bundle, **opening) as embedder:
        manifest = embedder.encoder.manifest
        check_data(data, task, manifest)
        dims = choose_dims(manifest, truncate_dims)
        options = page_options(dims, max_pixels, pooled)
        check_options(manifest, data, options)
        judge_one = partial(_judge, embedder, task=task, options=options, is_shown=is_wanted(opening.get("progress")))
        found = evaluation_of(bundle, embedder.encoder, dims, tuple(map(judge_one, data)))
    warn_of_cut(found)
    return found


@contextmanager
def open_embedder(
    bundle: Path | Encoder,
    *,
    device: str = "auto",
    threads: int | None = None,
    cache: CacheFolder = "default",
    progress: bool | None = None,
) -> Iterator[Embedder]:
    """The bundle opened, with its cache; an Encoder stays open."""
    with ExitStack() as stack:
        if isinstance(bundle, Encoder):
            encoder = bundle
        else:
            encoder = stack.enter_context(Encoder.open(bundle, device=device, threads=threads))
        kept = stack.enter_context(EmbeddingCache(default_folder() if cache == "default" else cache))
        yield Embedder(encoder, kept, progress=progress)


def evaluation_of(
    bundle: Path | Encoder, encoder: Encoder, dims: tuple[int, ...], scored: tuple[DataScores, ...]
) -> Evaluation:
    """The scores with what they depend on."""
    manifest = encoder.manifest
    return Evaluation(
        bundle=BundleIdentity(
            name=manifest.source.name if isinstance(bundle, Encoder) else str(bundle),
            family=manifest.family,
            source=manifest.source.name,
            revision=manifest.source.revision,
            checkpoint_sha256=manifest.source.weights_sha256,
            target=manifest.target,
            precision={graph: facts.precision for graph, facts in manifest.graphs.items()},
            max_length=manifest.text.max_length if manifest.text else None,
            files={file.name: file.sha256 for file in manifest.files},
        ),
        device=encoder.device,
        versions=versions(),
        machine=machine(),
        dims=dims,
        data=scored,
        page_averages=average_pages(scored, model_of(manifest.family, manifest.embedding_dim)),
    )


def score_data(embedded: Embedded, samples: Iterable[tuple[int, Sample]]) -> DataScores:
    """The scores of one data set, from its samples (dim, sample); InputError where no figure can be made of one."""
    data, full = embedded.data, embedded.queries.shape[1]
    try:
        scores = [_score(data, dim, sample, embedded.model) for dim, sample in samples]
    except InputError as error:  # scores that are all the same, too few pairs
        raise InputError(f"{label_of(data)}: {error}") from error
    whole = {_kind(score): score.value for score in scores if score.dim == full}
    scores = [replace(score, kept=score.value / of if (of := whole[_kind(score)]) > 0 else None) for score in scores]
    return DataScores(
        name=data.name,
        label=label_of(data),
        kind=_KINDS[type(data)],
        sizes=sizes_of(data),
        languages=languages_of(data),
        task=embedded.tasks.queries,
        item_task=embedded.tasks.items,
        embedded=embedded.counts,
        scores=tuple(sorted(scores, key=lambda score: score.dim)),
    )


def warn_of_cut(*found: Evaluation) -> None:
    """Warn once of all texts that were cut; of several bundles, which of them cut how many."""
    cuts = [(cut, side.bundle) for side in found if (cut := sum(data.embedded.cut for data in side.data))]
    said = [
        f"{cut} texts were cut to {bundle.max_length} tokens" + f" by {bundle.name}" * (len(found) > 1)
        for cut, bundle in cuts
    ]
    if cuts:
        warnings.warn(TruncationWarning("; ".join(said), cut=sum(cut for cut, _ in cuts)), stacklevel=3)


def choose_dims(manifest: Manifest, truncate_dims: Sequence[int] | None) -> tuple[int, ...]:
    """The dimensions to evaluate at, ascending: those asked for, or trained for, and the full width."""
    full, space = manifest.embedding_dim, manifest.spaces.single
    dims = space.matryoshka_dims if truncate_dims is None else truncate_dims
    for dim in dims:
        if space.is_strict and dim not in (*space.matryoshka_dims, full):
            listed = ", ".join(map(str, sorted({*space.matryoshka_dims, full})))
            raise InputError(f"truncate_dim is {dim!r}, wanted one that the model was trained for: {listed}")
        if type(dim) is not int or not 1 <= dim <= full:
            raise InputError(f"truncate_dim is {dim!r}, wanted an int from 1 to {full}")
    return tuple(sorted({*dims, full}))


def check_data(data: Sequence[Data], task: str | None, manifest: Manifest) -> None:
    """InputError for data that cannot be evaluated on this bundle, and for a task that is unknown or idle."""
    if task is not None:
        find_task(manifest, task, "text")  # says which tasks there are
    if not data:
        raise InputError("no data to evaluate on")
    label, times = Counter(map(label_of, data)).most_common(1)[0]
    if times > 1:
        raise InputError(
            f"{times} data sets are called {label}; evaluate one at a time, or rename the file or folder of one"
        )
    for one in data:
        if empty := [what for what, count in sizes_of(one).items() if not count]:
            raise InputError(f"{label_of(one)}: holds no {empty[0]}")
        has_images = isinstance(one, ImageTextData | ClassificationData | PageData)
        for modality in ("text", "image") if has_images else ("text",):
            if modality not in manifest.modalities:
                raise InputError(
                    f"{label_of(one)}: holds {modality}s, and {manifest.source.name} takes "
                    f"{' and '.join(f'{known}s' for known in manifest.modalities)} alone"
                )
        tasks_of(one, task, manifest)  # a language that is not named or not known
    if task is not None and not any(takes_task(one, manifest) for one in data):
        raise InputError(
            f"task {task!r} goes before captions and queries; {', '.join(map(label_of, data))} has neither"
        )


def sizes_of(data: Data) -> dict[str, int]:
    """The numbers of a data set's images, captions, queries and so on."""
    if isinstance(data, ImageTextData):
        return {"images": len(data.images), "captions": len(data.captions)}
    if isinstance(data, TextRetrievalData):
        sizes = {"documents": len(data.corpus), "queries": len(data.queries), **count_judged(data.grades)}
        own = int(np.count_nonzero(own_documents(data) >= 0))
        return {**sizes, "queries that leave out the document of their own id": own} if own else sizes
    if isinstance(data, PageData):
        return page_sizes(data)
    if isinstance(data, StsData):
        return {"pairs": len(data.scores)}
    return {"images": len(data.images), "classes": len(data.classes), "templates": len(data.templates)}


def page_options(dims: tuple[int, ...], max_pixels: Sequence[int], pooled: Sequence[int]) -> PageOptions:
    """The settings to search pages with: each once, and multi vectors also as they are."""
    return PageOptions(
        dims=dims, max_pixels=tuple(dict.fromkeys(max_pixels)) or (None,), pooled=tuple(sorted({1, *pooled}))
    )


def _judge(embedder: Embedder, data: Data, *, task: str | None, options: PageOptions, is_shown: bool) -> DataScores:
    """Embed and judge one data set, whose vectors are given up with the return."""
    if isinstance(data, PageData):
        return score_pages(search_pages(embedder, data, task, options), is_shown=is_shown)
    embedded = embed(embedder, data, task)

    def samples() -> Iterator[tuple[int, Sample]]:
        for dim in options.dims:
            for sample in judge(embedded, dim, searches(embedded, dim)):
                yield dim, sample
            bar.advance()

    with ProgressBar(f"{label_of(data)}: judging, dims", len(options.dims), is_shown=is_shown) as bar:
        return score_data(embedded, samples())


def _score(data: Data, dim: int, sample: Sample, model: str | None) -> Score:
    figure, interval = sample.figure(), sample.interval()
    known = _published(data, dim, sample, model)
    return Score(
        **sample.facts(dim),
        value=figure,
        low=interval.low,
        high=interval.high,
        kept=None,
        published=known.value if known else None,
        published_source=known.source if known else None,
        difference=figure - known.value if known else None,
    )


def _published(data: Data, dim: int, sample: Sample, model: str | None) -> Published | None:
    """The makers' figure of the same kind.

    One without a language is the mean over those that they list. Ours is that too if it is over the same
    languages, and where captions search, which are taken all together, each language has as many of them.
    Captions without a language are taken for English, as `published_for` does.
    """
    direction = sample.direction
    if not isinstance(data, ImageTextData) or data.benchmark is None:
        return None
    if direction != "text_to_image" and direction != "image_to_text":
        return None
    known = published_for(data.benchmark, sample.metric, direction, sample.language, dim, model)
    if known is None or sample.language is not None:
        return known
    ours = Counter(caption.language for caption in data.captions if caption.language)
    theirs = {
        figure.language
        for figure in OF_MODELS.get(model or "", ())
        if (figure.dataset, figure.metric, figure.direction) == (known.dataset, sample.metric, direction)
    } - {None}
    is_even = direction == "image_to_text" or len(set(ours.values())) <= 1
    return known if is_even and (set(ours) or {"en"}) == theirs else None


def _kind(score: Score) -> tuple[object, ...]:
    return score.metric, score.direction, score.language, score.is_overall
