"""Texts become items of token ids: prompt, limit, opening and closing token, adapter; padding tokens need a mask."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeclip import Encoder
from edgeclip.errors import InputError
from edgeclip.families.family import Item
from edgeclip.families.token_texts import TokenTexts
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import AdapterFacts, FileFacts, Manifest, TaskFacts

BOS, PAD, EOS = 0, 1, 2
TASKS = {
    "query": TaskFacts(prompt="the red ", adapter="lora", modalities=("text",)),
    "passage": TaskFacts(prompt="", adapter="lora", modalities=("text",)),
}


@pytest.fixture(scope="module")
def tokenizer(bundle: Path) -> TextTokenizer:
    facts = Manifest.read(bundle).need_text()
    return TextTokenizer(bundle / facts.file, facts)


@pytest.fixture
def manifest(encoder: Encoder) -> Manifest:
    """The golden bundle's, with a task that has both a prompt and an adapter, and one with an adapter alone."""
    files = (*encoder.manifest.files, FileFacts(name="lora.npz", size_bytes=1, sha256="0"))
    lora = AdapterFacts(file="lora.npz", graph="text", rank=1)
    return dataclasses.replace(encoder.manifest, tasks=TASKS, adapters={"lora": lora}, files=files)


@pytest.fixture
def texts(manifest: Manifest, tokenizer: TextTokenizer) -> TokenTexts:
    return TokenTexts(manifest, lambda: tokenizer, masks_padding=True)


def rows(items: Sequence[Item]) -> list[list[int]]:
    """The ids of each item, whose only array they are."""
    assert all(list(item.arrays) == ["input_ids"] for item in items)
    assert all(item.arrays["input_ids"].dtype == np.int64 for item in items)
    return [item.arrays["input_ids"].tolist() for item in items]


def test_the_tokenizer_is_asked_for_with_the_first_text(manifest: Manifest) -> None:
    """Token ids need none, and a wrong task is refused before one is parsed."""
    texts = TokenTexts(manifest, lambda: pytest.fail("it was parsed"), masks_padding=True)
    assert rows(texts.token_ids([[5, 6]], None, None).items) == [[BOS, 5, 6, EOS]]
    with pytest.raises(InputError, match="^task is 'x'"):
        texts.texts(["a"], "x", None)


def test_a_text_is_an_item_of_its_ids(texts: TokenTexts, tokenizer: TextTokenizer) -> None:
    given = ["the red house", "", "a cat"]
    prepared = texts.texts(given, None, None)
    assert rows(prepared.items) == [row.tolist() for row in tokenizer.encode(given, None).rows]
    assert prepared.cut == ()
    for item, row in zip(prepared.items, rows(prepared.items), strict=True):
        assert (item.graph, item.tokens, item.adapter, item.needs_mask) == ("text", len(row), None, False)


def test_a_task_is_its_prompt_before_the_text_and_its_adapter(texts: TokenTexts, tokenizer: TextTokenizer) -> None:
    asked, plain = texts.texts(["house"], "query", None), texts.texts(["house"], "passage", None)
    assert rows(asked.items) == [tokenizer.encode(["the red house"], None).rows[0].tolist()]
    assert rows(plain.items) == rows(texts.texts(["house"], None, None).items)
    assert asked.items[0].adapter == plain.items[0].adapter == "lora"


def test_long_texts_are_cut_with_their_prompt(texts: TokenTexts, tokenizer: TextTokenizer) -> None:
    """The prompt is what is left of a text that is cut hard."""
    long = "a cat " * 50
    prepared = texts.texts([long, "a", long], "query", 7)
    assert prepared.cut == (0, 2)
    assert [item.tokens for item in prepared.items][::2] == [7, 7]
    assert rows(prepared.items)[0] == [*tokenizer.encode(["the red " + long], None).rows[0][:6].tolist(), EOS]


def test_texts_with_padding_share_no_batch_with_others(texts: TokenTexts, manifest: Manifest) -> None:
    """They alone need a mask; a model that masks nothing needs none, and then they are like all others."""
    plain, padded = texts.token_ids([[5, 6], [5, PAD]], None, None).items
    assert (plain.tokens, plain.needs_mask, padded.tokens, padded.needs_mask) == (4, False, 4, True)
    assert plain.alike != padded.alike
    unmasked = TokenTexts(manifest, pytest.fail, masks_padding=False)
    plain, padded = unmasked.token_ids([[5, 6], [5, PAD]], None, None).items
    assert not padded.needs_mask and plain.alike == padded.alike


def test_texts_of_two_lengths_share_no_batch(texts: TokenTexts) -> None:
    one, two, same = texts.token_ids([[5], [5, 6], [7]], None, None).items
    assert one.alike == same.alike != two.alike


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], [BOS, EOS]),
        ([5], [BOS, 5, EOS]),
        ([BOS, 5, EOS], [BOS, 5, EOS]),
        ([BOS, EOS], [BOS, EOS]),
        ([BOS, 5], [BOS, BOS, 5, EOS]),
        ([5, EOS], [BOS, 5, EOS, EOS]),
        ([BOS], [BOS, BOS, EOS]),
        ([EOS, BOS], [BOS, EOS, BOS, EOS]),
    ],
)
def test_token_ids_are_framed_unless_both_ends_are_there(
    texts: TokenTexts, given: list[int], wanted: list[int]
) -> None:
    assert rows(texts.token_ids([given, given], None, None).items) == [wanted, wanted]


@pytest.mark.parametrize("limit", [2, 3, 5, 8, 9, 10])
def test_token_ids_are_cut_as_texts_are(texts: TokenTexts, limit: int) -> None:
    """The beginning and the closing token stay. A row that just fits is whole."""
    whole = [BOS, *range(5, 12), EOS]
    prepared = texts.token_ids([[5], list(range(5, 12))], None, limit)
    assert rows(prepared.items)[1] == (whole if limit >= 9 else [*whole[: limit - 1], EOS])
    assert prepared.cut == (*((0,) if limit < 3 else ()), *((1,) if limit < 9 else ()))


def test_token_ids_keep_to_the_models_limit(texts: TokenTexts) -> None:
    prepared = texts.token_ids([[5] * 9000, [5] * 8190], None, None)
    assert [item.tokens for item in prepared.items] == [8192, 8192] and prepared.cut == (0,)


def test_token_ids_take_no_prompt(texts: TokenTexts) -> None:
    """It is a text: nobody knows what its tokens would have been within the user's. An adapter is no text."""
    with pytest.raises(InputError) as caught:
        texts.token_ids([[5]], "query", None)
    assert str(caught.value) == (
        "the prompt of the task 'query' is a text; put its tokens before yours, without a task"
    )
    (item,) = texts.token_ids([[5]], "passage", None).items
    assert item.adapter == "lora"


@pytest.mark.parametrize("limit", [0, 1, 8193, True, "5", 5.0])
def test_a_limit_that_is_none(texts: TokenTexts, limit: Any) -> None:
    """Also without texts."""
    for call in (lambda: texts.token_ids([], None, limit), lambda: texts.texts([], None, limit)):
        with pytest.raises(InputError, match="wanted an int from 2 to 8192"):
            call()


@pytest.mark.parametrize("tokens", [2, 3, 16, 500])
def test_a_made_up_text_has_so_many_tokens(texts: TokenTexts, tokenizer: TextTokenizer, tokens: int) -> None:
    """Between the opening and the closing one there is no special token, and every id is the tokenizer's."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        item = texts.made_up(draw, tokens)
        (row,) = rows([item])
        assert len(row) == item.tokens == tokens and (row[0], row[-1]) == (BOS, EOS)
        assert not {BOS, PAD, EOS} & set(row[1:-1]) and max(row) < tokenizer.count_ids()
        assert not item.needs_mask and item.adapter is None


def test_a_bundle_without_texts_is_refused(manifest: Manifest) -> None:
    graphs = {"vision": manifest.graphs["vision"]}
    images = dataclasses.replace(manifest, text=None, graphs=graphs, tasks={}, adapters={})
    texts = TokenTexts(images, pytest.fail, masks_padding=True)
    for call in (
        lambda: texts.texts(["a"], None, None),
        lambda: texts.texts([], None, None),
        lambda: texts.token_ids([[5]], None, None),
        lambda: texts.made_up(np.random.default_rng(0), 16),
    ):
        with pytest.raises(InputError, match="takes no texts; it takes images"):
            call()
