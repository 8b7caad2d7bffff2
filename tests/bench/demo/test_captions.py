"""Scenes are told in ten languages, with all their facts, in several wordings and in the languages' own grammar."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from edgeclip.errors import InputError
from edgeclip_bench.demo.captions import LANGUAGES, caption, captions
from edgeclip_bench.demo.scenes import (
    BACKGROUNDS,
    COLOURS,
    MAX_COUNT,
    RELATIONS,
    SHAPES,
    SIZES,
    TEXTURES,
    Colour,
    Group,
    Scene,
    Shape,
    Size,
    Texture,
    draw_scenes,
)


def group(count: int, size: Size, texture: Texture, colour: Colour, shape: Shape) -> Group:
    return Group(count=count, size=size, texture=texture, colour=colour, shape=shape)


STARS = Scene(
    first=group(2, "small", "dotted", "red", "star"),
    relation="left_of",
    second=group(1, "large", "plain", "blue", "heart"),
    background="grey",
)
CRESCENTS = Scene(
    first=group(3, "large", "striped", "purple", "crescent"),
    relation="below",
    second=group(1, "small", "plain", "black", "ring"),
    background="brown",
)
CROSS = Scene(
    first=group(1, "large", "dotted", "yellow", "cross"),
    relation="right_of",
    second=group(3, "small", "plain", "white", "star"),
    background="turquoise",
)
CIRCLES = Scene(
    first=group(2, "large", "striped", "green", "circle"),
    relation="above",
    second=group(2, "small", "plain", "orange", "heart"),
    background="pink",
)
# Written by hand, not by the code: the plainest wording of the four scenes.
EXPECTED: dict[str, tuple[str, str, str, str]] = {
    "en": (
        "two small dotted red stars to the left of one large blue heart on a grey background",
        "three large striped purple crescents below one small black ring on a brown background",
        "one large dotted yellow cross to the right of three small white stars on a turquoise background",
        "two large striped green circles above two small orange hearts on a pink background",
    ),
    "de": (
        "zwei kleine gepunktete rote Sterne links von einem großen blauen Herzen auf grauem Hintergrund",
        "drei große gestreifte violette Mondsicheln unter einem kleinen schwarzen Ring auf braunem Hintergrund",
        "ein großes gepunktetes gelbes Kreuz rechts von drei kleinen weißen Sternen auf türkisfarbenem Hintergrund",
        "zwei große gestreifte grüne Kreise über zwei kleinen orangefarbenen Herzen auf rosa Hintergrund",
    ),
    "fr": (
        "deux petites étoiles rouges à pois à gauche d'un grand cœur bleu sur fond gris",
        "trois grands croissants violets rayés en dessous d'un petit anneau noir sur fond marron",
        "une grande croix jaune à pois à droite de trois petites étoiles blanches sur fond turquoise",
        "deux grands cercles verts rayés au-dessus de deux petits cœurs orange sur fond rose",
    ),
    "es": (
        "dos estrellas rojas pequeñas de lunares a la izquierda de un corazón azul grande sobre fondo gris",
        "tres medias lunas moradas grandes a rayas debajo de un anillo negro pequeño sobre fondo marrón",
        "una cruz amarilla grande de lunares a la derecha de tres estrellas blancas pequeñas sobre fondo turquesa",
        "dos círculos verdes grandes a rayas encima de dos corazones naranja pequeños sobre fondo rosa",
    ),
    "tr": (
        "gri arka planda büyük mavi bir kalbin solunda iki küçük noktalı kırmızı yıldız",
        "kahverengi arka planda küçük siyah bir halkanın altında üç büyük çizgili mor hilal",
        "turkuaz arka planda üç küçük beyaz yıldızın sağında büyük noktalı sarı bir haç",
        "pembe arka planda iki küçük turuncu kalbin üstünde iki büyük çizgili yeşil daire",
    ),
    "ru": (
        "две маленьких красных звезды в горошек слева от одного большого синего сердца на сером фоне",
        "три больших фиолетовых полосатых полумесяца под одним маленьким чёрным кольцом на коричневом фоне",
        "один большой жёлтый крест в горошек справа от трёх маленьких белых звёзд на бирюзовом фоне",
        "два больших зелёных полосатых круга над двумя маленькими оранжевыми сердцами на розовом фоне",
    ),
    "zh": (
        "灰色背景上，两颗带圆点的红色小星星在一颗蓝色大爱心的左边",
        "棕色背景上，三个带条纹的紫色大月牙在一个黑色小圆环的下方",
        "青绿色背景上，一个带圆点的黄色大十字在三颗白色小星星的右边",
        "粉色背景上，两个带条纹的绿色大圆形在两颗橙色小爱心的上方",
    ),
    "ja": (
        "灰色の背景で、一つの大きな青いハートの左に二つの小さな水玉模様の赤い星",
        "茶色の背景で、一つの小さな黒いリングの下に三つの大きな縞模様の紫色の三日月",
        "ターコイズ色の背景で、三つの小さな白い星の右に一つの大きな水玉模様の黄色い十字",
        "ピンク色の背景で、二つの小さなオレンジ色のハートの上に二つの大きな縞模様の緑色の円",
    ),
    "hi": (
        "स्लेटी पृष्ठभूमि पर एक बड़े नीले दिल के बाईं ओर दो छोटे बिंदीदार लाल तारे",
        "भूरी पृष्ठभूमि पर एक छोटे काले छल्ले के नीचे तीन बड़े धारीदार बैंगनी अर्धचंद्र",
        "फ़िरोज़ी पृष्ठभूमि पर तीन छोटे सफ़ेद तारों के दाईं ओर एक बड़ा बिंदीदार पीला क्रॉस",
        "गुलाबी पृष्ठभूमि पर दो छोटे नारंगी दिलों के ऊपर दो बड़े धारीदार हरे वृत्त",
    ),
    "ar": (
        "نجمتان صغيرتان حمراوان منقطتان على يسار قلب كبير أزرق على خلفية رمادية",
        "ثلاثة أهلة كبيرة بنفسجية مخططة تحت حلقة صغيرة سوداء على خلفية بنية",
        "صليب كبير أصفر منقط على يمين ثلاث نجوم صغيرة بيضاء على خلفية فيروزية",
        "دائرتان كبيرتان خضراوان مخططتان فوق قلبين صغيرين برتقاليين على خلفية وردية",
    ),
}
# Wordings that put the groups and the background elsewhere, need other cases, or have a verb.
SENTENCES: dict[str, tuple[tuple[Scene, str], ...]] = {
    "en": (
        (
            CROSS,
            "The background is turquoise: on the left there are three small plain white stars, "
            "on the right there is a large dotted yellow cross.",
        ),
        (CRESCENTS, "on a brown background, three big purple crescents with stripes below a little black ring"),
    ),
    "de": (
        (
            CROSS,
            "Der Hintergrund ist türkis, links befinden sich drei kleine einfarbige weiße Sterne, "
            "rechts befindet sich ein großes gepunktetes gelbes Kreuz.",
        ),
        (
            CRESCENTS,
            "brauner Hintergrund mit drei großen gestreiften violetten Mondsicheln "
            "unterhalb von einem kleinen einfarbigen schwarzen Ring",
        ),
        (
            CRESCENTS.turned(),
            "oberhalb von drei großen violetten Mondsicheln mit Streifen befindet sich ein kleiner schwarzer Ring, "
            "der Hintergrund ist braun",
        ),
    ),
    "fr": (
        (
            CROSS,
            "à droite de trois petites étoiles blanches se trouve une grande croix jaune avec des pois, "
            "et le fond est turquoise",
        ),
        (
            CRESCENTS,
            "en dessous d'un petit anneau noir se trouvent trois grands croissants violets avec des rayures, "
            "et le fond est marron",
        ),
        (STARS, "2 petites étoiles rouges à pois à gauche de 1 grand cœur bleu, fond gris"),
    ),
    "es": (
        (
            CROSS,
            "El fondo es turquesa; a la izquierda hay tres pequeñas estrellas blancas lisas "
            "y a la derecha una gran cruz amarilla moteada.",
        ),
        (
            CRESCENTS,
            "debajo de un anillo pequeño negro hay tres medias lunas grandes moradas con rayas, y el fondo es marrón",
        ),
    ),
    "tr": (
        (
            CROSS,
            "Resimde üç küçük düz beyaz yıldızın sağında büyük noktalı sarı bir haç var ve arka plan turkuaz.",
        ),
        (CRESCENTS, "1 küçük siyah halkanın aşağısında 3 büyük çizgili mor hilal, arka plan kahverengi"),
    ),
    "ru": (
        (
            CROSS,
            "Фон бирюзовый, большой жёлтый крест в горошек находится правее трёх маленьких белых однотонных звёзд.",
        ),
        (
            CRESCENTS,
            "коричневый фон с тремя большими фиолетовыми полосатыми полумесяцами "
            "под одним маленьким чёрным однотонным кольцом",
        ),
        (
            STARS,
            "слева от одного большого синего сердца находятся две маленьких красных звезды в горошек, фон серый",
        ),
    ),
    "zh": (
        (CROSS, "一张青绿色背景的图片，左边有三颗纯色的白色小星星，右边有一个带圆点的黄色大十字。"),
        (CRESCENTS, "下方是三个大的紫色条纹月牙，上方是一个小的黑色圆环，棕色背景"),
    ),
    "ja": (
        (CROSS, "ターコイズ色の背景で、三つの小さな無地の白い星の右に大きな水玉模様の黄色い十字が一つあります。"),
        (CRESCENTS, "1個の小さい黒いリングの下にある3個の大きいストライプの紫色の三日月、背景は茶色"),
    ),
    "hi": (
        (
            CROSS,
            "चित्र में तीन छोटे सादे सफ़ेद तारों की दाईं तरफ़ एक बड़ा बिंदीदार पीला क्रॉस है और पृष्ठभूमि फ़िरोज़ी है।",
        ),
        (CRESCENTS, "तीन बड़े धारीदार बैंगनी अर्धचंद्र एक छोटे सादे काले छल्ले के नीचे हैं, पृष्ठभूमि भूरी है"),
        (STARS, "नीले रंग के एक बड़े दिल के बाईं ओर लाल रंग के दो छोटे बिंदीदार तारे, स्लेटी रंग की पृष्ठभूमि पर"),
    ),
    "ar": (
        (
            CROSS,
            "صورة فيها صليب واحد كبير أصفر منقط على اليمين و3 نجوم صغيرة بيضاء سادة على اليسار، والخلفية فيروزية.",
        ),
        (CRESCENTS, "3 أهلة كبيرة بنفسجية مخططة أسفل حلقة واحدة صغيرة سوداء، الخلفية بنية"),
        (STARS, "الخلفية رمادية، على اليمين قلب كبير أزرق وعلى اليسار نجمتان صغيرتان حمراوان منقطتان."),
    ),
}
# A piece of every form in which a language says that a texture is plain.
PLAIN = {
    "en": "plain",
    "de": "einfarbig",
    "fr": "sans motif",
    "es": " lis",
    "tr": "düz",
    "ru": "однотонн",
    "zh": "纯",
    "ja": "無地",
    "hi": "साद",
    "ar": "سادة",
}
SCRIPTS = {
    **{language: {"LATIN"} for language in ("en", "de", "fr", "es", "tr")},
    "ru": {"CYRILLIC"},
    "zh": {"CJK"},
    "ja": {"CJK", "HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA"},
    "hi": {"DEVANAGARI"},
    "ar": {"ARABIC"},
}
COUNTS = range(1, MAX_COUNT + 1)
FACTS: dict[str, Sequence[Any]] = {
    "count": COUNTS,
    "size": SIZES,
    "texture": TEXTURES,
    "colour": COLOURS,
    "shape": SHAPES,
}
ALL_GROUPS = [group(*facts) for facts in product(COUNTS, SIZES, TEXTURES, COLOURS, SHAPES)]

each_language = pytest.mark.parametrize("language", LANGUAGES)


def some_scenes(count: int) -> list[Scene]:
    scenes = draw_scenes("train", np.random.default_rng(0), family=1)
    return [next(scenes) for _ in range(count)]


def neighbours(scene: Scene) -> Iterator[Scene]:
    """Every scene with one attribute changed, with one attribute swapped between the groups, or with all of them."""
    yield from (replace(scene, relation=relation) for relation in RELATIONS)
    yield from (replace(scene, background=background) for background in BACKGROUNDS)
    first, second = scene.first, scene.second
    for name, choices in FACTS.items():
        for value in choices:
            yield replace(scene, first=replace(first, **{name: value}))
            yield replace(scene, second=replace(second, **{name: value}))
        of_first, of_second = getattr(first, name), getattr(second, name)
        yield replace(scene, first=replace(first, **{name: of_second}), second=replace(second, **{name: of_first}))
    yield replace(scene, first=second, second=first)


def assert_disjoint(scenes: list[Scene], language: str) -> None:
    """No caption is shared by two pictures."""
    told: dict[str, Scene] = {}
    for scene in scenes:
        for text in captions(scene, language):
            assert told.setdefault(text, scene.canonical()) == scene.canonical(), text


def test_there_are_ten_languages() -> None:
    """Each with sentences that were written by hand, below none of which would be asked for if it were left out."""
    assert EXPECTED.keys() == SENTENCES.keys() == set(LANGUAGES)
    assert len(LANGUAGES) == 10


@each_language
@pytest.mark.parametrize("index", range(4))
def test_the_plainest_wording_is_right(language: str, index: int) -> None:
    assert captions((STARS, CRESCENTS, CROSS, CIRCLES)[index], language)[0] == EXPECTED[language][index]


@each_language
def test_other_wordings_are_right(language: str) -> None:
    for scene, sentence in SENTENCES[language]:
        assert sentence in captions(scene, language)


@each_language
def test_wordings_are_many_and_differ(language: str) -> None:
    for scene in (STARS, CRESCENTS, CROSS, CIRCLES, *some_scenes(200)):
        told = captions(scene, language)
        assert len(set(told)) == len(told) >= 6


@each_language
def test_every_fact_of_a_group_is_told_in_every_wording(language: str) -> None:
    """All 1152 groups in either place: in no wording do two of them sound alike."""
    firsts = [captions(replace(CROSS, first=member), language) for member in ALL_GROUPS]
    seconds = [captions(replace(CROSS, second=member), language) for member in ALL_GROUPS]
    for told in (firsts, seconds):
        for of_one_wording in zip(*told, strict=True):
            assert len(set(of_one_wording)) == len(ALL_GROUPS)


@each_language
def test_relation_and_background_are_told_in_every_wording(language: str) -> None:
    facts = list(product(RELATIONS, BACKGROUNDS))
    told = [captions(replace(STARS, relation=where, background=ground), language) for where, ground in facts]
    for of_one_wording in zip(*told, strict=True):
        assert len(set(of_one_wording)) == len(facts)


@each_language
def test_pictures_that_differ_in_one_attribute_share_no_caption(language: str) -> None:
    for scene in (STARS, CRESCENTS, CROSS, CIRCLES, *some_scenes(12)):
        assert_disjoint([scene, scene.turned(), *neighbours(scene)], language)


@each_language
def test_pictures_at_random_share_no_caption(language: str) -> None:
    assert_disjoint(some_scenes(1000), language)


@each_language
def test_plain_is_unsaid_in_at_least_half_of_the_wordings(language: str) -> None:
    both = replace(CROSS, first=replace(CROSS.first, texture="plain"))
    said = [text.count(PLAIN[language]) for text in captions(both, language)]
    assert set(said) == {0, 2}  # of both groups or of neither
    assert said.count(2) * 2 <= len(said)


@each_language
def test_counts_are_figures_in_some_wordings_only(language: str) -> None:
    """Of three at least: Arabic has no figure for one and two, which are forms of the noun."""
    told = captions(CRESCENTS, language)
    with_figures = [text for text in told if any(character.isdecimal() for character in text)]
    assert 0 < len(with_figures) <= len(told) / 2
    assert all("3" in text for text in with_figures)


@each_language
def test_texts_are_clean(language: str) -> None:
    for scene in some_scenes(300):
        for text in captions(scene, language):
            assert unicodedata.is_normalized("NFC", text)
            assert text == " ".join(text.split())
            assert {unicodedata.name(one).split()[0] for one in text if one.isalpha()} <= SCRIPTS[language]
            assert language not in ("zh", "ja") or " " not in text
            assert language != "ar" or not any(unicodedata.combining(one) for one in text)


@each_language
def test_a_seed_gives_the_same_captions(language: str) -> None:
    """And over many draws all the wordings, nothing else."""
    runs = []
    for _ in range(2):
        draw = np.random.default_rng(7)
        runs.append([caption(STARS, language, draw) for _ in range(200)])
    assert runs[0] == runs[1]
    assert set(runs[0]) == set(captions(STARS, language))


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(InputError, match=r"'la', wanted one of en, de, fr"):
        captions(STARS, "la")
    with pytest.raises(InputError, match=r"'EN', wanted one of"):
        caption(STARS, "EN", np.random.default_rng(0))
