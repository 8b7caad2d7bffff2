"""The small tokenizer knows every word that captions have, is the official one in form, and is the same each time."""

import json
import os
import subprocess
import sys
from itertools import islice

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgeclip_bench.demo import tokenizer as module
from edgeclip_bench.demo.captions import LANGUAGES, captions
from edgeclip_bench.demo.layout import VOCAB_SIZE
from edgeclip_bench.demo.scenes import draw_scenes
from edgeclip_bench.demo.tokenizer import train_tokenizer
from tests.conftest import CHECKPOINT

MAX_MEAN_PIECES = 25  # what a query costs; French has the most, 22.4
WITHOUT_SPACES = ("zh", "ja")
each_language = pytest.mark.parametrize("language", LANGUAGES)


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    """As it is written: with truncation and padding."""
    return train_tokenizer(0)


@pytest.fixture(scope="module")
def tokenizer(official: Tokenizer) -> Tokenizer:
    """As it is used: without."""
    plain = Tokenizer.from_str(official.to_str())
    plain.no_truncation()
    plain.no_padding()
    return plain


@pytest.fixture(scope="module")
def told() -> dict[str, list[str]]:
    """Every wording of 200 scenes of combinations that the captions counted never have."""
    scenes = list(islice(draw_scenes("test", np.random.default_rng(3), family=1), 200))
    return {language: [text for scene in scenes for text in captions(scene, language)] for language in LANGUAGES}


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """Without the opening and the closing one."""
    tokens: list[str] = tokenizer.encode(text).tokens
    assert (tokens[0], tokens[-1]) == ("<s>", "</s>")
    return tokens[1:-1]


def test_special_tokens_have_the_official_ids(official: Tokenizer) -> None:
    assert [official.token_to_id(piece) for piece in ("<s>", "<pad>", "</s>", "<unk>")] == [0, 1, 2, 3]
    assert official.token_to_id("<mask>") == official.get_vocab_size() - 1
    assert len(official.get_added_tokens_decoder()) == 5
    assert all(token.special for token in official.get_added_tokens_decoder().values())


def test_the_form_is_the_official_files(official: Tokenizer) -> None:
    """But for the normalizer (sentencepiece's table, which NFKC is nearly) and whether <mask> goes through it."""
    found = json.loads(official.to_str())
    wanted = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    for part in ("truncation", "padding", "pre_tokenizer", "post_processor"):
        assert found[part] == wanted[part], part
    for document in (found, wanted):
        document["added_tokens"][-1] |= {"id": "last", "normalized": None}
    assert found["added_tokens"] == wanted["added_tokens"]
    assert (found["model"]["type"], found["model"]["unk_id"], found["model"]["byte_fallback"]) == (
        "Unigram",
        3,
        False,
    )


def test_every_text_is_77_ids_as_in_the_official_file(official: Tokenizer) -> None:
    short, long = official.encode("red"), official.encode("red " * 100)
    assert short.ids == [0, official.token_to_id("▁red"), 2, *[1] * 74]
    assert short.attention_mask == [1] * 3 + [0] * 74
    assert long.ids == [0, *[official.token_to_id("▁red")] * 75, 2]


def test_the_vocabulary_is_about_what_the_layout_says(official: Tokenizer) -> None:
    assert 0.9 * VOCAB_SIZE < official.get_vocab_size() <= VOCAB_SIZE


@each_language
def test_no_wording_of_a_kept_combination_has_anything_unknown(
    tokenizer: Tokenizer, told: dict[str, list[str]], language: str
) -> None:
    for text, encoding in zip(told[language], tokenizer.encode_batch(told[language]), strict=True):
        assert 3 not in encoding.ids, text


@each_language
def test_captions_are_short(tokenizer: Tokenizer, told: dict[str, list[str]], language: str) -> None:
    lengths = [len(encoding.ids) for encoding in tokenizer.encode_batch(told[language])]
    assert np.mean(lengths) < MAX_MEAN_PIECES
    assert max(lengths) < 77  # where the official file cuts


@pytest.mark.parametrize("language", [name for name in LANGUAGES if name not in WITHOUT_SPACES])
def test_every_word_of_a_caption_is_one_piece(
    tokenizer: Tokenizer, told: dict[str, list[str]], language: str
) -> None:
    """With the mark behind it as another."""
    words = {word for text in told[language] for word in text.split()}
    assert len(words) > 80
    assert [word for word in words if len(pieces(tokenizer, word)) > 1 + (word[-1] in ",.:;،")] == []


@pytest.mark.parametrize("language", WITHOUT_SPACES)
def test_without_spaces_a_piece_holds_most_of_two_signs(
    tokenizer: Tokenizer, told: dict[str, list[str]], language: str
) -> None:
    """1.9 of Chinese, 2.5 of Japanese; letters alone would be 1."""
    texts = told[language]
    assert sum(map(len, texts)) > 1.8 * sum(len(pieces(tokenizer, text)) for text in texts)


def test_a_word_never_seen_is_spelt(tokenizer: Tokenizer) -> None:
    for word in ("stardust", "Sternenring", "кругозор"):
        found = pieces(tokenizer, word)
        assert "".join(found) == f"▁{word}"
        assert len(found) > 1
        assert "<unk>" not in found


def test_a_letter_never_seen_is_unknown(tokenizer: Tokenizer) -> None:
    assert 3 in tokenizer.encode("ᚠ").ids


def test_forms_of_a_sign_are_one(tokenizer: Tokenizer) -> None:
    """Full width and decomposed, as keyboards of some languages write."""
    assert tokenizer.encode("ｒｅｄ").ids == tokenizer.encode("red").ids
    assert tokenizer.encode("ci\u0301rculo").ids == tokenizer.encode("círculo").ids


def test_two_texts_are_put_together_as_the_official_file_does(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("red", "blue").tokens == ["<s>", "▁red", "</s>", "</s>", "▁blue", "</s>"]


def test_a_seed_gives_the_same_bytes_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order its sets would have; counted on fewer captions, to be quick."""
    few = 150
    monkeypatch.setattr(module, "_CAPTIONS_PER_LANGUAGE", few)
    here = train_tokenizer(7).to_str(pretty=True)
    program = f"""if True:
        import sys
        from edgeclip_bench.demo import tokenizer
        tokenizer._CAPTIONS_PER_LANGUAGE = {few}
        sys.stdout.buffer.write(tokenizer.train_tokenizer(7).to_str(pretty=True).encode())
    """
    for hash_seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=env)
        assert done.stdout.decode() == here
    assert train_tokenizer(8).to_str(pretty=True) != here
