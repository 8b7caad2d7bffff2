"""Finding the image files that a dataset names, and only those.

Names come from files that others wrote, so an image must lie under the folder that the user named or that the file
lies in. Symbolic links are the user's own and are followed.
"""

import os
import reprlib
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import InputError

_QUOTED = 200  # characters


class MissingImageError(InputError):
    """An image that a dataset names is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFinder:
    """Looks for an image in `base`, in `folders` in `base`, then in `beside`, folders that the layout fixes."""

    base: Path
    folders: tuple[str, ...] = ()
    beside: tuple[Path, ...] = ()

    def find(self, where: str, *names: str) -> Path:
        """The first file that has one of the names; MissingImageError if none has, InputError if it lies outside."""
        roots = [(self.base, self.base)]  # each with the folder that it must not leave
        roots += [(self.base / folder, self.base) for folder in self.folders]
        roots += [(folder, folder) for folder in self.beside]
        for root, home in roots:
            for name in names:
                path = Path(os.path.normpath(root / name))
                # By the names alone: symbolic links are followed as the user made them.
                if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(home)):
                    if root == self.base:
                        wanted = "link it there, or name its folder with `edgeclip eval --images`"
                        raise InputError(f"{where}: image {quote(name)} lies outside {home}; {wanted}")
                elif os.path.isfile(path):
                    return path
        there = f", nor there in {', '.join(self.folders)}" if self.folders else ""
        beside = f", nor in such folders in {self.beside[0].parent}" if self.beside else ""
        raise MissingImageError(f"{where}: image {quote(names[0])} is not in {self.base}{there}{beside}")


def quote(name: str) -> str:
    """The name as a message has it: of one too long for a line, the beginning and the end."""
    quoting = reprlib.Repr()
    quoting.maxstring = _QUOTED
    return quoting.repr(name)
