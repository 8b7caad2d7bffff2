"""The small model's tokenizer: XLM-R's pipeline over a Unigram vocabulary counted on its captions.

The pieces are the captions' words, runs of up to three characters where a language writes no spaces, and every
character, each with the logarithm of its share. Counting beats the usual trainer here, which seeds its pieces with
what different words share, so it cuts up a short word that is like no other, and its result differs from run to run.
"""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from edgeclip_bench.demo.captions import LANGUAGES, caption
from edgeclip_bench.demo.scenes import draw_scenes
from edgeclip_bench.families.xlmr_tokenizer import xlmr_tokenizer

_CAPTIONS_PER_LANGUAGE = 4000
_WITHOUT_SPACES = ("zh", "ja")
_MARKS = ",.،。"
_MAX_RUN = 3
_RUNS = 400


def train_tokenizer(seed: int) -> Tokenizer:
    """The tokenizer made from captions of training scenes; the same seed gives the same file."""
    draw = np.random.default_rng((seed, 1))
    scenes = draw_scenes("train", draw, family=1)

    def captions(languages: Sequence[str]) -> list[str]:
        each = [language for language in languages for _ in range(_CAPTIONS_PER_LANGUAGE)]
        return [caption(next(scenes), language, draw) for language in each]

    tokenizer = xlmr_tokenizer(())
    words = _count_words(tokenizer, captions([name for name in LANGUAGES if name not in _WITHOUT_SPACES]))
    strings = _count_words(tokenizer, captions(_WITHOUT_SPACES))
    pieces = words + _count_runs(strings)
    for character, count in (_count_runs_of(1, words + strings) + Counter(_MARKS)).items():
        pieces.setdefault(character, count)
    total = sum(pieces.values())
    # A single character must never be likelier than the word it stands in.
    scores = {piece: math.log(count / total) - (12.0 if len(piece) == 1 else 0.0) for piece, count in pieces.items()}
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    return xlmr_tokenizer(ranked)


def _count_words(tokenizer: Tokenizer, texts: Sequence[str]) -> Counter[str]:
    """Count the words that the pipeline divides texts into before the model sees them, without the mark behind."""
    counts: Counter[str] = Counter()
    for text in texts:
        normal = tokenizer.normalizer.normalize_str(text)
        counts.update(word.rstrip(_MARKS) for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal))
    return counts


def _count_runs(strings: Counter[str]) -> Counter[str]:
    """Count the runs of up to `_MAX_RUN` characters that save the most pieces."""
    counts = sum((_count_runs_of(length, strings) for length in range(2, _MAX_RUN + 1)), Counter[str]())
    saved = sorted(counts, key=lambda run: (-counts[run] * (len(run) - 1), run))
    return Counter({run: counts[run] for run in saved[:_RUNS]})


def _count_runs_of(length: int, strings: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for string, times in strings.items():
        for start in range(len(string) - length + 1):
            counts[string[start : start + length]] += times
    return counts
