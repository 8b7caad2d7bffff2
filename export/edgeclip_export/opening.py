"""Is this folder a checkpoint, of which family, and are its files there? Everything that can be said before reading.

Which files are needed besides config.json, weights and tokenizer.json, the family says. Bringing a checkpoint here
from the Hub is `edgeclip_export.hub`'s work; what a folder is that is no checkpoint, `edgeclip_export.recognition`
says.
"""

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeclip.errors import BuildError
from edgeclip_export.checkpoint import (
    CONFIGS,
    INDEX,
    WEIGHTS,
    Checkpoint,
    list_names,
    read_json,
    read_shards,
)
from edgeclip_export.families import MODELS, find_family, is_known
from edgeclip_export.families.family import Family, Forms, Needs
from edgeclip_export.recognition import check_content, describe_absence, recognise

_MOST_LISTED, _DEPTH = 5000, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A checkpoint and its family."""

    checkpoint: Checkpoint
    family: Family


def open_checkpoint(folder: Path) -> Opened:
    """The checkpoint in `folder` and its family, every file that is needed there with its content.

    Raises BuildError for what is no folder, another kind of folder or another model, a file that is missing, a link
    to nothing or a pointer instead of a file, and an index that is not one.
    """
    if not folder.is_dir():
        raise BuildError(f"{folder}: {_describe_no_folder(folder)}")
    names = _list(folder)
    if what := recognise(names, MODELS):
        raise BuildError(f"{folder}: {what}")
    config = choose_config(names, lambda name: _read_config(folder / name))
    if config is None and (inner := _find_inner(folder, names)):
        raise BuildError(f"{folder}: {inner}")
    if config is None:
        for name in needed_files(names, Needs()):
            check_content(folder / name)
        raise BuildError(f"{folder}: {describe_absence(missing_files(names, Needs()), names)}")
    family = find_family(config, str(folder))
    needs = family.needs(config)
    needed = needed_files(names, needs)
    for name in needed:
        check_content(folder / name)
    if missing := missing_files(names, needs):
        raise BuildError(f"{folder}: {describe_absence(missing, names)}")
    shards = list(read_shards(folder / INDEX)) if INDEX in needed else needed[-1:]
    for shard in shards:
        if not os.path.lexists(folder / shard):
            raise BuildError(f"{folder}: {INDEX} names {shard}, which is missing; fetch or copy it too")
        check_content(folder / shard)
    others = (*(form for forms in needs.needed for form in forms), *needs.optional)
    adapters = tuple(folder / name for name in others if name.endswith(".safetensors") and name in names)
    weights = tuple(folder / shard for shard in shards)
    checkpoint = Checkpoint(folder=folder, config=config, weights=weights, adapters=adapters)
    return Opened(checkpoint=checkpoint, family=family)


def choose_config(names: Collection[str], read: Callable[[str], Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """What says which model a folder with these files holds, parsed by `read`; None where nothing does.

    Of several files it is the first of a family that is known, or else the first.
    """
    found = [read(name) for name in CONFIGS if name in names]
    return next((config for config in found if is_known(config)), next(iter(found), None))


def _read_config(path: Path) -> Mapping[str, Any]:
    check_content(path)
    return read_json(path)


def needed_files(names: Collection[str], needs: Needs) -> list[str]:
    """Those among a folder's `names` that an export reads, the weights last; an index stands for its shards.

    One file of weights goes before an index beside it, as with transformers.
    """
    weights = next(([name] for name in (*needs.weights, WEIGHTS, INDEX) if name in names), [])
    others = (form for forms in needs.needed for form in reversed(forms))
    read = (*CONFIGS, *reversed(needs.tokenizer), *others, *needs.optional)
    return [name for name in read if name in names] + weights


def missing_files(names: Collection[str], needs: Needs) -> list[Forms]:
    """What a folder with these files lacks, each as the forms that it may have, the official one first."""
    wanted = (CONFIGS, (WEIGHTS, *needs.weights, INDEX), needs.tokenizer, *needs.needed)
    return [forms for forms in wanted if not any(name in names for name in forms)]


def _find_inner(folder: Path, names: Collection[str]) -> str | None:
    """Where below a folder without config.json checkpoints lie, as sentence-transformers and trainers save them."""
    configs = [name for name in names if name.endswith(tuple(f"/{config}" for config in CONFIGS))]
    ours = [os.path.dirname(name) for name in configs if _is_ours(folder / name)]
    return f"has no config.json, but {list_names(ours)} has; pass such a folder" if ours else None


def _is_ours(config: Path) -> bool:
    try:
        return is_known(read_json(config))
    except BuildError:
        return False


def _describe_no_folder(path: Path) -> str:
    if path.is_file():
        missing: Sequence[Forms] = [(WEIGHTS,)]
        is_weights = path.name == WEIGHTS
        what = "" if is_weights else recognise([path.name], MODELS) or describe_absence(missing, [path.name])
        return f"a file, wanted the folder of a checkpoint{f'; {what}' if what else ''}"
    if path.is_symlink():
        return f"a link to {os.readlink(path)}, which is not there"
    return "no such checkpoint folder"


def _list(folder: Path) -> list[str]:
    """The files under a folder, links to nothing among them, as names relative to it; the folder's own come first."""
    names: list[str] = []
    for root, folders, files in os.walk(folder):
        inner = Path(root).relative_to(folder)
        names += [(inner / name).as_posix() for name in sorted(files)]
        folders[:] = sorted(folders) if len(inner.parts) + 1 < _DEPTH else []
        if len(names) > _MOST_LISTED:
            break
    return names
