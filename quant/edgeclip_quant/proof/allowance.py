"""What each graph of a bundle may lose for the bundle to keep its budget: at first, and after a proof broke it."""

from collections.abc import Mapping, Sequence

from edgeclip.manifest import Manifest, Measurement, Modality, Space
from edgeclip_quant.budget import Budget, share_to_keep

# What a graph loses of its vectors and of its tokens' vectors (1 - cosine), None where it has none; or the least
# cosines of both, None for any.
Losses = tuple[float, float | None]
Bounds = tuple[float | None, float | None]
_SPACES: tuple[Space, Space] = ("single", "multi")  # in the order of these
# Of what a graph lost, it may lose so much when the bundle is tried again.
_LEAST_SHARE, _MOST_SHARE = 0.05, 0.8
# Of what vectors lose, what a graph's own share of it must be for the graph to have a part in it.
_COUNTS = 0.2
_SMALLEST = 1e-9


def is_followed(manifest: Manifest, graph: str) -> bool:
    """Whether another graph takes what a graph gives."""
    file = manifest.graphs[graph].file
    ways = [manifest.way(modality) for modality in manifest.modalities]
    return any(one.file == file for way in ways for one in way[:-1])


def part_of(manifest: Manifest, graph: str, cosine: float) -> float:
    """The cosine that a graph must keep so that all graphs on a way together lose what they may."""
    file = manifest.graphs[graph].file
    ways = [manifest.way(modality) for modality in manifest.modalities]
    count = max(len(way) for way in ways if file in [one.file for one in way])
    return 1 - (1 - cosine) / count


def shares_to_keep(
    budget: Budget,
    manifest: Manifest,
    judged: Sequence[Measurement],
    alone: Mapping[Modality, Sequence[Measurement]],
    losses: Mapping[str, Losses],
) -> dict[str, Mapping[Space, float]]:
    """The graphs that must lose less for the budget to hold, and what share of what they lost they may lose, of the
    vectors of each space that is at fault.

    `judged` broke the budget; `alone` is what each modality's vectors would show without the others'. A search breaks
    by its queries' vectors or by those that it is among: where one modality's alone would break the budget, the
    graphs of the other stay as they are. `losses` are of the graphs that lose anything. A graph that gives vectors
    stays too where it loses little by itself of what they lost: what graphs before it lose is at fault.
    """
    by_modality = {modality: _by_space(budget, some) for modality, some in alone.items()}
    if not any(by_modality.values()):  # only all together do
        by_modality = dict.fromkeys(by_modality, _by_space(budget, judged))
    found: dict[str, Mapping[Space, float]] = {}
    for modality, broken in by_modality.items():
        if broken:
            lost = _used(_lost([one for one in judged if one.modality == modality]), budget)
            names = [name for name in manifest.graphs_of(modality) if name in losses]
            followed = {one for one in names if is_followed(manifest, one)}
            at_fault = followed | {one for one in names if _used(losses[one], budget) >= _COUNTS * lost}
            for name in at_fault or names:
                # What another graph takes leads to vectors of every space.
                own = dict.fromkeys(_SPACES, min(broken.values())) if name in followed else broken
                before = found.get(name, {})
                found[name] = {**before, **{space: min(one, before.get(space, 1.0)) for space, one in own.items()}}
    return found


def bounds_of(losses: Losses, shares: Mapping[Space, float], before: Bounds) -> Bounds:
    """The cosines that a graph must keep to lose those shares of its losses; those of `before` in other spaces."""
    single, token = (
        bound if lost is None or space not in shares else 1 - shares[space] * lost
        for space, lost, bound in zip(_SPACES, losses, before, strict=True)
    )
    return single, token


def _by_space(budget: Budget, measured: Sequence[Measurement]) -> Mapping[Space, float]:
    """What share of its loss each space may keep whose vectors lost too much."""
    shares = {space: share_to_keep(budget, [one for one in measured if one.space == space]) for space in _SPACES}
    return {space: min(max(one, _LEAST_SHARE), _MOST_SHARE) for space, one in shares.items() if one < 1}


def _lost(measured: Sequence[Measurement]) -> Losses:
    """What vectors and tokens' vectors lost in a proof, at most."""
    worst = {one.space: 1 - one.worst_cosine for one in measured}
    return worst["single"], worst.get("multi")


def _used(lost: Losses, budget: Budget) -> float:
    """What is lost beside what may be, of a vector or of a token's, whichever is more."""
    pairs = zip(lost, (budget.cosine, budget.token_cosine), strict=True)
    used = [one / max(1 - least, _SMALLEST) for one, least in pairs if one is not None and least is not None]
    return max(used, default=0.0)
