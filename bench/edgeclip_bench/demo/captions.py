"""Captions of a scene in ten languages, each in several wordings.

Every wording states every fact, so a caption belongs to one picture: only a scene and its mirrored description
(`Scene.turned`) may share one. Each language's words and wordings are a file in `languages`, its grammar is a
function of `captions_grammar`.

A wording is a template for `str.format`. Its fields are the two groups, `{a}` (the scene's first) and `{b}`, whose
format specification lists options of the grammar (`{b:dative digits}`), and the language's own phrases, chosen by the
scene's relation (left_of, right_of, above, below: `{beside}`) or background (grey, pink, brown, turquoise:
`{ground}`). Every language says where in the picture the first group is, `{here}`; `{there}` follows from it. A field
may stand inside a specification: in Russian `{b:{case}}` is the case that the relation's preposition governs.
"""

import functools
import tomllib
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from edgeclip.errors import InputError
from edgeclip_bench.demo.captions_grammar import PHRASES, Words
from edgeclip_bench.demo.scenes import BACKGROUNDS, RELATIONS, Group, Scene

LANGUAGES: tuple[str, ...] = tuple(PHRASES)


def captions(scene: Scene, language: str) -> tuple[str, ...]:
    """Every wording of the scene in the language: at least six, all different, the plainest first."""
    return tuple(_say(scene, language, wording) for wording in _words(language)["wordings"])


def caption(scene: Scene, language: str, draw: np.random.Generator) -> str:
    """One of `captions(scene, language)`, each as likely as the others; one integer is drawn."""
    wordings = _words(language)["wordings"]
    return _say(scene, language, wordings[int(draw.integers(len(wordings)))])


@functools.cache
def _words(language: str) -> Words:
    if language not in LANGUAGES:
        raise InputError(f"captions are asked for in language {language!r}, wanted one of {', '.join(LANGUAGES)}")
    return tomllib.loads((files(__package__) / "languages" / f"{language}.toml").read_text(encoding="utf-8"))


def _say(scene: Scene, language: str, wording: str) -> str:
    """Describe the scene in one of the wordings."""
    words = _words(language)
    relation, background = RELATIONS.index(scene.relation), BACKGROUNDS.index(scene.background)
    fields = {field: choices[relation] for field, choices in words["by_relation"].items()}
    fields |= {field: choices[background] for field, choices in words["by_background"].items()}
    fields["there"] = words["by_relation"]["here"][RELATIONS.index(scene.turned().relation)]
    return wording.format(a=_Field(language, scene.first), b=_Field(language, scene.second), **fields)


@dataclass(frozen=True, slots=True)
class _Field:
    """A group as a field of a wording: formatting it gives its words."""

    language: str
    group: Group

    def __format__(self, specification: str) -> str:
        options, words = frozenset(specification.split()), _words(self.language)
        assert options <= set(words["options"].split()), specification
        return PHRASES[self.language](words, self.group, options)
