"""Comparisons of recipes with figures made by hand: each graph answers what a test says."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edgeclip.manifest import MODALITIES, Modality, RetrievalChange
from edgeclip_quant.pick.pareto import Candidate, Comparison
from edgeclip_quant.proof.measurement import measure
from edgeclip_quant.proof.timing import Timing
from edgeclip_quant.recipes import COMPARED, Recipe

INPUTS, DIM = 8, 8
SOURCE_BYTES = 4_000_000
OTHER_BYTES = 500_000
RECIPES = {recipe.name: recipe for recipe in COMPARED}
# Each text and each image is a direction of its own, and finds its fellow.
SOURCE = np.eye(INPUTS, DIM, dtype=np.float32)
LOST = np.zeros_like(SOURCE)
LOST[:, 0] = 1.0  # whatever is asked for, the answer is the first


def candidate(
    modality: Modality,
    recipe: str | Recipe,
    *,
    mb: float = 1.0,
    time: float = 0.5,
    cosine: float = 0.999,
    answers: NDArray[np.float32] = SOURCE,
    kept: float | None = None,
    retrieval: RetrievalChange | None = None,
) -> Candidate:
    """A graph by one recipe: so many MB, of fp32's time, with so low a worst cosine."""
    what = "16 tokens" if modality == "text" else "1 image"
    measured = measure(
        modality,
        "single",
        against="fp32 bundle",
        data="photos",
        wanted=SOURCE,
        found=SOURCE,
        weight_bytes=round(mb * 1e6),
        source_bytes=SOURCE_BYTES,
        timing=Timing(ratio=time, samples=30, input=what, machine="a processor, 2 threads"),
        retrieval=retrieval,
    )
    return Candidate(
        modality=modality,
        recipe=recipe if isinstance(recipe, Recipe) else RECIPES[recipe],
        measured=dataclasses.replace(measured, worst_cosine=cosine, mean_cosine=(1 + cosine) / 2),
        answers=answers,
        kernels={"int8 per row": 3},
        largest_layer_error=0.01 if math.isfinite(cosine) else math.nan,
        kept=kept,
    )


def comparison(*candidates: Candidate, is_made_up: bool = False, pairs: Sequence[int] | None = None) -> Comparison:
    """A comparison for texts and images; where no candidate is given, the graph has int8 in half the time."""
    given = {one.modality for one in candidates}
    others = tuple(candidate(modality, "int8") for modality in MODALITIES if modality not in given)
    return Comparison(
        model="a model",
        candidates=(*candidates, *others),
        source={"text": SOURCE, "image": SOURCE},
        pairs=None if pairs is None else tuple(pairs),
        source_bytes={"text": SOURCE_BYTES, "image": SOURCE_BYTES},
        other_bytes=OTHER_BYTES,
        is_made_up=is_made_up,
    )


def all_recipes(*, is_made_up: bool = False) -> Comparison:
    """Every recipe on both graphs, no two alike: the later ones are smaller, quicker and worse."""
    return comparison(
        *(
            candidate(
                modality, recipe, mb=2 - 0.1 * place, time=1.1 - 0.07 * place, cosine=1 - 1e-4 * 2**place, kept=None
            )
            for modality in MODALITIES
            for place, recipe in enumerate(COMPARED)
        ),
        is_made_up=is_made_up,
    )
