"""Captions of a scene in ten languages, each in several wordings.

Every wording states every fact, so a caption belongs to one picture: only a scene and its mirrored description
(`Scene.turned`) may share one. The grammar is in the languages' own modules (`captions_european`, `captions_asian`,
on the frame in `captions_language`).
"""

import numpy as np

from edgeclip.errors import InputError
from edgeclip_bench.demo.captions_asian import ARABIC, CHINESE, HINDI, JAPANESE, TURKISH
from edgeclip_bench.demo.captions_european import ENGLISH, FRENCH, GERMAN, RUSSIAN, SPANISH
from edgeclip_bench.demo.captions_language import Language
from edgeclip_bench.demo.scenes import Scene

_LANGUAGES: dict[str, Language] = {
    "en": ENGLISH,
    "de": GERMAN,
    "fr": FRENCH,
    "es": SPANISH,
    "tr": TURKISH,
    "ru": RUSSIAN,
    "zh": CHINESE,
    "ja": JAPANESE,
    "hi": HINDI,
    "ar": ARABIC,
}
LANGUAGES: tuple[str, ...] = tuple(_LANGUAGES)


def captions(scene: Scene, language: str) -> tuple[str, ...]:
    """Every wording of the scene in the language: at least six, all different, the plainest first.

    Raises InputError for a language not in LANGUAGES.
    """
    spoken = _find(language)
    return tuple(spoken.tell(scene, wording) for wording in spoken.wordings)


def caption(scene: Scene, language: str, draw: np.random.Generator) -> str:
    """One of `captions(scene, language)`, each as likely as the others; one integer is drawn.

    Raises InputError for a language not in LANGUAGES.
    """
    spoken = _find(language)
    return spoken.tell(scene, spoken.wordings[int(draw.integers(len(spoken.wordings)))])


def _find(language: str) -> Language:
    if language not in _LANGUAGES:
        raise InputError(f"captions are asked for in language {language!r}, wanted one of {', '.join(LANGUAGES)}")
    return _LANGUAGES[language]
