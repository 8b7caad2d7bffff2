"""Select a part of a data set (a split, languages, the first few), and say where its images lie."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from edgeclip.errors import InputError

# What stands for "test" where there is none, as BEIR's msmarco has only dev.
_HELD_OUT = ("test", "dev", "val", "valid", "validation")
# Options of the command line that are not called as the field.
_OPTIONS = {"languages": "language"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selection that `open_data` was asked for; an option is None where it was not given.

    `is_named`: the name is not taken from the path. `with_text`: pages have the texts beside them. `on_missing` gets
    the reason where an image is left out for it.
    """

    name: str
    is_named: bool = False
    images: Path | None = None
    split: str | None = None
    languages: tuple[str, ...] | None = None
    limit: int | None = None
    with_text: bool = False
    on_missing: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit is {self.limit}, wanted 1 or more")
        if self.images is not None and not self.images.is_dir():
            raise InputError(f"{self.images}: is no folder, wanted the one that holds the images")
        if self.languages is not None and not self.languages:
            raise InputError("no --language is given, wanted one or more")

    def wants(self, language: str | None) -> bool:
        """Say whether texts of this language are kept."""
        return self.languages is None or language in self.languages

    def refuse(self, path: Path, layout: str, **unused: str) -> None:
        """InputError for an option that was given though the layout cannot follow it; `unused` says why."""
        for option, why in unused.items():
            if getattr(self, option) is not None:
                raise InputError(f"{path}: --{_OPTIONS.get(option, option)} does not go with {layout}, {why}")

    def check_languages(self, found: Iterable[str | None], path: Path) -> None:
        """InputError unless every language that was asked for was found."""
        known = sorted({language for language in found if language is not None})
        for language in self.languages or ():
            if language not in known:
                there = f"there are: {', '.join(known)}" if known else "its texts name no language"
                raise InputError(f"{path}: nothing in language {language!r}; {there}")


def choose_split(splits: Collection[str], asked: str | None, path: Path) -> str:
    """The split to read: the one asked for; else test, or the only one, or what is held out besides."""
    there = f"there are: {', '.join(sorted(splits))}"
    if asked is not None:
        if asked not in splits:
            raise InputError(f"{path}: no split {asked!r}; {there}")
        return asked
    if len(splits) == 1:
        return next(iter(splits))
    for split in _HELD_OUT:
        if split in splits:
            return split
    raise InputError(f"{path}: several splits and none of them test; name one with --split; {there}")
