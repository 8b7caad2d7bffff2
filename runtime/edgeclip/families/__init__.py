"""The families of models that this runtime runs: one list, a line each."""

from collections.abc import Callable, Mapping

from edgeclip.errors import BundleError
from edgeclip.families.family import Family
from edgeclip.families.jina_clip import JinaClip
from edgeclip.families.jina_embeddings_v3 import JinaEmbeddingsV3
from edgeclip.families.jina_embeddings_v4 import JinaEmbeddingsV4
from edgeclip.families.nllb_clip import NllbClip
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest

FAMILIES: Mapping[str, type[Family]] = {
    "jina_clip": JinaClip,
    "jina_embeddings_v3": JinaEmbeddingsV3,
    "jina_embeddings_v4": JinaEmbeddingsV4,
    "nllb_clip": NllbClip,
}


def find_family(name: str) -> type[Family]:
    """The family of that name; BundleError for an unknown one."""
    if (family := FAMILIES.get(name)) is None:
        raise BundleError(f"a bundle of the family {name!r}; this edgeclip runs {', '.join(FAMILIES)}")
    return family


def open_family(manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> Family:
    """The family of a bundle; `tokenizer` gives its tokenizer when a text comes. BundleError for an unknown one."""
    return find_family(manifest.family)(manifest, tokenizer)
