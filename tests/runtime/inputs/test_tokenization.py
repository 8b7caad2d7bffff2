"""Ids equal the reference tokenizer's, cut by its rule and by no limit that a file brings along."""

import dataclasses
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE

from edgeclip.engine.devices import usable_cpus
from edgeclip.errors import BundleError, InputError
from edgeclip.inputs.tokenization import TextTokenizer, TokenizedTexts, is_quick, slices
from edgeclip.manifest import Manifest, TextFacts
from tests.conftest import CHECKPOINT, GOLDEN

BOS, PAD, EOS = 0, 1, 2
SENTENCES: list[str] = json.loads((GOLDEN / "e2e.json").read_text())["sentences"]
GOLDEN_IDS = np.load(GOLDEN / "e2e.npz")["text.input_ids_512"]
LONG = "the red house " * 100


@pytest.fixture(scope="module")
def facts(bundle: Path) -> TextFacts:
    return Manifest.read(bundle).need_text()


@pytest.fixture(scope="module")
def tokenizer(bundle: Path, facts: TextFacts) -> TextTokenizer:
    return TextTokenizer(bundle / facts.file, facts)


def golden_rows() -> list[list[int]]:
    """The reference's ids, without the padding behind the closing token."""
    ends = [int(np.flatnonzero(row == EOS)[-1]) + 1 for row in GOLDEN_IDS]
    return [row[:end].tolist() for row, end in zip(GOLDEN_IDS, ends, strict=True)]


def test_ids_equal_the_references(tokenizer: TextTokenizer) -> None:
    """Empty and blank texts, four scripts, full width, unknown signs, literal specials, 512 tokens and more."""
    found = tokenizer.encode(SENTENCES, 512)
    assert [row.tolist() for row in found.rows] == golden_rows()
    assert all(row.dtype == np.int64 for row in found.rows)
    assert found.cut == tuple(index for index, row in enumerate(found.rows) if len(row) == 512)
    assert len(found.cut) == 1


def test_the_limit_of_a_file_is_reset(facts: TextFacts) -> None:
    """The official file cuts and pads at 77; whoever puts it into a bundle still gets whole texts."""
    official = CHECKPOINT / "tokenizer.json"
    assert len(Tokenizer.from_file(str(official)).encode(LONG)) == 77
    found = TextTokenizer(official, facts).encode([LONG, "the"], None)
    assert len(found.rows[0]) > 300
    assert len(found.rows[1]) == 3
    assert found.cut == ()


@pytest.mark.parametrize("limit", [2, 3, 20, 77, 511])
def test_a_cut_text_keeps_its_beginning_and_the_closing_token(tokenizer: TextTokenizer, limit: int) -> None:
    found = tokenizer.encode(SENTENCES, limit)
    whole = tokenizer.encode(SENTENCES, None).rows
    assert found.cut == tuple(index for index, row in enumerate(whole) if len(row) > limit) != ()
    for cut, row in zip(found.rows, whole, strict=True):
        expected = row.tolist() if len(row) <= limit else [*row[: limit - 1].tolist(), EOS]
        assert cut.tolist() == expected


def test_a_text_that_just_fits_is_not_cut(tokenizer: TextTokenizer) -> None:
    (row,) = tokenizer.encode([LONG], None).rows
    for limit, expected in ((len(row) - 1, (0,)), (len(row), ()), (len(row) + 1, ())):
        found = tokenizer.encode([LONG], limit)
        assert (len(found.rows[0]), found.cut) == (min(limit, len(row)), expected)


def test_without_a_limit_the_models_own_holds(bundle: Path, facts: TextFacts) -> None:
    short = TextTokenizer(bundle / facts.file, dataclasses.replace(facts, max_length=50))
    found = short.encode([LONG, "the"], None)
    assert [len(row) for row in found.rows] == [50, 3]
    assert found.cut == (0,)


def test_empty_and_blank_texts_are_the_two_special_tokens(tokenizer: TextTokenizer) -> None:
    found = tokenizer.encode(["", " ", "\n\t ", "\u3000"], None)
    assert [row.tolist() for row in found.rows] == [[BOS, EOS]] * 4
    assert found.cut == ()


def test_literal_specials_are_the_specials(tokenizer: TextTokenizer) -> None:
    """As in the reference: who writes <pad> has a padding token in the middle of a text."""
    rows = tokenizer.encode(["<pad> in text", "<s> literal </s>"], None).rows
    assert rows[0][1] == PAD
    assert rows[1][:2].tolist() == [BOS, BOS]
    assert rows[1][-2:].tolist() == [EOS, EOS]


def test_no_texts_have_no_ids(tokenizer: TextTokenizer) -> None:
    assert tokenizer.encode([], None) == TokenizedTexts(rows=(), cut=())


@pytest.mark.parametrize("limit", [-1, 0, 1, 8193, True, "20", 20.0, np.int64(20)])
def test_a_limit_that_is_none(tokenizer: TextTokenizer, limit: object) -> None:
    """Also when there is no text to cut."""
    with pytest.raises(InputError) as caught:
        tokenizer.encode([], limit)
    assert str(caught.value) == f"max_length is {limit!r}, wanted an int from 2 to 8192"


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[]", b"null", b'{"version": "1.0", "model": 3}'])
def test_a_file_that_is_no_tokenizer(tmp_path: Path, facts: TextFacts, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        TextTokenizer(path, facts)
    message = str(caught.value)
    assert message.startswith(f"{path}: not a tokenizer (")
    assert len(message.splitlines()) == 1


def test_many_texts_are_tokenised_a_part_at_a_time(tokenizer: TextTokenizer) -> None:
    """And numbered through: the texts of the second part are not those of the first."""
    texts = [SENTENCES[index % len(SENTENCES)] for index in range(2500)]
    found = tokenizer.encode(texts, 20)
    once = tokenizer.encode(SENTENCES, 20)
    assert len(found.rows) == 2500
    for index in range(2500):
        assert found.rows[index].tolist() == once.rows[index % len(SENTENCES)].tolist()
    assert found.cut == tuple(index for index in range(2500) if index % len(SENTENCES) in once.cut)


def test_so_many_texts_and_letters_are_tokenised_at_once() -> None:
    """What tokenizers gives takes 200 bytes a token, so its results are not held for all the texts of a request."""
    long = 1 << 18
    assert [*slices([])] == []
    assert [*slices([0])] == [range(1)]
    assert [*slices([long + 1])] == [range(1)]
    assert [*slices([1] * 1025)] == [range(1024), range(1024, 1025)]
    assert [*slices([long, 1, long - 1, 1])] == [range(1), range(1, 3), range(3, 4)]
    assert [*slices([5, long + 1, 5])] == [range(1), range(1, 2), range(2, 3)]


def test_few_short_texts_wait_for_no_other_thread(tokenizer: TextTokenizer) -> None:
    """While a long text keeps each thread of tokenizers' pool: the service tokenises short ones in its event loop."""
    threads = usable_cpus()
    long = ["\ufdfa" * (200_000 // threads)] * threads  # written as 18 letters each
    began_s = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        busy = pool.submit(tokenizer.encode, long, 20)
        time.sleep(0.05)  # until they are in the pool
        asked_s = time.monotonic()
        found = tokenizer.encode(SENTENCES[:3] * 3, 20)
        waited_s = time.monotonic() - asked_s
        assert not busy.done()
    assert waited_s < (time.monotonic() - began_s) / 3
    assert [*map(list, found.rows[:3])] == [*map(list, tokenizer.encode(SENTENCES, 20).rows[:3])]


def test_what_is_quick() -> None:
    assert is_quick([]) and is_quick([1000]) and is_quick([1] * 32)
    assert not is_quick([1001]) and not is_quick([500, 501]) and not is_quick([1] * 33)


def test_the_last_id_is_known(tokenizer: TextTokenizer, bundle: Path, facts: TextFacts) -> None:
    document = json.loads((bundle / facts.file).read_bytes())
    pieces = len(document["model"]["vocab"])
    assert tokenizer.count_ids() == 1 + max(pieces - 1, *(token["id"] for token in document["added_tokens"]))


def test_ids_may_have_holes(tmp_path: Path, facts: TextFacts) -> None:
    """Then the number of tokens says nothing."""
    few = Tokenizer(BPE({"a": 0, "b": 7, "c": 3}, []))
    few.save(str(tmp_path / "few.json"))
    assert TextTokenizer(tmp_path / "few.json", facts).count_ids() == 8


def test_texts_tokenised_apart_keep_their_order(tokenizer: TextTokenizer) -> None:
    texts = ["the red house " * 5000, *SENTENCES, "the " * 70_000, *SENTENCES]
    found = tokenizer.encode(texts, 512)
    assert found.cut[0] == 0 and len(SENTENCES) + 1 in found.cut
    for index, text in enumerate(texts):
        assert found.rows[index].tolist() == tokenizer.encode([text], 512).rows[0].tolist(), index
