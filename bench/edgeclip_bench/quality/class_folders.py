"""Zero-shot classification: a folder of images for each class, read into `ClassificationData`.

DIR/<class>/*.jpg, or DIR/<split>/<class>/*.jpg, as torchvision's ImageFolder has it. In a class's name underscores
become spaces, for a prompt is a sentence. Better names stand in classes.txt (a line for each: folder, tab, name),
prompts in templates.txt (a line each, with {} for the name), both beside the class folders or in DIR. Folders called
train, val, test and the like are splits; one so called among others may be a class, as CIFAR-100 has one for trains.
"""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from edgeclip.errors import InputError
from edgeclip.inputs.image_folder import holds_image, list_images
from edgeclip_bench.quality.datasets import ClassificationData
from edgeclip_bench.quality.known_layouts import not_understood
from edgeclip_bench.quality.records import list_folder, read_lines
from edgeclip_bench.quality.selection import Selection, choose_split

_SPLIT = re.compile(r"(train|training|val|valid|validation|dev|test|testing|unlabeled)\d*", re.IGNORECASE)


def is_class_folders(folder: Path) -> bool:
    """Say whether the folder has subfolders with images, or subfolders of those."""
    return any(holds_image(sub) or _holds_classes(sub) for sub in _folders_in(folder))


def read_class_folders(folder: Path, selection: Selection) -> ClassificationData:
    """Images by class; of a `limit`, each class has its share (one of each in turn), not only the first.

    InputError for a single class, an empty one, two of one name, or one that classes.txt leaves out or adds; files
    that are no images are counted on stderr.
    """
    selection.refuse(folder, "class folders", images="which hold the images", languages="which name no language")
    top, folder = folder, _choose_split_folder(folder, selection)
    of_class: list[list[Path]] = []
    for sub in _folders_in(folder):
        found = list_images(sub)
        of_class.append([Path(path) for path in found])
        if not found:
            raise InputError(f"{sub}: holds no image; a class has some, and other folders do not belong here")
        found.print_notes()
    if len(of_class) < 2:
        raise not_understood(folder, "holds one folder of images, wanted one for each of several classes")
    shares = share_out([len(images) for images in of_class], selection.limit)
    return ClassificationData(
        name=selection.name,
        images=tuple(image for images, share in zip(of_class, shares, strict=True) for image in images[:share]),
        labels=tuple(label for label, share in enumerate(shares) for _ in range(share)),
        classes=_read_classes(_beside(folder, top, "classes.txt"), [sub.name for sub in _folders_in(folder)], folder),
        templates=_read_templates(_beside(folder, top, "templates.txt")),
    )


def share_out(sizes: Sequence[int], limit: int | None) -> list[int]:
    """The numbers of images per class that make `limit` together, one of each class in turn."""
    turns = sorted((turn, index) for index, size in enumerate(sizes) for turn in range(size))
    shares = Counter(index for _, index in turns[:limit])
    return [shares[index] for index in range(len(sizes))]


def _folders_in(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if path.is_dir()]


def _holds_classes(folder: Path) -> bool:
    return any(holds_image(sub) for sub in _folders_in(folder))


def _choose_split_folder(folder: Path, selection: Selection) -> Path:
    subs = _folders_in(folder)
    if any(holds_image(sub) for sub in subs):
        splits = [sub.name for sub in subs if _SPLIT.fullmatch(sub.name) and holds_image(sub)]
        if len(splits) > 1 or len(splits) == len(subs):
            raise not_understood(folder, f"holds images in {', '.join(splits)}, which are splits and no classes")
        selection.refuse(folder, "class folders", split="which are of no split")
        return folder
    of_split = {sub.name: sub for sub in subs if _holds_classes(sub)}
    return of_split[choose_split(of_split, selection.split, folder)]


def _beside(folder: Path, top: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, top / name) if path.is_file()), None)


def _read_classes(file: Path | None, folders: Sequence[str], folder: Path) -> tuple[str, ...]:
    names = {name: name.replace("_", " ") for name in folders}
    if file is not None:
        names = {}
        for where, line in read_lines(file):
            if not line.strip():
                continue
            key, tab, name = line.partition("\t")
            if not tab or not name.strip():
                raise InputError(f"{where}: wanted a folder, a tab and the name of its class")
            if key not in folders:
                raise InputError(f"{where}: {key!r} is no folder of {folder}")
            if key in names:
                raise InputError(f"{where}: {key!r} is there twice")
            names[key] = name.strip()
    owners: dict[str, str] = {}
    for key in folders:
        if key not in names:
            raise InputError(f"{file}: has no name for the folder {key!r}")
        if (other := owners.setdefault(names[key], key)) != key:
            raise InputError(f"{file or folder}: {other!r} and {key!r} are both called {names[key]!r}")
    return tuple(names[key] for key in folders)


def _read_templates(file: Path | None) -> tuple[str, ...]:
    if file is None:
        return ("{}",)
    templates = []
    for where, line in read_lines(file):
        if line.strip():
            before, _, after = line.strip().partition("{}")
            if line.count("{}") != 1 or set("{}") & {*before, *after}:
                raise InputError(f"{where}: wanted one {{}} for the class's name and no other brace")
            templates.append(line.strip())
    if not templates:
        raise InputError(f"{file}: holds no prompt")
    return tuple(templates)
