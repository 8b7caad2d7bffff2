"""nllb-clip-siglip: texts, each with the code of its language, and images of one size, to one vector.

    text  -> token ids, the language's first -> graph "text"   -> text_embeds
    image -> one square size, uint8 pixels   -> graph "vision" -> image_embeds

A text's task is its language. The code is a token of its own, which takes the place of the opening one: the model
pools that token, so a wrong code gives a wrong vector, and no code at all gives nonsense. Here it is always said. A
code that is spelled inside a text is a token like any other.

Pooling, mean and std, and the normalisation are inside the graphs.
"""

import html
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from edgeclip.errors import BundleError, InputError
from edgeclip.families.family import Item, Prepared
from edgeclip.families.jina_clip import JinaClip
from edgeclip.families.tasks import find_task
from edgeclip.inputs.tokenization import TextTokenizer, check_max_length
from edgeclip.manifest import Manifest


class NllbClip(JinaClip):
    """nllb-clip-siglip at run time (`edgeclip.families.family.Family`); its images are as jina-clip's."""

    # open_clip resizes the image as it was read.
    _resizes_first = True

    def __init__(self, manifest: Manifest, tokenizer: Callable[[], TextTokenizer]) -> None:
        super().__init__(manifest, tokenizer)
        self._tokenizer = tokenizer

    def texts(self, texts: Sequence[str], task: str | None, max_length: int | None) -> Prepared:
        """Texts as items, cleaned as open_clip does: entities of HTML are read, and spaces are single ones."""
        self._manifest.need_text()
        code = find_task(self._manifest, task, "text").prompt
        tokenized = self._tokenizer().encode([_clean(text) for text in texts], max_length)
        rows = (np.concatenate(([self._codes[code]], row[1:])) for row in tokenized.rows)
        return Prepared(items=tuple(self._texts.item(row, None) for row in rows), cut=tokenized.cut)

    def token_ids(self, ids: Sequence[Sequence[int]], task: str | None, max_length: int | None) -> Prepared:
        """Token ids as items, the language's code before and the closing token behind those that lack it.

        InputError for ids that begin with another language's code, or end with one, as in NLLB's older layout.
        """
        facts = self._manifest.need_text()
        code = find_task(self._manifest, task, "text").prompt
        limit = check_max_length(max_length, facts)
        names = {id: name for name, id in self._codes.items()}
        rows: list[NDArray[np.int64]] = []
        for index, given in enumerate(ids):
            row = list(given)
            first, last = (names.get(row[place]) if row else None for place in (0, -1))
            if first not in (None, code) or (last is not None and len(row) > 1):
                wrong = f"begin with {first!r}" if first not in (None, code) else f"end with {last!r}"
                raise InputError(f"the ids of text {index} {wrong}, and its task is {code!r}: wanted that code first")
            row = row if first else [self._codes[code], *row]
            rows.append(np.array(row if row[-1] == facts.eos_id else [*row, facts.eos_id], np.int64))
        cut = tuple(index for index, row in enumerate(rows) if len(row) > limit)
        short = (row if len(row) <= limit else np.append(row[: limit - 1], facts.eos_id) for row in rows)
        return Prepared(items=tuple(self._texts.item(row, None) for row in short), cut=cut)

    def billed(self, item: Item, size: tuple[int, int] | None) -> int:
        """A text's tokens, with the code and the closing one; an image counts as one."""
        return item.tokens

    @cached_property
    def _codes(self) -> dict[str, int]:
        """The id of each language's code."""
        facts = self._manifest.need_text()
        codes = [task.prompt for task in self._manifest.tasks.values()]
        rows = self._tokenizer().encode(codes, None).rows
        if wrong := [code for code, row in zip(codes, rows, strict=True) if len(row) != 3]:
            raise BundleError(f"{facts.file}: the language's code {wrong[0]!r} is no token; export the bundle again")
        return {code: int(row[1]) for code, row in zip(codes, rows, strict=True)}


def _clean(text: str) -> str:
    return " ".join(html.unescape(html.unescape(text)).split())
