"""The page model's tokenizer: Qwen2's pipeline over byte-level BPE merges learnt from questions."""

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from edgeclip_bench.demo.pages.contents import draw_pages
from edgeclip_bench.demo.pages.questions import LANGUAGES, ask, word
from edgeclip_bench.families.qwen_tokenizer import write_pieces
from edgeclip_export.families.jina_embeddings_v4.config import PROMPTS
from edgeclip_export.families.jina_embeddings_v4.tokenizer import IMAGE_PROMPT, read_tokenizer

_QUESTIONS_PER_LANGUAGE = 2000
_PIECES = 1500


def train_tokenizer(out: Path, seed: int) -> Tokenizer:
    """Write the tokenizer's files into `out`, which exists; the same seed gives the same files."""
    draw = np.random.default_rng((seed, 1))
    pages = draw_pages("train", draw, family=1)
    texts = [
        PROMPTS["query"] + word(ask(next(pages), draw), language, draw)
        for language in LANGUAGES
        for _ in range(_QUESTIONS_PER_LANGUAGE)
    ]
    plain = re.sub(r"<\|\w+\|>", "\n", IMAGE_PROMPT)  # special tokens stand for themselves
    texts += [PROMPTS["passage"], *plain.splitlines()] * _QUESTIONS_PER_LANGUAGE
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    with TemporaryDirectory() as folder:
        # Without merges it is the pipeline alone, which the trainer divides the texts by.
        write_pieces(Path(folder), alphabet, [])
        tokenizer = Tokenizer.from_str(read_tokenizer(Path(folder)))
    trainer = trainers.BpeTrainer(
        vocab_size=_PIECES, initial_alphabet=alphabet, min_frequency=10, show_progress=False
    )
    tokenizer.model = models.BPE()
    tokenizer.train_from_iterator(texts, trainer)
    merges = [(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]]
    write_pieces(out, alphabet, merges)
    return Tokenizer.from_str(read_tokenizer(out))
