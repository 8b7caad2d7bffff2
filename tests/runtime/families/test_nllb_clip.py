"""nllb-clip-siglip at run time: a text's ids begin with its language's code, and no other way is taken."""

import dataclasses
from pathlib import Path

import pytest
from tokenizers import Tokenizer, processors

from edgeclip import Encoder, InputError
from edgeclip.families import open_family
from edgeclip.families.family import Family
from edgeclip.families.nllb_clip import NllbClip
from edgeclip.inputs.tokenization import TextTokenizer
from edgeclip.manifest import TaskFacts, TextFacts
from tests.conftest import DATA

CODES = ("eng_Latn", "deu_Latn", "rus_Cyrl")
LONGEST, EOS, PAD = 12, 2, 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The golden checkpoint's, its code before the text."""
    found = Tokenizer.from_file(str(DATA / "nllb_clip" / "checkpoint" / "tokenizer.json"))
    ids = [("eng_Latn", found.token_to_id("eng_Latn")), ("</s>", EOS)]
    found.post_processor = processors.TemplateProcessing(single="eng_Latn $A </s>", special_tokens=ids)
    return found


@pytest.fixture(scope="module")
def family(encoder: Encoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder: Path = tmp_path_factory.mktemp("nllb")
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = TextFacts(
        file="tokenizer.json",
        max_length=LONGEST,
        bos_id=tokenizer.token_to_id("eng_Latn"),
        eos_id=EOS,
        pad_id=PAD,
    )
    manifest = dataclasses.replace(
        encoder.manifest,
        family="nllb_clip",
        text=facts,
        tasks={code: TaskFacts(prompt=code, adapter=None, modalities=("text",)) for code in CODES},
        task_required=True,
    )
    opened = open_family(manifest, lambda: TextTokenizer(folder / facts.file, facts))
    assert isinstance(opened, NllbClip)
    return opened


def ids_of(family: Family, text: str, code: str) -> list[int]:
    (item,) = family.texts([text], code, None).items
    found: list[int] = item.arrays["input_ids"].tolist()
    return found


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("text", ["a wall", "", "deu_Latn", "two </s> here", "eng_Latn a"])
def test_the_code_of_the_language_comes_first(family: Family, tokenizer: Tokenizer, text: str, code: str) -> None:
    """A code inside a text is a token like any other."""
    inner = tokenizer.encode(text, add_special_tokens=False).ids
    assert ids_of(family, text, code) == [tokenizer.token_to_id(code), *inner, EOS]


def test_entities_and_spaces_are_read_as_in_open_clip(family: Family) -> None:
    assert ids_of(family, "  Tom\n&amp;amp;   Jerry ", "eng_Latn") == ids_of(family, "Tom & Jerry", "eng_Latn")


def test_a_long_text_keeps_its_code_and_closing_token(family: Family, tokenizer: Tokenizer) -> None:
    prepared = family.texts(["ein rotes Fahrrad an einer Wand " * 4], "deu_Latn", None)
    ids = prepared.items[0].arrays["input_ids"].tolist()
    assert (len(ids), ids[0], ids[-1]) == (LONGEST, tokenizer.token_to_id("deu_Latn"), EOS)
    assert prepared.cut == (0,)


def test_a_literal_padding_token_needs_a_mask(family: Family) -> None:
    padded, plain = family.texts(["a <pad> b", "a b"], "eng_Latn", None).items
    assert (padded.needs_mask, plain.needs_mask) == (True, False)


@pytest.mark.parametrize("task", [None, "de", "DEU_LATN", "deu_Latn ", "retrieval.query"])
def test_a_wrong_or_missing_code_is_refused(family: Family, task: str | None) -> None:
    for call in (lambda: family.texts(["a"], task, None), lambda: family.token_ids([[5]], task, None)):
        with pytest.raises(InputError, match="the code of a text's language"):
            call()


def test_ids_may_have_their_code_and_closing_token(family: Family) -> None:
    whole = ids_of(family, "a wall", "rus_Cyrl")
    for given in (whole, whole[1:], whole[:-1], whole[1:-1]):
        (item,) = family.token_ids([given], "rus_Cyrl", None).items
        assert item.arrays["input_ids"].tolist() == whole


def test_ids_of_another_language_or_layout_are_refused(family: Family) -> None:
    whole = ids_of(family, "a wall", "rus_Cyrl")
    with pytest.raises(InputError, match="ids of text 1 begin with 'rus_Cyrl', and its task is 'deu_Latn'"):
        family.token_ids([[5], whole], "deu_Latn", None)
    with pytest.raises(InputError, match="ids of text 0 end with 'rus_Cyrl', and its task is 'rus_Cyrl'"):
        family.token_ids([[*whole[1:], whole[0]]], "rus_Cyrl", None)
