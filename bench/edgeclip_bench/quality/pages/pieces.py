"""Find the pieces of a page data set in a folder: corpus, queries and qrels, by language and split.

The Hub's repositories have each piece as a config: a folder of shards (`english-corpus/test-00000-of-00002.parquet`),
or a pattern of files in the head of README.md. A piece without a language is shared by those that have one.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgeclip.errors import InputError
from edgeclip.host.installation import needs_extra
from edgeclip_bench.quality.languages import is_code
from edgeclip_bench.quality.pages.tables import SUFFIXES
from edgeclip_bench.quality.records import list_folder, plain_stem, plain_suffix

# "table": rows that are both queries and pages.
Role = Literal["corpus", "queries", "qrels", "table"]
Key = tuple[str | None, Role]
Splits = dict[str | None, list[Path]]

NEEDED: tuple[Role, ...] = ("corpus", "queries", "qrels")
_ROLE = re.compile(r"(?:(?P<language>.+)-)?(?P<role>corpus|queries|qrels)")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(-[0-9a-f]{16})?$")
SPLITS = ("train", "test", "val", "valid", "validation", "dev")
# Configs of one language are called by its code, or in ViDoRe v3 by its English name; "default" is no language.
_NAMES = "arabic bengali chinese english french german hindi italian japanese korean portuguese russian spanish"
_DEFAULT = "default"
_HEAD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pieces:
    """The files of each piece, by language and role, then by split. A piece whose files name no split has None."""

    folder: Path
    files: dict[Key, Splits] = field(default_factory=dict)

    def has(self, *roles: Role) -> bool:
        """Whether there is a piece of each of these roles, of whatever language."""
        return set(roles) <= {role for _, role in self.files}

    def languages(self, role: Role) -> list[str | None]:
        """The languages that have a piece of this role of their own."""
        return [language for language, its in self.files if its == role]

    def find(self, language: str | None, role: Role) -> Splits:
        """The files of a piece: the language's own, else those for all languages; InputError for neither."""
        if (found := self.files.get((language, role)) or self.files.get((None, role))) is None:
            there = " and ".join(dict.fromkeys(its for _, its in self.files if its in NEEDED))
            lacks = f"has no {role} of language {language!r}" if language else f"has {there}, but no {role}"
            raise InputError(f"{self.folder}: {lacks} ({role}.jsonl, or files in {role}/)")
        return found

    def add(self, language: str | None, role: Role, split: str | None, file: Path) -> None:
        """Add a file to its piece."""
        self.files.setdefault((_plain(language), role), {}).setdefault(split, []).append(file)


def find_pieces(folder: Path) -> Pieces:
    """The pieces of a folder, by its README.md and by the names in it; InputError for a folder that is shut."""
    folder = snapshot_of(folder)
    pieces = Pieces(folder)
    named: set[Path] = set()
    for language, role, split, file in _files_of_readme(folder):
        pieces.add(language, role, split, file)
        named.add(file)
    of_readme = set(pieces.files)
    for language, role, split, file in _files_by_name(folder, None):
        if file not in named and (_plain(language), role) not in of_readme:
            pieces.add(language, role, split, file)
    return pieces


def snapshot_of(folder: Path) -> Path:
    """The files of a repository in the Hub's cache, of its main revision; any other folder itself.

    The repository's folder may be a link of any name.
    """
    snapshots = folder / "snapshots"
    if not (snapshots.is_dir() and repository_of(folder)):
        return folder
    main = folder / "refs" / "main"
    if main.is_file() and (found := snapshots / main.read_text(encoding="utf-8").strip()).is_dir():
        return found
    revisions = list_folder(snapshots)
    if len(revisions) != 1:
        raise InputError(f"{snapshots}: holds {len(revisions)} revisions and none is main; name the folder of one")
    return revisions[0]


def repository_of(folder: Path) -> str | None:
    """The repository whose folder in the Hub's cache this is, or a revision of it, or a link to either; else None."""
    for path in map(Path, (os.path.abspath(folder), os.path.realpath(folder))):
        name = path.parents[1].name if path.parent.name == "snapshots" else path.name
        if name.startswith("datasets--"):
            return name.rpartition("--")[2]
    return None


def is_language(name: str) -> bool:
    """Whether a folder of this name holds the part of a data set in one language."""
    return name == _DEFAULT or name in _NAMES.split() or is_code(name)


def check_shards(files: Sequence[Path]) -> None:
    """InputError for files of which one says that there are more, as where a download was not finished."""
    there: dict[tuple[str, int], set[int]] = {}
    for file in files:
        if found := _SHARD.search(plain_stem(file)):
            first = str(file.with_name(plain_stem(file)[: found.start()]))
            there.setdefault((first, int(found[2])), set()).add(int(found[1]))
    for (first, total), numbers in there.items():
        if len(numbers) < total:
            raise InputError(f"{first}-*: {len(numbers)} of {total} files are there; download the rest")


def _plain(language: str | None) -> str | None:
    return None if language == _DEFAULT else language


def _role_of(name: str) -> tuple[str | None, Role] | None:
    """The language and the role that a config's, a folder's or a file's name says."""
    if (found := _ROLE.fullmatch(name)) is None:
        return None
    role: Role = found["role"]  # type: ignore[assignment] # the expression holds all three
    return found["language"], role


def _files_by_name(folder: Path, language: str | None) -> Iterator[tuple[str | None, Role, str | None, Path]]:
    for path in list_folder(folder):
        if path.is_dir():
            if named := _role_of(path.name):
                yield from _files_of_role(path, named[0] or language, named[1])
            elif path.name in SPLITS and os.access(path, os.R_OK | os.X_OK):  # one that is shut may be of images
                yield from ((language, "table", path.name, file) for file in _tables_in(path))
            elif path.name == "data" or (language is None and is_language(path.name)):
                yield from _files_by_name(path, language if path.name == "data" else path.name)
        elif plain_suffix(path) in SUFFIXES:
            stem = _SHARD.sub("", plain_stem(path))
            if named := _role_of(stem):
                yield named[0] or language, named[1], None, path
            else:
                yield language, "table", stem if stem in SPLITS else None, path


def _files_of_role(
    folder: Path, language: str | None, role: Role
) -> Iterator[tuple[str | None, Role, str | None, Path]]:
    """The files in the folder of a piece: shards of splits, folders of splits (as the Hub converts), or shards."""
    for path in list_folder(folder):
        if path.is_dir():
            yield from ((language, role, path.name, file) for file in _tables_in(path))
        elif plain_suffix(path) in SUFFIXES:
            stem = _SHARD.sub("", plain_stem(path))
            is_split = stem in SPLITS or (role == "qrels" and stem != role and not stem.isdecimal())
            yield language, role, stem if is_split else None, path


def _tables_in(folder: Path) -> list[Path]:
    return [path for path in list_folder(folder) if plain_suffix(path) in SUFFIXES]


def _files_of_readme(folder: Path) -> Iterator[tuple[str | None, Role, str | None, Path]]:
    """The files that the head of README.md names, as far as they are there."""
    for config in _configs(folder / "README.md"):
        name = str(config.get("config_name", _DEFAULT))
        language, role = _role_of(name) or (name if is_language(name) else None, "table")
        for split, pattern in _patterns(config.get("data_files")):
            try:
                if Path(pattern).anchor:
                    raise ValueError("a path from the root")
                found = sorted(folder.glob(pattern)) if ".." not in pattern else []
            except ValueError as error:  # no pattern
                raise InputError(f"{folder / 'README.md'}: config {name!r} names {pattern!r} ({error})") from error
            yield from ((language, role, split, file) for file in found if plain_suffix(file) in SUFFIXES)


def _configs(readme: Path) -> list[Mapping[str, Any]]:
    """The configs in the YAML between two lines of dashes that a README.md begins with; none of any other file."""
    if not readme.is_file():
        return []
    with readme.open(encoding="utf-8", errors="replace") as file:
        text = file.read(_HEAD_BYTES)
    head = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    if head is None or "data_files" not in head[1]:
        return []
    with needs_extra("bench"):
        import yaml
    try:
        configs = (yaml.safe_load(head[1]) or {}).get("configs") or []
    except (yaml.YAMLError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{readme}: its head is no YAML that says configs ({reason})") from error
    return [config for config in configs if isinstance(config, dict)]


def _patterns(data_files: Any) -> Iterator[tuple[str | None, str]]:
    """Each pattern of files with its split, in the forms that the Hub takes: text, lists, {split: ..., path: ...}."""
    for one in data_files if isinstance(data_files, list) else [data_files]:
        if isinstance(one, str):
            yield None, one
        elif isinstance(one, dict):
            paths = one.get("path")
            for path in paths if isinstance(paths, list) else [paths]:
                if isinstance(path, str):
                    yield str(one["split"]) if "split" in one else None, path
