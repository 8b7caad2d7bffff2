"""What a language needs so that scenes can be described in it: words, a function for agreement, wordings.

A wording is a template for `str.format`. Its fields are the two groups, `{a}` (the scene's first) and `{b}`, whose
format specification lists options of the language (`{b:dative digits}`), and the language's own phrases, chosen by
the scene's relation (`{beside}`) or background (`{ground}`). Every language says where in the picture the first group
is, `{here}`; `{there}` follows from it. A field may stand inside a specification: in Russian `{b:{case}}` is the case
that the relation's preposition governs.

Options mean the same in every language that has them:

    digits   the count as a figure             plain   the texture "plain" is named, not left out
    bare     one object without the word one   with    the texture as "with stripes", or a synonym
    is       nothing but the verb that agrees with the group
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from edgeclip_bench.demo.scenes import BACKGROUNDS, RELATIONS, Group, Scene

Options = frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Language:
    """Everything that `tell` needs to put a scene into words."""

    phrase: Callable[[Group, Options], str]
    """A group as a noun phrase that agrees in itself."""
    options: str
    """What `phrase` understands; any other option in a wording is a slip, and asserted against."""
    by_relation: Mapping[str, tuple[str, str, str, str]]
    """Field: words for left_of, right_of, above, below."""
    by_background: Mapping[str, tuple[str, str, str, str]]
    """Field: words for grey, pink, brown, turquoise."""
    wordings: tuple[str, ...]
    """Templates, the plainest first."""

    def tell(self, scene: Scene, wording: str) -> str:
        """Describe the scene in one of the wordings."""
        relation, background = RELATIONS.index(scene.relation), BACKGROUNDS.index(scene.background)
        opposite = RELATIONS.index(scene.turned().relation)
        fields = {field: words[relation] for field, words in self.by_relation.items()}
        fields |= {field: words[background] for field, words in self.by_background.items()}
        fields["there"] = self.by_relation["here"][opposite]
        return wording.format(a=_Told(self, scene.first), b=_Told(self, scene.second), **fields)


@dataclass(frozen=True, slots=True)
class _Told:
    """A group as a field of a wording: formatting it gives its words."""

    language: Language
    group: Group

    def __format__(self, specification: str) -> str:
        options = frozenset(specification.split())
        assert options <= set(self.language.options.split()), specification
        return self.language.phrase(self.group, options)


def join(*words: str) -> str:
    """The words that are not empty, with single spaces between."""
    return " ".join(word for word in words if word)
