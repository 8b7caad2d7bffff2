"""Samples are halved without parting a text from its image, and made up alike every time."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgeclip import Manifest
from edgeclip.errors import BuildError, InputError
from edgeclip_quant.inputs.made_up import Samples, made_up_samples, padded_pair
from edgeclip_quant.proof.retrieval import Vectors, retrieval_changes


def numbered(texts: int, images: int, pairs: tuple[int, ...] | None = None) -> Samples:
    """Each input is its own number."""
    return Samples(
        name="numbers",
        text=tuple(np.full((1, 1), number) for number in range(texts)),
        vision=tuple(np.full((1, 1, 1, 3), number) for number in range(images)),
        pairs=pairs,
    )


def numbers(samples: Samples) -> tuple[list[int], list[int]]:
    return [int(row[0, 0]) for row in samples.text], [int(pixels[0, 0, 0, 0]) for pixels in samples.vision]


def test_without_pairs_texts_and_images_alternate() -> None:
    first, second = numbered(5, 4).halves()
    assert numbers(first) == ([0, 2, 4], [0, 2]) and numbers(second) == ([1, 3], [1, 3])
    assert first.pairs is None is second.pairs
    assert first.name == second.name == "numbers"
    assert first.of("text") is first.text and first.of("vision") is first.vision


@pytest.mark.parametrize(
    "pairs",
    [
        (0, 1, 2, 3, 4),
        (0, 0, 0, 1, 2, 2, 3, 4),
        (4, 3, 2, 1, 0),
        (3, 3, 0, 1),
        (2, 0, 1, 1, 4, 3, 2, 0, 0),
    ],
)
def test_a_text_still_describes_its_image_in_either_half(pairs: tuple[int, ...]) -> None:
    whole = numbered(len(pairs), 5, pairs)
    seen: list[int] = []
    for half, images in zip(whole.halves(), ([0, 2, 4], [1, 3]), strict=True):
        texts, pictures = numbers(half)
        assert pictures == images
        assert half.pairs is not None and len(half.pairs) == len(texts)
        for text, image in zip(texts, half.pairs, strict=True):
            assert pictures[image] == pairs[text]
        seen += texts
    assert sorted(seen) == list(range(len(pairs)))  # every text is in one


def test_no_half_has_a_pair_that_retrieval_refuses() -> None:
    draw = np.random.default_rng(0)
    pairs = tuple(int(image) for image in draw.integers(0, 20, 60))
    for half in numbered(60, 20, pairs).halves():
        vectors = Vectors(
            text=draw.standard_normal((len(half.text), 8)).astype(np.float32),
            vision=draw.standard_normal((len(half.vision), 8)).astype(np.float32),
        )
        retrieval_changes(vectors, vectors, half.pairs)
        with pytest.raises(InputError, match="wanted an image for each text"):
            retrieval_changes(vectors, vectors, pairs)


def test_made_up_samples_are_the_same_every_time(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    once, again, other = (made_up_samples(bundle, manifest, texts=9, images=5, seed=seed) for seed in (0, 0, 1))
    for one, two in zip((*once.text, *once.vision), (*again.text, *again.vision), strict=True):
        np.testing.assert_array_equal(one, two)
    assert any(not np.array_equal(one, two) for one, two in zip(once.text, other.text, strict=True))
    assert any(not np.array_equal(one, two) for one, two in zip(once.vision, other.vision, strict=True))
    assert once.pairs is None and once.name == "made-up inputs"


def test_made_up_samples_are_what_the_graphs_take(bundle: Path) -> None:
    manifest = Manifest.read(bundle)
    facts = manifest.tokenizer
    samples = made_up_samples(bundle, manifest, texts=200, images=6)
    size = Tokenizer.from_file(str(bundle / facts.file)).get_vocab_size()
    lengths = {row.shape[1] for row in samples.text}
    assert min(lengths) < 8 and 50 < max(lengths) < 70
    inner = np.concatenate([row[0, 1:-1] for row in samples.text])
    for row in samples.text:
        assert row.shape[0] == 1 and row.dtype == np.int64
        assert (row[0, 0], row[0, -1]) == (facts.bos_id, facts.eos_id)
    assert not np.isin(inner, [facts.pad_id, facts.bos_id, facts.eos_id]).any()  # nothing is masked
    assert inner.min() >= 0 and inner.max() < size and len(set(inner.tolist())) > size // 2
    side = manifest.image.size_px
    assert {pixels.shape for pixels in samples.vision} == {(1, side, side, 3)}
    assert {pixels.dtype for pixels in samples.vision} == {np.dtype(np.uint8)}
    assert min(pixels.std() for pixels in samples.vision) > 20


def test_a_padded_pair_is_the_shortest_and_the_longest_text() -> None:
    texts = tuple(np.arange(10, 10 + length)[None] for length in (4, 2, 7, 3))
    np.testing.assert_array_equal(padded_pair(texts, 1), [[10, 11, 1, 1, 1, 1, 1], [10, 11, 12, 13, 14, 15, 16]])
    assert padded_pair(texts[:1], 1).tolist() == [[10, 11, 12, 13]] * 2


def test_a_bundle_without_a_tokenizer_is_told(copied_bundle: Path) -> None:
    manifest = Manifest.read(copied_bundle)
    path = copied_bundle / manifest.tokenizer.file
    for content in (b"{", None):
        path.unlink() if content is None else path.write_bytes(content)
        with pytest.raises(
            BuildError, match=r"tokenizer.json: not a tokenizer \(.*\); export or copy the bundle again"
        ):
            made_up_samples(copied_bundle, manifest, texts=1, images=1)
