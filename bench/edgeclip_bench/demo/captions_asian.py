"""Captions of scenes in Turkish, Hindi, Arabic, Chinese and Japanese.

The tables hold what the grammar cannot derive: a noun's gender, its forms, its classifier. The function under each
table makes the words of a group agree.
"""

from edgeclip_bench.demo.captions_language import Language, Options, join
from edgeclip_bench.demo.scenes import Group

# Turkish. Nouns: as such, and in the `genitive` that "at the left of" asks for; a counted noun stays singular.

_TURKISH_NOUNS = {
    "circle": ("daire", "dairenin"),
    "square": ("kare", "karenin"),
    "triangle": ("üçgen", "üçgenin"),
    "star": ("yıldız", "yıldızın"),
    "cross": ("haç", "haçın"),
    "heart": ("kalp", "kalbin"),
    "ring": ("halka", "halkanın"),
    "crescent": ("hilal", "hilalin"),
}
_TURKISH_ADJECTIVES = {
    "small": "küçük",
    "large": "büyük",
    "plain": "düz",
    "striped": "çizgili",
    "dotted": "noktalı",
    "red": "kırmızı",
    "orange": "turuncu",
    "yellow": "sarı",
    "green": "yeşil",
    "blue": "mavi",
    "purple": "mor",
    "black": "siyah",
    "white": "beyaz",
}
_TURKISH_SYNONYMS = {"plain": "", "striped": "çizgi desenli", "dotted": "benekli"}


def _turkish(group: Group, options: Options) -> str:
    noun = _TURKISH_NOUNS[group.shape]["genitive" in options]
    size, texture, colour = (_TURKISH_ADJECTIVES[kind] for kind in (group.size, group.texture, group.colour))
    texture = "" if group.texture == "plain" and "plain" not in options else texture
    texture = _TURKISH_SYNONYMS[group.texture] if "with" in options else texture
    if "digits" in options or group.count > 1:
        count = str(group.count) if "digits" in options else ("iki", "üç")[group.count - 2]
        return join(count, size, texture, colour, noun)
    return join(size, texture, colour, "bir", noun)  # as an article, one stands after the adjectives


TURKISH = Language(
    phrase=_turkish,
    options="genitive digits plain with",
    by_relation={
        "beside": ("solunda", "sağında", "üstünde", "altında"),  # all after the genitive
        "further": ("sol tarafında", "sağ tarafında", "yukarısında", "aşağısında"),
        "being": ("solundaki", "sağındaki", "üstündeki", "altındaki"),  # before the noun that is there
        "here": ("solda", "sağda", "üstte", "altta"),
    },
    by_background={"ground": ("gri", "pembe", "kahverengi", "turkuaz")},
    wordings=(
        "{ground} arka planda {b:genitive} {beside} {a}",
        "{b:genitive digits} {further} {a:digits}, arka plan {ground}",
        "{here} {a}, {there} {b}, {ground} arka plan",
        "{a:plain}, {b:genitive plain} {further}, {ground} zemin üzerinde",
        "{ground} bir zemin üzerinde {here} {a:digits}, {there} {b:digits} var",
        "{b:genitive with} {being} {a:with}, arka plan {ground}",
        "Resimde {b:genitive plain} {beside} {a:plain} var ve arka plan {ground}.",
        "Arka plan {ground}, {there} {b:with}, {here} {a:with} var.",
    ),
)

# Hindi. All eight nouns are masculine. Forms: one and several, then the same before a postposition (`oblique`).

_HINDI_NOUNS = {
    "circle": ("वृत्त", "वृत्त", "वृत्त", "वृत्तों"),
    "square": ("वर्ग", "वर्ग", "वर्ग", "वर्गों"),
    "triangle": ("त्रिभुज", "त्रिभुज", "त्रिभुज", "त्रिभुजों"),
    "star": ("तारा", "तारे", "तारे", "तारों"),
    "cross": ("क्रॉस", "क्रॉस", "क्रॉस", "क्रॉसों"),
    "heart": ("दिल", "दिल", "दिल", "दिलों"),
    "ring": ("छल्ला", "छल्ले", "छल्ले", "छल्लों"),
    "crescent": ("अर्धचंद्र", "अर्धचंद्र", "अर्धचंद्र", "अर्धचंद्रों"),
}
# One object in the direct case, and all else: an adjective has these two masculine forms at most.
_HINDI_ADJECTIVES = {
    "small": ("छोटा", "छोटे"),
    "large": ("बड़ा", "बड़े"),
    "plain": ("सादा", "सादे"),
    "striped": ("धारीदार", "धारीदार"),
    "dotted": ("बिंदीदार", "बिंदीदार"),
    "red": ("लाल", "लाल"),
    "orange": ("नारंगी", "नारंगी"),
    "yellow": ("पीला", "पीले"),
    "green": ("हरा", "हरे"),
    "blue": ("नीला", "नीले"),
    "purple": ("बैंगनी", "बैंगनी"),
    "black": ("काला", "काले"),
    "white": ("सफ़ेद", "सफ़ेद"),
}
_HINDI_PATTERNS = {
    "plain": ("", ""),
    "striped": ("धारियों वाला", "धारियों वाले"),
    "dotted": ("बिंदियों वाला", "बिंदियों वाले"),
}


def _hindi(group: Group, options: Options) -> str:
    is_several, is_oblique = group.count > 1, "oblique" in options
    if "is" in options:
        return "हैं" if is_several else "है"
    column = is_several or is_oblique
    noun = _HINDI_NOUNS[group.shape][is_several + 2 * is_oblique]
    count = str(group.count) if "digits" in options else ("एक", "दो", "तीन")[group.count - 1]
    size, texture, colour = (_HINDI_ADJECTIVES[kind][column] for kind in (group.size, group.texture, group.colour))
    texture = "" if group.texture == "plain" and "plain" not in options else texture
    texture = _HINDI_PATTERNS[group.texture][column] if "with" in options else texture
    if "coloured" in options:  # "of red colour, two small stars": the colour agrees with the word colour
        of_colour = join(_HINDI_ADJECTIVES[group.colour][1], "रंग", ("का", "के")[column])
        return join(of_colour, count, size, texture, noun)
    return join(count, size, texture, colour, noun)


HINDI = Language(
    phrase=_hindi,
    options="oblique coloured digits plain with is",
    by_relation={
        "beside": ("के बाईं ओर", "के दाईं ओर", "के ऊपर", "के नीचे"),  # all after the oblique
        "further": ("की बाईं तरफ़", "की दाईं तरफ़", "से ऊपर", "से नीचे"),
        "here": ("बाईं ओर", "दाईं ओर", "ऊपर", "नीचे"),
    },
    by_background={
        "ground": ("स्लेटी", "गुलाबी", "भूरी", "फ़िरोज़ी"),  # feminine, as the word background is
        "oblique": ("स्लेटी", "गुलाबी", "भूरे", "फ़िरोज़ी"),  # before the word colour
    },
    wordings=(
        "{ground} पृष्ठभूमि पर {b:oblique} {beside} {a}",
        "{b:oblique digits} {further} {a:digits}, पृष्ठभूमि {ground}",
        "{here} {a}, {there} {b}, {ground} पृष्ठभूमि",
        "{a:plain} {b:oblique plain} {beside} {a:is}, पृष्ठभूमि {ground} है",
        "{oblique} रंग की पृष्ठभूमि पर {here} {a:digits with} और {there} {b:digits with}",
        "{b:oblique coloured} {beside} {a:coloured}, {oblique} रंग की पृष्ठभूमि पर",
        "चित्र में {b:oblique plain} {further} {a:plain} {a:is} और पृष्ठभूमि {ground} है।",
        "पृष्ठभूमि {ground} है, {there} {b:coloured with} और {here} {a:coloured with} {a:is}।",
    ),
)

# Arabic, without vowel marks, so that case (`oblique`) shows in the dual alone. Nouns: gender, singular, stem of
# the dual, plural.

_ARABIC_NOUNS = {
    "circle": ("f", "دائرة", "دائرت", "دوائر"),
    "square": ("m", "مربع", "مربع", "مربعات"),
    "triangle": ("m", "مثلث", "مثلث", "مثلثات"),
    "star": ("f", "نجمة", "نجمت", "نجوم"),
    "cross": ("m", "صليب", "صليب", "صلبان"),
    "heart": ("m", "قلب", "قلب", "قلوب"),
    "ring": ("f", "حلقة", "حلقت", "حلقات"),
    "crescent": ("m", "هلال", "هلال", "أهلة"),
}
# Masculine singular (and stem of its dual), feminine singular, stem of the feminine dual.
_ARABIC_ADJECTIVES = {
    "small": ("صغير", "صغيرة", "صغيرت"),
    "large": ("كبير", "كبيرة", "كبيرت"),
    "striped": ("مخطط", "مخططة", "مخططت"),
    "dotted": ("منقط", "منقطة", "منقطت"),
    "red": ("أحمر", "حمراء", "حمراو"),
    "orange": ("برتقالي", "برتقالية", "برتقاليت"),
    "yellow": ("أصفر", "صفراء", "صفراو"),
    "green": ("أخضر", "خضراء", "خضراو"),
    "blue": ("أزرق", "زرقاء", "زرقاو"),
    "purple": ("بنفسجي", "بنفسجية", "بنفسجيت"),
    "black": ("أسود", "سوداء", "سوداو"),
    "white": ("أبيض", "بيضاء", "بيضاو"),
    "one": ("واحد", "واحدة", ""),
    "two": ("اثن", "", "اثنت"),
}
_ARABIC_PATTERNS = {"plain": "", "striped": "بخطوط", "dotted": "بنقاط"}


def _arabic(group: Group, options: Options) -> str:
    gender, singular, dual, plural = _ARABIC_NOUNS[group.shape]
    is_feminine, suffix = gender == "f", "ين" if "oblique" in options else "ان"
    noun = (singular, dual + suffix, plural)[group.count - 1]

    def agree(kind: str) -> str:
        masculine, feminine, feminine_dual = _ARABIC_ADJECTIVES[kind]
        if group.count == 2:
            return (feminine_dual if is_feminine else masculine) + suffix
        return feminine if is_feminine or group.count == 3 else masculine  # the plural of things is feminine

    texture = "" if group.texture == "plain" else agree(group.texture)
    texture = "سادة" if group.texture == "plain" and "plain" in options else texture
    texture = _ARABIC_PATTERNS[group.texture] if "with" in options else texture
    described = join(agree(group.size), agree(group.colour), texture)
    if group.count == 3:  # three takes the gender that the noun has not
        return join("3" if "digits" in options else "ثلاث" if is_feminine else "ثلاثة", noun, described)
    # One and two are the noun's own form: no figure can stand for them, a word may stress them.
    stressed = agree(("one", "two")[group.count - 1]) if "digits" in options else ""
    return join(noun, stressed, described)


ARABIC = Language(
    phrase=_arabic,
    options="oblique digits plain with",
    by_relation={
        "beside": ("على يسار", "على يمين", "فوق", "تحت"),  # all before the oblique
        "further": ("إلى يسار", "إلى يمين", "أعلى", "أسفل"),
        "here": ("على اليسار", "على اليمين", "في الأعلى", "في الأسفل"),
    },
    by_background={"ground": ("رمادية", "وردية", "بنية", "فيروزية")},  # feminine, as the word background is
    wordings=(
        "{a} {beside} {b:oblique} على خلفية {ground}",
        "{a:digits} {further} {b:oblique digits}، الخلفية {ground}",
        "على خلفية {ground}، {a:with} {beside} {b:oblique with}",
        "خلفية {ground} عليها {a:plain} {beside} {b:oblique plain}",
        "{here} {a}، و{there} {b}، والخلفية {ground}",
        "{beside} {b:oblique with} هناك {a:with}، والخلفية {ground}",
        "صورة فيها {a:digits plain} {here} و{b:digits plain} {there}، والخلفية {ground}.",
        "الخلفية {ground}، {there} {b} و{here} {a}.",
    ),
)

# Chinese. Nouns: the first character is the classifier that stands between count and noun.

_CHINESE_NOUNS = {
    "circle": "个圆形",
    "square": "个正方形",
    "triangle": "个三角形",
    "star": "颗星星",
    "cross": "个十字",
    "heart": "颗爱心",
    "ring": "个圆环",
    "crescent": "个月牙",
}
_CHINESE_COLOURS = {
    "red": "红色",
    "orange": "橙色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "purple": "紫色",
    "black": "黑色",
    "white": "白色",
}
_CHINESE_SIZES = {"small": "小", "large": "大"}
_CHINESE_TEXTURES = {"plain": "纯色", "striped": "条纹", "dotted": "圆点"}


def _chinese(group: Group, options: Options) -> str:
    classifier, noun = _CHINESE_NOUNS[group.shape][0], _CHINESE_NOUNS[group.shape][1:]
    count = str(group.count) if "digits" in options else "一两三"[group.count - 1]  # before a classifier two is 两
    size, colour = _CHINESE_SIZES[group.size], _CHINESE_COLOURS[group.colour]
    texture, is_plain = _CHINESE_TEXTURES[group.texture], group.texture == "plain"
    is_unsaid = is_plain and "plain" not in options
    if "loose" in options:  # the size apart, in front
        look = colour if is_unsaid else f"纯{colour}" if is_plain else colour + texture
        return f"{count}{classifier}{size}的{look}{noun}"
    pattern = "" if is_unsaid else f"{texture}的" if is_plain else f"带{texture}的"
    return f"{count}{classifier}{pattern}{colour}{size}{noun}"


CHINESE = Language(
    phrase=_chinese,
    options="loose digits plain",
    by_relation={
        "side": ("左边", "右边", "上方", "下方"),
        "flank": ("左侧", "右侧", "上面", "下面"),
        "here": ("左边", "右边", "上方", "下方"),
    },
    by_background={"ground": ("灰色", "粉色", "棕色", "青绿色")},
    wordings=(
        "{ground}背景上，{a}在{b}的{side}",
        "{b:digits}的{flank}有{a:digits}，背景是{ground}",
        "{here}是{a:loose}，{there}是{b:loose}，{ground}背景",
        "{a:plain}位于{b:plain}{flank}，{ground}背景",
        "{ground}背景，{here}{a:digits loose}，{there}{b:digits loose}",
        "{b:loose plain}{side}的{a:loose plain}，背景是{ground}",
        "一张{ground}背景的图片，{there}有{b:plain}，{here}有{a:plain}。",
        "图中{a:loose}在{b:loose}的{flank}，背景为{ground}。",
    ),
)

# Japanese. Adjectives carry the ending that joins them to the noun; sizes and textures have a synonym (`with`). With
# `subject` the count follows the noun.

_JAPANESE_NOUNS = {
    "circle": "円",
    "square": "正方形",
    "triangle": "三角形",
    "star": "星",
    "cross": "十字",
    "heart": "ハート",
    "ring": "リング",
    "crescent": "三日月",
}
_JAPANESE_COLOURS = {
    "red": "赤い",
    "orange": "オレンジ色の",
    "yellow": "黄色い",
    "green": "緑色の",
    "blue": "青い",
    "purple": "紫色の",
    "black": "黒い",
    "white": "白い",
}
_JAPANESE_SIZES = {"small": ("小さな", "小さい"), "large": ("大きな", "大きい")}
_JAPANESE_TEXTURES = {
    "plain": ("無地の", "無地の"),
    "striped": ("縞模様の", "ストライプの"),
    "dotted": ("水玉模様の", "水玉の"),
}


def _japanese(group: Group, options: Options) -> str:
    is_synonym = "with" in options
    count = f"{group.count}個" if "digits" in options else f"{'一二三'[group.count - 1]}つ"
    is_unsaid = group.texture == "plain" and "plain" not in options
    texture = "" if is_unsaid else _JAPANESE_TEXTURES[group.texture][is_synonym]
    noun = _JAPANESE_SIZES[group.size][is_synonym] + texture + _JAPANESE_COLOURS[group.colour]
    noun += _JAPANESE_NOUNS[group.shape]
    return f"{noun}が{count}" if "subject" in options else f"{count}の{noun}"  # "stars, two" or "two stars"


JAPANESE = Language(
    phrase=_japanese,
    options="subject digits plain with",
    by_relation={
        "here": ("左", "右", "上", "下"),
        "flank": ("左側", "右側", "上側", "下側"),
    },
    by_background={"ground": ("灰色", "ピンク色", "茶色", "ターコイズ色")},
    wordings=(
        "{ground}の背景で、{b}の{here}に{a}",
        "{b:digits}の{flank}に{a:digits subject}、背景は{ground}",
        "{here}に{a:with}、{there}に{b:with}、{ground}の背景",
        "{a:plain}が{b:plain}の{flank}にあり、背景は{ground}",
        "背景は{ground}で、{here}に{a:subject}、{there}に{b:subject}",
        "{b:digits with}の{here}にある{a:digits with}、背景は{ground}",
        "{ground}の背景で、{b:plain}の{here}に{a:plain subject}あります。",
        "背景が{ground}の絵で、{there}は{b:digits plain}、{here}は{a:digits plain}です。",
    ),
)
