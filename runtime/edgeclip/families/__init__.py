"""The families of models that this runtime runs: one list, a line each."""

from collections.abc import Callable, Mapping

from edgeclip.errors import BundleError
from edgeclip.families.family import Family
from edgeclip.families.jina_clip import JinaClip
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest

FAMILIES: Mapping[str, type[Family]] = {
    "jina_clip": JinaClip,
}


def open_family(manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> Family:
    """The family of a bundle; `tokenizer` gives its tokenizer when a text comes. BundleError for an unknown one."""
    if (kind := FAMILIES.get(manifest.family)) is None:
        raise BundleError(f"a bundle of the family {manifest.family!r}; this edgeclip runs {', '.join(FAMILIES)}")
    return kind(manifest, tokenizer)
