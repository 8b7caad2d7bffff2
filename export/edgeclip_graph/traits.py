"""What the passes must know of a traced graph that they cannot see in it. Nothing here names a family or a tower."""

from dataclasses import asdict, dataclass
from typing import Any

# Traits that came later are stored only where they are not the default: graphs without them stay as they were.
_NEWER = ("reads_in_place", "mlp_parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is true of a graph, and so which passes it needs.

    With `chooses_by_rows` all tokens are the rows of one matrix, and some inputs have few of them: on the CPU such a
    graph has two ways to multiply, chosen by the number of rows. With `has_silu` its MLP has x * sigmoid(x). With
    `splits_many_rows` its linear layers are split at once and their inputs always have hundreds of rows: on the CPU
    each part is a product of its own. With `always_masks` the masks of its attention hide something in most inputs,
    and the attention is over few keys: the masks are applied always. With `reads_in_place` its weights are gigabytes,
    and on the CPU no packed copy of them is made. In `mlp_parts` its gated MLP is computed on the CPU, one after the
    other, because its middle is what most of a long input's memory is needed for.
    """

    chooses_by_rows: bool = False
    has_silu: bool = False
    splits_many_rows: bool = False
    always_masks: bool = False
    reads_in_place: bool = False
    mlp_parts: int = 1


def stored_traits(traits: Traits) -> dict[str, Any]:
    """The traits as a graph's file has them, for `Traits(**stored)`."""
    default = asdict(Traits())
    return {name: value for name, value in asdict(traits).items() if name not in _NEWER or value != default[name]}
