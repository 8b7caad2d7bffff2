"""After a proof that broke the budget, those graphs must lose less that are at fault, in the space that is."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from edgeclip import Manifest
from edgeclip.manifest import Measurement, Modality, Space
from edgeclip_quant.budget import Budget
from edgeclip_quant.proof.allowance import Losses, bounds_of, part_of, shares_to_keep
from tests.scenes.measurements import measured

BUDGET = Budget(cosine=0.99, recall_points=None, size_mb=None, token_cosine=0.9)
# What vectors and tokens lose within the budget; and by graphs of their own.
GOOD = {("text", "single"): 0.001, ("text", "multi"): 0.01, ("image", "single"): 0.001, ("image", "multi"): 0.01}
SMALL: Losses = (0.0001, 0.001)  # of the text graph by itself
LARGE: Losses = (0.001, 0.1)
OF_FEATURES: Losses = (0.0, 0.002)
Lost = Mapping[tuple[Modality, Space], float]


@pytest.fixture(scope="module")
def manifest(v4_bundle: Path) -> Manifest:
    return Manifest.read(v4_bundle)


def found(manifest: Manifest, lost: Lost, losses: Mapping[str, Losses]) -> dict[str, dict[Space, float]]:
    """The shares where each modality loses by itself what it loses."""
    judged = [measured(1 - one, modality, space=space) for (modality, space), one in lost.items()]
    alone: dict[Modality, Sequence[Measurement]] = {
        asked: [one if one.modality == asked else measured(modality=one.modality, space=one.space) for one in judged]
        for asked in manifest.modalities
    }
    shares = shares_to_keep(BUDGET, manifest, judged, alone, losses)
    return {name: {space: round(one, 3) for space, one in some.items()} for name, some in shares.items()}


@pytest.mark.parametrize(
    ("lost", "text", "wanted"),
    [
        ({}, LARGE, {}),
        ({("text", "multi"): 0.2}, LARGE, {"text": {"multi": 0.5}}),
        ({("text", "single"): 0.04}, LARGE, {"text": {"single": 0.25}}),
        ({("image", "multi"): 0.2}, SMALL, {"vision": {"single": 0.5, "multi": 0.5}}),
        ({("image", "multi"): 0.2}, LARGE, {"vision": {"single": 0.5, "multi": 0.5}, "text": {"multi": 0.5}}),
        (
            {("text", "multi"): 0.4, ("image", "multi"): 0.2},
            LARGE,
            {"vision": {"single": 0.5, "multi": 0.5}, "text": {"multi": 0.25}},
        ),
        ({("text", "multi"): 0.101}, LARGE, {"text": {"multi": 0.8}}),
        ({("text", "multi"): 1.9}, LARGE, {"text": {"multi": 0.053}}),
    ],
    ids=["nothing", "tokens", "vectors", "features", "features and text", "both", "a little", "all"],
)
def test_who_must_lose_less(
    manifest: Manifest, lost: Lost, text: Losses, wanted: Mapping[str, Mapping[Space, float]]
) -> None:
    assert found(manifest, {**GOOD, **lost}, {"vision": OF_FEATURES, "text": text}) == wanted


def test_the_last_graph_is_at_fault_where_the_first_loses_nothing(manifest: Manifest) -> None:
    lost: Lost = {**GOOD, ("image", "multi"): 0.2}
    assert found(manifest, lost, {"text": SMALL}) == {"text": {"multi": 0.5}}


def test_features_are_bounded_where_vectors_alone_lost_too_much(manifest: Manifest) -> None:
    """The last graph is in fp32, and features have rows for tokens alone."""
    lost: Lost = {**GOOD, ("image", "single"): 0.02}
    shares = found(manifest, lost, {"vision": OF_FEATURES})
    assert shares == {"vision": {"single": 0.5, "multi": 0.5}}
    assert bounds_of(OF_FEATURES, shares["vision"], (0.995, 0.95)) == (1.0, 0.999)


def test_what_is_not_at_fault_keeps_its_bound() -> None:
    assert bounds_of((0.001, 0.1), {"multi": 0.5}, (0.99, 0.9)) == (0.99, 0.95)
    assert bounds_of((0.001, None), {"single": 0.5, "multi": 0.5}, (0.99, None)) == (0.9995, None)


def test_two_graphs_on_a_way_share_what_may_be_lost(manifest: Manifest) -> None:
    assert {part_of(manifest, name, 0.98) for name in manifest.graphs} == {0.99}
