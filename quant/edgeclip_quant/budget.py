"""The budget of a quantised bundle: how much it may lose, and whether it lost more. Nothing is run here."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from edgeclip.errors import InputError
from edgeclip.manifest import Manifest, Measurement, Modality, Precision, RetrievalChange, Space

# A bound's name on the command line, its field, and what it may be.
_BOUNDS: Mapping[str, tuple[str, float, float]] = {
    "cosine": ("cosine", -1, 1),
    "token": ("token_cosine", -1, 1),
    "recall": ("recall_points", 0, 100),
    "size_mb": ("size_mb", 0, 1e6),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """`cosine`: the least of any single vector; `recall_points`: the most that recall@5, and nDCG@5 of multi vectors,
    may fall; `size_mb`: the size in 1e6 bytes; `token_cosine`: the least of any vector among multi vectors.

    None is no bound. InputError for a cosine outside -1 to 1, points outside 0 to 100, a size outside 0 to 1e6.
    """

    cosine: float | None
    recall_points: float | None
    size_mb: float | None
    token_cosine: float | None = None

    def __post_init__(self) -> None:
        for name, (field, low, high) in _BOUNDS.items():
            value = getattr(self, field)
            if value is not None and not low <= value <= high:  # NaN neither
                raise InputError(f"budget: {name} is {value:g}, wanted {low:g} to {high:g}")

    def least_cosine(self, space: Space) -> float | None:
        """The least cosine of any vector of a space."""
        return self.cosine if space == "single" else self.token_cosine

    def __str__(self) -> str:
        """The form that `parse_budget` reads."""
        bounds = {name: getattr(self, field) for name, (field, _, _) in _BOUNDS.items()}
        return ",".join(f"{name}={value:g}" for name, value in bounds.items() if value is not None)


# int8 and fp16 are to be taken for the source itself. int4 is not: 15 levels leave an error of a tenth in every
# layer, so its bounds only separate a small model that works from one that does not; the manifest has the figures.
DEFAULT_BUDGETS: Mapping[Precision, Budget] = {
    "fp16": Budget(cosine=0.9995, recall_points=0.5, size_mb=None),
    "int8": Budget(cosine=0.99, recall_points=0.5, size_mb=None),
    "int4": Budget(cosine=0.8, recall_points=5.0, size_mb=None),
}


# The least cosine of any token's vector in a model with multi vectors, where a budget bounds cosines and says nothing
# of tokens: each of them is one of many, and int8 leaves the worst of hundreds several times as far as the mean.
_TOKEN_COSINES: Mapping[Precision, float] = {"fp16": 0.998, "int8": 0.98, "int4": 0.7}
# The error of every layer adds up: the 361 layers of jina-embeddings-v4 at full size with random weights leave a
# picture's worst token a cosine of 0.964, and 0.966 in blocks of 8 bits with attention in fp32.
_MANY_LAYERS = 140
_DEEP_TOKEN_COSINES: Mapping[Precision, float] = {**_TOKEN_COSINES, "int8": 0.95}
_PRODUCTS = ("MatMul", "Gemm", "com.microsoft.FusedMatMul")


def token_bound(precision: Precision, layers: int) -> float:
    """The least cosine of any token's vector of a graph with so many linear layers, where no budget says one."""
    return (_DEEP_TOKEN_COSINES if layers > _MANY_LAYERS else _TOKEN_COSINES)[precision]


def with_tokens(budget: Budget, precision: Precision, manifest: Manifest) -> Budget:
    """The budget with a bound on tokens, for a bundle with multi vectors."""
    if manifest.spaces.multi is None or budget.cosine is None or budget.token_cosine is not None:
        return budget
    graphs = [facts.operators for facts in manifest.graphs.values()]
    layers = max(sum(operators.get(one, 0) for one in _PRODUCTS) for operators in graphs)
    return replace(budget, token_cosine=token_bound(precision, layers))


# A fall that is not laid to chance, of two queries or more.
_PLAIN_POINTS = 10.0


def parse_budget(text: str | None, precision: Precision) -> Budget:
    """The default budget of a precision, with bounds as in "cosine=0.99,recall=0.5,size_mb=900" in place of its own.

    No word switches a bound off: a value that bounds nothing, as cosine=-1, does, and stays readable. Raises
    InputError for a name that is unknown or repeated, and for a value that is no number or no bound.
    """
    bounds: dict[str, float] = {}
    for part in text.split(",") if text is not None else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in _BOUNDS:
            raise InputError(
                f"budget: {part.strip()!r} is no bound; wanted some of cosine=C, token=C, recall=POINTS, size_mb=MB, "
                "with commas between"
            )
        field = _BOUNDS[name][0]
        if field in bounds:
            raise InputError(f"budget: {name} stands there twice")
        try:
            bounds[field] = float(value)
        except ValueError as error:
            raise InputError(f"budget: {name} is {value!r}, wanted a number") from error
    return replace(DEFAULT_BUDGETS[precision], **bounds)


def judge(budget: Budget, measurements: Sequence[Measurement], size_bytes: int) -> list[str]:
    """A sentence for each bound that `measurements` or the bundle's size break; none when all hold.

    NaN breaks every budget.
    """
    broken = []
    modalities = {one.modality for one in measurements}
    for one in measurements:
        if math.isnan(one.worst_cosine):
            broken.append(f"{one.modality} vectors{_named(one)} are NaN or zeros on {one.data}")
        elif (least := budget.least_cosine(one.space)) is not None and one.worst_cosine < least:
            broken.append(
                f"{one.modality} vectors{_named(one)} have a worst cosine of {_below(one.worst_cosine, least)} on "
                f"{one.data}, wanted {least:g}"
            )
        found = one.retrieval
        if found is not None and budget.recall_points is not None and is_loss(found, budget.recall_points):
            broken.append(
                f"{found.metric} of {found.queries} {_search(one.modality, modalities)} on {one.data} fell by "
                f"{-found.points:.2f} points ({found.reference:.1%} to {found.recall:.1%}), "
                f"wanted {budget.recall_points:g} at most"
            )
    if budget.size_mb is not None and size_bytes > budget.size_mb * 1e6:
        broken.append(f"the bundle has {size_bytes / 1e6:.1f} MB, wanted {budget.size_mb:g} at most")
    return broken


def share_to_keep(budget: Budget, measurements: Sequence[Measurement]) -> float:
    """The share of what vectors lost (1 - cosine) that they may lose for all bounds to hold, at most 1.

    Results of searches change places as vectors are moved, by the root of that loss: half as many at a quarter of it.
    """
    shares = [1.0]
    for one in measurements:
        least, found = budget.least_cosine(one.space), one.retrieval
        if math.isnan(one.worst_cosine):
            shares.append(0.0)
        elif least is not None and one.worst_cosine < least:
            shares.append((1 - least) / (1 - one.worst_cosine))
        if found is not None and budget.recall_points is not None and is_loss(found, budget.recall_points):
            most = max(budget.recall_points, 100 / found.queries)
            shares.append((most / -found.points) ** 2 if -found.points > most else 1.0)
    return min(shares)


def _below(value: float, bound: float) -> str:
    """A value below a bound, with as many digits as show that it is."""
    return next((text for digits in (4, 7) if float(text := f"{value:.{digits}f}") < bound), repr(value))


def _named(one: Measurement) -> str:
    """The name of the space, where it is not the usual one."""
    return "" if one.space == "single" else f" ({one.space})"


def _search(modality: Modality, modalities: Collection[Modality]) -> str:
    """The search whose queries are of one modality, in words; texts alone search each other."""
    if modality == "image":
        return "images that search texts"
    return "texts that search images" if "image" in modalities else "texts that search texts"


def is_loss(change: RetrievalChange, points: float) -> bool:
    """Whether recall fell by more than `points`, as far as this number of queries can show.

    One query is 100 / queries points. Where that is no more than the budget, the figure itself is compared with it.
    With fewer queries a single near-tie that turned over is more than the budget, and shows nothing: there the whole
    interval must lie below it, or two queries and a tenth of all be lost: of 8 queries no interval would tell a
    quarter of them from chance.
    """
    is_fine_enough = change.queries * points >= 100
    is_plain = change.points < -max(points, _PLAIN_POINTS) and -change.points * change.queries >= 200
    return change.high < -points or is_plain or (is_fine_enough and change.points < -points)
