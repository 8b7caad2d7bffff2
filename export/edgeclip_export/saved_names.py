"""Tensors under their official names, however they were saved: wrappers that torch adds to names are left out.

DistributedDataParallel adds `module.`, torch.compile `_orig_mod.`, FSDP its own, a trainer's model an attribute
before all of them. What stands before every name goes, and so do wrappers inside names. What remains is held strictly
against the layout that config.json wants: a tensor that is missing, extra or of another shape is refused by its name.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from edgeclip.errors import BuildError
from edgeclip_export.checkpoint import list_names
from edgeclip_export.tensors import Tensors

# Parts of a name that wrappers of torch add wherever they stand; no official name has one.
_WRAPPERS = frozenset(("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))


@dataclass(frozen=True, slots=True, kw_only=True)
class OfficialNames:
    """The saved name of each tensor by its official one, and what was left out of the names."""

    saved: Mapping[str, str]
    removed: tuple[str, ...]

    def notes(self, where: str) -> tuple[str, ...]:
        """A sentence on what was left out, if anything was."""
        return (f"{where}: {_quote(self.removed)} in the names of its tensors was left out",) if self.removed else ()


def check_tensors(
    tensors: Tensors,
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    where: str,
    ignored: Sequence[str],
) -> None:
    """BuildError for a tensor that is missing, extra, or of another shape or type than wanted.

    `names` are the saved names by the official ones. Names that end as one of `ignored` are passed over.
    """
    kept = {name for name in names if not name.endswith(tuple(ignored))}
    if missing := [name for name in shapes if name not in kept]:
        raise BuildError(f"{where}: {list_names(missing)} missing")
    if extra := sorted(kept - shapes.keys()):
        raise BuildError(f"{where}: {list_names(extra)} not part of a checkpoint with this config.json")
    for name, shape in shapes.items():
        tensors.check(names[name], shape)


def name_officially(names: Collection[str], anchors: Sequence[str], where: str) -> OfficialNames:
    """The official names of the tensors that a file holds.

    Where the names begin is seen by one of the `anchors`: the official name that each checkpoint has once. A name
    that does not begin as the others do keeps its beginning. BuildError if two become one.
    """
    plain = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    prefixes: list[str] = next(filter(None, (_before(plain.values(), anchor) for anchor in anchors)), [""])
    if len(prefixes) > 1:
        raise BuildError(f"{where}: holds two models, {_quote(prefixes)}; save one of them alone")
    (prefix,) = prefixes
    official: dict[str, str] = {}
    removed: Counter[str] = Counter()
    for name, without in plain.items():
        short = without.removeprefix(prefix)
        if short in official:
            raise BuildError(f"{where}: {official[short]} and {name} are both {short}; save the model again")
        official[short] = name
        removed[_left_out(name, short)] += 1
    del removed[""]
    return OfficialNames(saved=official, removed=tuple(part for part, _ in removed.most_common()))


def _before(names: Collection[str], anchor: str) -> list[str]:
    """What stands before the anchor, once for each name that ends with it."""
    return sorted({name.removesuffix(anchor) for name in names if name == anchor or name.endswith(f".{anchor}")})


def _left_out(name: str, short: str) -> str:
    """The parts of a saved name that its official one does not have: `module.`, or `module._orig_mod.`."""
    rest = short.split(".")
    parts: list[str] = []
    for part in reversed(name.split(".")):
        if rest and rest[-1] == part:
            rest.pop()
        else:
            parts.append(f"{part}.")
    return "".join(reversed(parts))


def _quote(parts: Sequence[str]) -> str:
    return ", ".join(f"`{part}`" for part in parts)
