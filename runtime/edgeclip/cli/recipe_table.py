"""The recipes of `edgeclip quantize` side by side, as they stand in a terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgeclip.manifest import Modality
from edgeclip.tables import format_table

if TYPE_CHECKING:
    from edgeclip_quant.pick.pareto import Candidate, Comparison, Pick

_WHAT: Mapping[Modality, str] = {"text": "texts", "image": "images"}


def format_recipes(comparison: "Comparison", picked: "Pick | None") -> str:
    """A table for each modality of an `edgeclip_quant.pick.pareto.Comparison`, and below what the marks mean."""
    from edgeclip_quant.pick import pareto as choice
    from edgeclip_quant.recipes import INT8

    front = choice.front(comparison)
    never: dict[str, list[str]] = {}
    for one in comparison.candidates:
        if objection := comparison.objection(one):
            never.setdefault(objection, []).append(one.recipe.name)
    notes = [
        "* on the Pareto front: no other has less size, time or loss (1 - worst cosine) without more of another",
        f"  ({choice.alike_words()} count as the same)",
        *(f"- never taken: {', '.join(dict.fromkeys(names))} ({objection})" for objection, names in never.items()),
        f"  default: what --to {INT8.name} makes; time: of fp32's; recall@5: in points, other graphs in fp32",
    ]
    tables = [_table(comparison, front, picked, name) for name in comparison.modalities]
    return "\n\n".join([*tables, "\n".join(notes)])


def _table(comparison: "Comparison", front: Sequence["Candidate"], picked: "Pick | None", modality: Modality) -> str:
    from edgeclip_quant.recipes import is_default

    mine, source_bytes = comparison.of(modality), comparison.source_bytes[modality]
    decimals = 2 if source_bytes < 1e7 else 1 if source_bytes < 1e8 else 0
    rows = [("  fp32", f"{source_bytes / 1e6:.{decimals}f}", "1.00", "1", "1", "")]
    words = ["", "as it was"]
    for one in mine:
        mark = "*" if one in front else "-" if comparison.objection(one) else " "
        tags = [", default"] * is_default(one.recipe)
        tags += [", picked"] * (picked is not None and one in picked.choice.candidates)
        measured = one.measured
        rows.append(
            (
                f"{mark} {one.recipe.name}{''.join(tags)}",
                f"{measured.weight_bytes / 1e6:.{decimals}f}",
                f"{one.latency:.2f}",
                f"{measured.worst_cosine:.5f}",
                f"{measured.mean_cosine:.5f}",
                f"{measured.retrieval.points:+.2f}" if measured.retrieval else "-",
            )
        )
        finer = "" if one.kept is None else f"; layers finer, for a cosine of {one.kept:g}"
        words.append(one.recipe.describes + finer)
    header = ("  recipe", "MB", "time", "worst cosine", "mean cosine", "recall@5")
    lines = format_table(header, rows).split("\n")
    width = max(map(len, lines))
    first = mine[0].measured
    return "\n".join(
        [
            f"{mine[0].graph} graph of {comparison.model}: {first.samples} {_WHAT[modality]} ({first.data}), "
            f"time of {first.latency_input} on {first.machine}",
            *(f"{line.ljust(width)}  {word}".rstrip() for line, word in zip(lines, words, strict=True)),
        ]
    )
