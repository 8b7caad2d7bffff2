"""Texts for a graph that takes token ids alone: prompt, tokenise, cut. Families with such a text graph share it."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from edgeclip.errors import InputError
from edgeclip.families.family import Item, Prepared
from edgeclip.families.tasks import find_task
from edgeclip.inputs.tokenization import TextTokenizer, check_max_length
from edgeclip.manifest import FIRST_GRAPH, Manifest, TextFacts

# The name of the graph's input.
INPUT_IDS = "input_ids"


class TokenTexts:
    """Texts as items whose one array is `input_ids` (T,) int64.

    Where the model masks the padding token (`masks_padding`), a text that holds it needs a mask. Such texts share no
    batch with others, so no other text computes a mask for them.
    """

    def __init__(self, manifest: Manifest, tokenizer: Callable[[], TextTokenizer], *, masks_padding: bool) -> None:
        self._manifest, self._tokenizer = manifest, tokenizer
        self._masks_padding = masks_padding

    def texts(self, texts: Sequence[str], task: str | None, max_length: int | None) -> Prepared:
        """Items of texts with their task's prompt before them; `Family.texts`."""
        self._manifest.need_text()
        found = find_task(self._manifest, task, "text")
        prompts = [found.prompt + text for text in texts] if found.prompt else texts
        tokenized = self._tokenizer().encode(prompts, max_length)
        items = tuple(self.item(row, found.adapter) for row in tokenized.rows)
        return Prepared(items=items, cut=tokenized.cut)

    def token_ids(self, ids: Sequence[Sequence[int]], task: str | None, max_length: int | None) -> Prepared:
        """Items of texts that are given as token ids; `Family.token_ids`. InputError for a task with a prompt."""
        facts = self._manifest.need_text()
        found = find_task(self._manifest, task, "text")
        if found.prompt:
            raise InputError(
                f"the prompt of the task {task!r} is a text; put its tokens before yours, without a task"
            )
        limit = check_max_length(max_length, facts)
        framed = [_frame(row, facts) for row in ids]
        cut = tuple(index for index, row in enumerate(framed) if len(row) > limit)
        rows = (row if len(row) <= limit else np.append(row[: limit - 1], facts.eos_id) for row in framed)
        return Prepared(items=tuple(self.item(row, found.adapter) for row in rows), cut=cut)

    def made_up(self, draw: Generator, tokens: int) -> Item:
        """A text of so many random tokens, the opening and the closing one among them."""
        facts = self._manifest.need_text()
        special = [facts.bos_id, facts.eos_id, facts.pad_id]
        inner: NDArray[np.int64] = draw.integers(0, self._tokenizer().count_ids(), max(0, tokens - 2))
        inner[np.isin(inner, special)] = min({*range(len(special) + 1)}.difference(special))
        return self.item(np.array([facts.bos_id, *inner, facts.eos_id], np.int64), None)

    def item(self, row: NDArray[np.int64], adapter: str | None) -> Item:
        """The ids (T,) of one text as an item."""
        needs_mask = self._masks_padding and bool((row == self._manifest.need_text().pad_id).any())
        return Item(
            graph=FIRST_GRAPH["text"],
            arrays={INPUT_IDS: row},
            tokens=len(row),
            alike=(len(row), needs_mask),
            adapter=adapter,
            needs_mask=needs_mask,
        )


def _frame(ids: Sequence[int], facts: TextFacts) -> NDArray[np.int64]:
    """Ids with the opening and the closing token around them, unless both are there."""
    bos, eos = facts.bos_id, facts.eos_id
    given = np.array(ids, dtype=np.int64)
    is_framed = len(given) >= 2 and given[0] == bos and given[-1] == eos
    return given if is_framed else np.concatenate(([bos], given, [eos])).astype(np.int64)
