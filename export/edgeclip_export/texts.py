"""What every family that takes texts shares: the tokenizer's file, and the texts of the self-test as ids."""

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from edgeclip.errors import BuildError
from edgeclip.manifest import TextFacts

# The texts of every self-test. The literal token is masked by one family and counted by another.
TEXTS = (
    "a red bicycle leaning on a wall",
    "ein rotes Fahrrad an einer Wand",
    "夕日の海辺を歩く二人",
    "صورة لقطة سوداء تنام",
    "a <pad> is masked",
    " ".join(f"{number} sheep" for number in range(1, 201)),  # more rows than `passes.mask_choice` calls few
)


def reset_tokenizer(content: bytes, facts: TextFacts, vocab_size: int) -> str:
    """tokenizer.json without the truncation and padding at 77 tokens the official file has built in."""
    try:
        document = json.loads(content)
        document["truncation"] = document["padding"] = None
        text = json.dumps(document, ensure_ascii=False)
        tokenizer = Tokenizer.from_str(text)
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
        raise BuildError(f"tokenizer.json: not a tokenizer ({error})") from error
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise BuildError(f"tokenizer.json: has {size} pieces, the text tower's table {vocab_size}")
    empty = tokenizer.encode("").ids
    if empty != [facts.bos_id, facts.eos_id]:
        raise BuildError(
            f"tokenizer.json: an empty text gives {empty}, config.json wants [{facts.bos_id}, {facts.eos_id}]"
        )
    return text


def tokenize(tokenizer: str, facts: TextFacts, texts: Iterable[str]) -> list[NDArray[np.int64]]:
    """The ids (1, T) of each text, cut at the model's limit; `tokenizer` is the text of tokenizer.json."""
    parsed = Tokenizer.from_str(tokenizer)
    rows = []
    for row in (parsed.encode(text).ids for text in texts):
        cut = row if len(row) <= facts.max_length else [*row[: facts.max_length - 1], facts.eos_id]
        rows.append(np.array([cut], dtype=np.int64))  # (1, T)
    return rows
