"""jina-embeddings-v3: texts alone, each with its task's prompt and adapter, to one vector.

    text -> prompt -> token ids -> graph "text", fed with an adapter -> text_embeds

Without a task there is neither prompt nor adapter. Pooling and the normalisation are inside the graph. It has no
mask: every token counts, a literal `<pad>` in a text too, and only texts of one length share a batch.
"""

from collections.abc import Callable, Sequence

from numpy.random import Generator

from edgeclip.families.family import Arrays, Item, Prepared, stack
from edgeclip.families.token_texts import TokenTexts
from edgeclip.inputs.images import ImageInput
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import Manifest, Modality, Space

_IDS = "input_ids"


class JinaEmbeddingsV3:
    """jina-embeddings-v3 at run time (`edgeclip.families.family.Family`)."""

    def __init__(self, manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> None:
        self._manifest = manifest
        self._texts = TokenTexts(manifest, tokenizer, masks_padding=False)

    def texts(self, texts: Sequence[str], task: str | None, max_length: int | None) -> Prepared:
        """Texts as items, a task's prompt before each and its adapter with each."""
        return self._texts.texts(texts, task, max_length)

    def token_ids(self, ids: Sequence[Sequence[int]], task: str | None, max_length: int | None) -> Prepared:
        """Token ids as items, with the task's adapter."""
        return self._texts.token_ids(ids, task, max_length)

    def image(self, image: ImageInput, task: str | None, *, max_pixels: int | None, label: str) -> Item:
        """InputError: it takes no images."""
        self._manifest.need_image()
        raise AssertionError("a jina-embeddings-v3 bundle has no facts of images")

    def feed(self, items: Sequence[Item]) -> Arrays:
        """A batch's ids (B, T)."""
        return {_IDS: stack([item.arrays[_IDS] for item in items])}

    def follow(self, item: Item, outputs: Arrays) -> Item | None:
        """None: the graph gives vectors."""
        return None

    def output(self, graph: str, space: Space) -> str:
        """text_embeds."""
        return "text_embeds"

    def made_up(self, draw: Generator, modality: Modality, tokens: int) -> Item:
        """A text of random tokens."""
        return self._texts.made_up(draw, tokens)

    def billed(self, item: Item, size: tuple[int, int] | None) -> int:
        """A text's tokens, with the special ones and the prompt."""
        return item.tokens
