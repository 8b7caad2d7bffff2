"""Recipes for narrowing a graph: kernels for its linear layers, in the order they are tried, and bits for its
table.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgeclip.manifest import Precision
from edgeclip_quant.kernels import Kernel

# Relative error of a layer's output up to which a kernel is taken. Gaussian inputs and weights give 1.1e-2 in 8 bits,
# 1.1e-1 in 4; a layer that outliers spoil has several times that.
_MAX_ERROR_8 = 4e-2
_MAX_ERROR_4 = 2e-1


# x86 with VNNI, and arm64; x86 with AVX2 or AVX-512 and without VNNI.
Cpu = Literal["vnni", "avx2"]
CpuChoice = Literal["vnni", "avx2", "auto"]
_SEVEN_BITS: Mapping[Kernel, Kernel] = {"int8 static": "int7 static", "int8 per row": "int7 per row"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the graphs of a bundle for the CPU are narrowed.

    A layer takes the first of `kernels` whose error is at most `max_error`, fp32 when none is. `smooths` lets outlier
    channels move into the weights where that helps, `static_anywhere` lets inputs have a fixed scale that no norm
    bounds. `finer_kernels` are for the sensitive layers of a decoder (`pick.kernel_plan.sensitive_layers`).
    `table_bits` is for the token table; a decoder's has 8 at least. `describes` is its description in a report.
    """

    name: str
    precision: Precision
    kernels: tuple[Kernel, ...]
    smooths: bool
    table_bits: int
    max_error: float
    describes: str
    static_anywhere: bool = False
    finer_kernels: tuple[Kernel, ...] = ()

    @property
    def is_independent(self) -> bool:
        """Whether no vector depends on the other inputs of its batch."""
        return "int8 per call" not in self.kernels

    def objection(self, *, is_made_up: bool) -> str | None:
        """Why no bundle is made by it, calibrated on made-up inputs or on a user's; None when one may be."""
        if not self.is_independent:
            return "a vector depends on its batch"
        if is_made_up and self.static_anywhere:
            return "made-up inputs cannot fix scales"
        return None


INT8 = Recipe(
    name="int8",
    precision="int8",
    kernels=("int8 static", "int8 per row", "int8 blocks"),
    smooths=True,
    table_bits=8,
    max_error=_MAX_ERROR_8,
    describes="the fastest kernel that each layer bears",
)
INT4 = Recipe(
    name="int4",
    precision="int4",
    kernels=("int4 blocks", "int8 per row", "int8 blocks"),
    smooths=False,
    table_bits=4,
    max_error=_MAX_ERROR_4,
    describes="4-bit blocks, the token table too",
    finer_kernels=("int8 per row", "int8 blocks"),
)
DEFAULT_RECIPES: Mapping[Precision, Recipe] = {"int8": INT8, "int4": INT4}
# What the two above were chosen from, for `comparison`.
COMPARED = (
    INT8,
    Recipe(
        name="int8-per-row",
        precision="int8",
        kernels=("int8 per row", "int8 blocks"),
        smooths=True,
        table_bits=8,
        max_error=_MAX_ERROR_8,
        describes="a scale for each row of an input, smoothed",
    ),
    Recipe(
        name="int8-static",
        precision="int8",
        kernels=("int8 static",),
        smooths=False,
        table_bits=8,
        max_error=math.inf,
        describes="every input with a scale fixed by calibration",
        static_anywhere=True,
    ),
    Recipe(
        name="int8-dynamic",
        precision="int8",
        kernels=("int8 per call",),
        smooths=False,
        table_bits=8,
        max_error=math.inf,
        describes="one scale per call",
    ),
    Recipe(
        name="int8-dynamic-smooth",
        precision="int8",
        kernels=("int8 per call",),
        smooths=True,
        table_bits=8,
        max_error=math.inf,
        describes="one scale per call, smoothed",
    ),
    Recipe(
        name="int8-blocks",
        precision="int8",
        kernels=("int8 blocks",),
        smooths=False,
        table_bits=8,
        max_error=math.inf,
        describes="8-bit blocks",
    ),
    Recipe(
        name="int8-table4",
        precision="int8",
        kernels=INT8.kernels,
        smooths=True,
        table_bits=4,
        max_error=_MAX_ERROR_8,
        describes="int8, the token table in 4 bits",
    ),
    INT4,
)


def precision_of(to: Precision, *, is_followed: bool) -> Precision:
    """The precision of one graph of a bundle. A graph that another follows keeps 8 bits: the other enlarges what it
    loses, and 4-bit blocks are slower than fp32 for patches.
    """
    return "int8" if to == "int4" and is_followed else to


def for_cpu(recipe: Recipe, cpu: Cpu) -> Recipe:
    """The recipe for a kind of processor: without VNNI, weights of 8 bits become weights of 7, which cannot overflow.

    Blocks of 8 bits are left out then: without VNNI they take 1.2 to 2.5 times fp32's time from 16 rows on. A
    recipe whose products cannot overflow anyway stays as it is, and so does one that no bundle is made by.
    """
    if cpu == "vnni" or not recipe.is_independent:
        return recipe
    kernels, finer = (
        tuple(_SEVEN_BITS.get(kernel, kernel) for kernel in some) for some in (recipe.kernels, recipe.finer_kernels)
    )
    if (kernels, finer) == (recipe.kernels, recipe.finer_kernels):
        return recipe
    if kernels != recipe.kernels:
        kernels = tuple(kernel for kernel in kernels if kernel != "int8 blocks")
    describes = f"{recipe.describes}; weights of 7 bits" if kernels != recipe.kernels else recipe.describes
    return replace(recipe, name=f"{recipe.name}-avx2", kernels=kernels, finer_kernels=finer, describes=describes)


def is_default(recipe: Recipe) -> bool:
    """Whether `--to int8` makes bundles by this recipe, for one kind of processor or the other."""
    return recipe.name in (INT8.name, for_cpu(INT8, "avx2").name)


def recipes_for(recipes: Sequence[Recipe] = COMPARED, *, has_table: bool) -> list[Recipe]:
    """The recipes that give different results for a graph with a token table or without one, the first of each."""
    found: dict[object, Recipe] = {}
    for one in recipes:
        makes = (one.kernels, one.smooths, one.max_error, one.static_anywhere)
        found.setdefault((makes, one.table_bits if has_table else None), one)
    return list(found.values())


def usable_recipes(*, is_made_up: bool, cpu: Cpu = "vnni") -> list[Recipe]:
    """The recipes that a bundle for a kind of processor may be made by."""
    return [for_cpu(one, cpu) for one in COMPARED if one.objection(is_made_up=is_made_up) is None]
