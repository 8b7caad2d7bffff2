"""Captions of scenes in English, German, French, Spanish and Russian.

The tables hold what the grammar cannot derive: a noun's gender and its irregular forms, an adjective's stem. The
function under each table makes number, gender and case agree.
"""

from edgeclip_bench.demo.captions_language import Language, Options, join
from edgeclip_bench.demo.scenes import Group

# English. Nouns and adjectives are the names in `scenes`; `with` also takes little and big for small and large.

_ENGLISH_SYNONYMS = {"small": "little", "large": "big"}
_ENGLISH_COUNTS = ("", "one", "two", "three")
_ENGLISH_PATTERNS = {"plain": "", "striped": "with stripes", "dotted": "with dots"}


def _english(group: Group, options: Options) -> str:
    is_one = group.count == 1
    if "is" in options:
        return "is" if is_one else "are"
    count = str(group.count) if "digits" in options else _ENGLISH_COUNTS[group.count]
    count = "a" if is_one and "bare" in options else count
    noun = group.shape if is_one else group.shape + ("es" if group.shape == "cross" else "s")
    if "with" in options:
        return join(count, _ENGLISH_SYNONYMS[group.size], group.colour, noun, _ENGLISH_PATTERNS[group.texture])
    texture = "" if group.texture == "plain" and "plain" not in options else group.texture
    return join(count, group.size, texture, group.colour, noun)


ENGLISH = Language(
    phrase=_english,
    options="digits plain bare with is",
    by_relation={
        "beside": ("to the left of", "to the right of", "above", "below"),
        "short": ("left of", "right of", "over", "under"),
        "here": ("on the left", "on the right", "at the top", "at the bottom"),
    },
    by_background={"ground": ("grey", "pink", "brown", "turquoise")},
    wordings=(
        "{a} {beside} {b} on a {ground} background",
        "{a:digits} {short} {b:digits}, {ground} background",
        "on a {ground} background, {a:bare with} {beside} {b:bare with}",
        "{ground} background with {a:bare plain} {short} {b:bare plain}",
        "{here} {a:bare}, {there} {b:bare}, on a {ground} background",
        "{beside} {b:bare} there {a:is} {a:bare}, and the background is {ground}",
        "A picture of {a:digits plain} {here} and {b:digits plain} {there}, with a {ground} background.",
        "There {a:is} {a:with} {beside} {b:with} on a {ground} background.",
        "The background is {ground}: {there} there {b:is} {b:bare plain}, {here} there {a:is} {a:bare plain}.",
    ),
)

# German. Nouns: gender, then nominative and `dative` singular, nominative and dative plural.

_GERMAN_NOUNS = {
    "circle": ("m", "Kreis", "Kreis", "Kreise", "Kreisen"),
    "square": ("n", "Quadrat", "Quadrat", "Quadrate", "Quadraten"),
    "triangle": ("n", "Dreieck", "Dreieck", "Dreiecke", "Dreiecken"),
    "star": ("m", "Stern", "Stern", "Sterne", "Sternen"),
    "cross": ("n", "Kreuz", "Kreuz", "Kreuze", "Kreuzen"),
    "heart": ("n", "Herz", "Herzen", "Herzen", "Herzen"),
    "ring": ("m", "Ring", "Ring", "Ringe", "Ringen"),
    "crescent": ("f", "Mondsichel", "Mondsichel", "Mondsicheln", "Mondsicheln"),
}
# Stems. "lila" and "orange" would not decline, so purple and orange are said with words that do.
_GERMAN_STEMS = {
    "small": "klein",
    "large": "groß",
    "plain": "einfarbig",
    "striped": "gestreift",
    "dotted": "gepunktet",
    "red": "rot",
    "orange": "orangefarben",
    "yellow": "gelb",
    "green": "grün",
    "blue": "blau",
    "purple": "violett",
    "black": "schwarz",
    "white": "weiß",
}
_GERMAN_PATTERNS = {"plain": "", "striped": "mit Streifen", "dotted": "mit Punkten"}
_GERMAN_ONE = {"m": ("ein", "einem"), "f": ("eine", "einer"), "n": ("ein", "einem")}  # nominative, dative
_GERMAN_ENDING = {"m": "er", "f": "e", "n": "es"}  # after ein, nominative


def _german(group: Group, options: Options) -> str:
    is_one, is_dative = group.count == 1, "dative" in options
    if "is" in options:
        return "befindet sich" if is_one else "befinden sich"
    gender, *forms = _GERMAN_NOUNS[group.shape]
    noun = forms[(0 if is_one else 2) + is_dative]
    ending = "en" if is_dative else _GERMAN_ENDING[gender] if is_one else "e"
    count = (_GERMAN_ONE[gender][is_dative], "zwei", "drei")[group.count - 1]
    count = str(group.count) if "digits" in options else count
    is_adjective = "with" not in options and (group.texture != "plain" or "plain" in options)
    kinds = (group.size, group.texture, group.colour) if is_adjective else (group.size, group.colour)
    adjectives = [_GERMAN_STEMS[kind] + ending for kind in kinds]
    return join(count, *adjectives, noun, _GERMAN_PATTERNS[group.texture] if "with" in options else "")


GERMAN = Language(
    phrase=_german,
    options="dative digits plain with is",
    by_relation={
        "beside": ("links von", "rechts von", "über", "unter"),  # all with the dative
        "next": ("links neben", "rechts neben", "oberhalb von", "unterhalb von"),
        "here": ("links", "rechts", "oben", "unten"),
    },
    by_background={
        "ground": ("grau", "rosa", "braun", "türkis"),
        "nominative": ("grauer", "rosa", "brauner", "türkisfarbener"),
        "dative": ("grauem", "rosa", "braunem", "türkisfarbenem"),
    },
    wordings=(
        "{a} {beside} {b:dative} auf {dative} Hintergrund",
        "{a:digits} {next} {b:dative digits}, Hintergrund {ground}",
        "auf {dative} Grund {a:with} {beside} {b:dative with}",
        "{nominative} Hintergrund mit {a:dative plain} {next} {b:dative plain}",
        "{here} {a}, {there} {b}, {nominative} Hintergrund",
        "{next} {b:dative with} {a:is} {a:with}, der Hintergrund ist {ground}",
        "Ein Bild mit {a:dative digits plain} {here} und {b:dative digits plain} {there} auf {dative} Grund.",
        "Auf {dative} Hintergrund {a:is} {beside} {b:dative} {a}.",
        "Der Hintergrund ist {ground}, {there} {b:is} {b:plain}, {here} {a:is} {a:plain}.",
    ),
)

# French. Nouns: gender, singular, plural. Adjectives: masculine, feminine; the plural adds s. The option `de` puts
# that word before the group, as "to the left of" wants it.

_FRENCH_NOUNS = {
    "circle": ("m", "cercle", "cercles"),
    "square": ("m", "carré", "carrés"),
    "triangle": ("m", "triangle", "triangles"),
    "star": ("f", "étoile", "étoiles"),
    "cross": ("f", "croix", "croix"),
    "heart": ("m", "cœur", "cœurs"),
    "ring": ("m", "anneau", "anneaux"),
    "crescent": ("m", "croissant", "croissants"),
}
_FRENCH_ADJECTIVES = {
    "small": ("petit", "petite"),
    "large": ("grand", "grande"),
    "red": ("rouge", "rouge"),
    "yellow": ("jaune", "jaune"),
    "green": ("vert", "verte"),
    "blue": ("bleu", "bleue"),
    "purple": ("violet", "violette"),
    "black": ("noir", "noire"),
    "white": ("blanc", "blanche"),
    "striped": ("rayé", "rayée"),
}
_FRENCH_INVARIABLE = {"orange": "orange", "dotted": "à pois", "plain": "sans motif"}
_FRENCH_PATTERNS = {"plain": "", "striped": "avec des rayures", "dotted": "avec des pois"}


def _french(group: Group, options: Options) -> str:
    if "is" in options:
        return "se trouve" if group.count == 1 else "se trouvent"
    gender, singular, plural = _FRENCH_NOUNS[group.shape]
    is_one, is_feminine = group.count == 1, gender == "f"

    def agree(kind: str) -> str:
        if kind in _FRENCH_INVARIABLE:
            return _FRENCH_INVARIABLE[kind]
        return _FRENCH_ADJECTIVES[kind][is_feminine] + ("" if is_one else "s")

    count = ("une" if is_feminine else "un", "deux", "trois")[group.count - 1]
    count = str(group.count) if "digits" in options else count
    if "de" in options:
        count = f"d'{count}" if count.startswith("u") else f"de {count}"
    texture = "" if group.texture == "plain" and "plain" not in options else agree(group.texture)
    texture = _FRENCH_PATTERNS[group.texture] if "with" in options else texture
    return join(count, agree(group.size), singular if is_one else plural, agree(group.colour), texture)


FRENCH = Language(
    phrase=_french,
    options="de digits plain with is",
    by_relation={
        "beside": ("à gauche", "à droite", "au-dessus", "en dessous"),  # before de
        "aside": ("à la gauche", "à la droite", "au-dessus", "au-dessous"),  # before de
        "here": ("à gauche", "à droite", "en haut", "en bas"),
    },
    by_background={"ground": ("gris", "rose", "marron", "turquoise")},
    wordings=(
        "{a} {beside} {b:de} sur fond {ground}",
        "{a:digits} {beside} {b:de digits}, fond {ground}",
        "sur un fond {ground}, {a:with} {aside} {b:de with}",
        "fond {ground} avec {a:plain} {beside} {b:de plain}",
        "{here} {a}, {there} {b}, sur fond {ground}",
        "{beside} {b:de with} {a:is} {a:with}, et le fond est {ground}",
        "Une image avec {a:digits plain} {here} et {b:digits plain} {there}, sur un fond {ground}.",
        "Sur fond {ground}, il y a {a} {aside} {b:de}.",
        "Le fond est {ground}, {there} il y a {b:plain}, {here} il y a {a:plain}.",
    ),
)

# Spanish. Nouns: gender, singular, plural. Adjectives: masculine and feminine, singular and plural. They follow
# the noun; the option `before` puts the size in front of it.

_SPANISH_NOUNS = {
    "circle": ("m", "círculo", "círculos"),
    "square": ("m", "cuadrado", "cuadrados"),
    "triangle": ("m", "triángulo", "triángulos"),
    "star": ("f", "estrella", "estrellas"),
    "cross": ("f", "cruz", "cruces"),
    "heart": ("m", "corazón", "corazones"),
    "ring": ("m", "anillo", "anillos"),
    "crescent": ("f", "media luna", "medias lunas"),
}
_SPANISH_ADJECTIVES = {
    "small": ("pequeño", "pequeña", "pequeños", "pequeñas"),
    "large": ("grande", "grande", "grandes", "grandes"),
    "large before": ("gran", "gran", "grandes", "grandes"),
    "red": ("rojo", "roja", "rojos", "rojas"),
    "orange": ("naranja",) * 4,
    "yellow": ("amarillo", "amarilla", "amarillos", "amarillas"),
    "green": ("verde", "verde", "verdes", "verdes"),
    "blue": ("azul", "azul", "azules", "azules"),
    "purple": ("morado", "morada", "morados", "moradas"),
    "black": ("negro", "negra", "negros", "negras"),
    "white": ("blanco", "blanca", "blancos", "blancas"),
    "plain": ("liso", "lisa", "lisos", "lisas"),
    "striped": ("rayado", "rayada", "rayados", "rayadas"),
    "dotted": ("moteado", "moteada", "moteados", "moteadas"),
}
_SPANISH_PATTERNS = {"striped": "a rayas", "dotted": "de lunares"}
_SPANISH_SYNONYMS = {"plain": "", "striped": "con rayas", "dotted": "con lunares"}


def _spanish(group: Group, options: Options) -> str:
    gender, singular, plural = _SPANISH_NOUNS[group.shape]
    is_one, is_feminine = group.count == 1, gender == "f"

    def agree(kind: str) -> str:
        return _SPANISH_ADJECTIVES[kind][(0 if is_one else 2) + is_feminine]

    count = ("una" if is_feminine else "un", "dos", "tres")[group.count - 1]
    count = str(group.count) if "digits" in options else count
    noun, size, colour = singular if is_one else plural, agree(group.size), agree(group.colour)
    if "with" in options:
        return join(count, noun, size, colour, _SPANISH_SYNONYMS[group.texture])
    texture = "" if group.texture == "plain" and "plain" not in options else agree(group.texture)
    if "before" in options:  # large is cut short before a singular noun
        size = agree("large before") if group.size == "large" else size
        return join(count, size, noun, colour, texture)
    return join(count, noun, colour, size, _SPANISH_PATTERNS.get(group.texture, texture))


SPANISH = Language(
    phrase=_spanish,
    options="before digits plain with",
    by_relation={
        "beside": ("a la izquierda de", "a la derecha de", "encima de", "debajo de"),
        "aside": ("a la izquierda de", "a la derecha de", "por encima de", "por debajo de"),
        "here": ("a la izquierda", "a la derecha", "arriba", "abajo"),
    },
    by_background={"ground": ("gris", "rosa", "marrón", "turquesa")},
    wordings=(
        "{a} {beside} {b} sobre fondo {ground}",
        "{a:digits} {beside} {b:digits}, fondo {ground}",
        "sobre un fondo {ground}, {a:before} {aside} {b:before}",
        "fondo {ground} con {a:plain} {aside} {b:plain}",
        "{here} {a:with}, {there} {b:with}, sobre fondo {ground}",
        "{beside} {b:with} hay {a:with}, y el fondo es {ground}",
        "Una imagen con {a:digits plain} {here} y {b:digits plain} {there}, sobre un fondo {ground}.",
        "Hay {a} {aside} {b}, con el fondo {ground}.",
        "El fondo es {ground}; {there} hay {b:before plain} y {here} {a:before plain}.",
    ),
)

# Russian. Adjectives: a stem and which endings it takes; endings stand in the order of _RUSSIAN_COLUMNS. The options
# `gen` and `ins` are the genitive and the instrumental.

_RUSSIAN_SINGULAR = ("nom m", "nom f", "nom n", "gen m", "gen f", "gen n", "ins m", "ins f", "ins n")
_RUSSIAN_COLUMNS = (*_RUSSIAN_SINGULAR, "gen pl", "ins pl")
_RUSSIAN_ENDINGS = {
    "hard": "ый ая ое ого ой ого ым ой ым ых ыми",
    "soft": "ий яя ее его ей его им ей им их ими",
    "velar": "ий ая ое ого ой ого им ой им их ими",
    "stressed": "ой ая ое ого ой ого им ой им их ими",
}
_RUSSIAN_ADJECTIVES = {
    "small": ("маленьк", "velar"),
    "large": ("больш", "stressed"),
    "plain": ("однотонн", "hard"),
    "striped": ("полосат", "hard"),
    "red": ("красн", "hard"),
    "orange": ("оранжев", "hard"),
    "yellow": ("жёлт", "hard"),
    "green": ("зелён", "hard"),
    "blue": ("син", "soft"),
    "purple": ("фиолетов", "hard"),
    "black": ("чёрн", "hard"),
    "white": ("бел", "hard"),
}
# Gender; nominative, genitive and instrumental singular; genitive and instrumental plural.
_RUSSIAN_NOUNS = {
    "circle": "m круг круга кругом кругов кругами",
    "square": "m квадрат квадрата квадратом квадратов квадратами",
    "triangle": "m треугольник треугольника треугольником треугольников треугольниками",
    "star": "f звезда звезды звездой звёзд звёздами",
    "cross": "m крест креста крестом крестов крестами",
    "heart": "n сердце сердца сердцем сердец сердцами",
    "ring": "n кольцо кольца кольцом колец кольцами",
    "crescent": "m полумесяц полумесяца полумесяцем полумесяцев полумесяцами",
}
_RUSSIAN_ONE = "один одна одно одного одной одного одним одной одним"  # in the order of _RUSSIAN_SINGULAR
_RUSSIAN_MORE = {2: {"nom": "два", "gen": "двух", "ins": "двумя"}, 3: {"nom": "три", "gen": "трёх", "ins": "тремя"}}
_RUSSIAN_PATTERNS = {"plain": "", "striped": "в полоску", "dotted": "в горошек"}


def _russian(group: Group, options: Options) -> str:
    is_one = group.count == 1
    if "is" in options:
        return "находится" if is_one else "находятся"
    case = "gen" if "gen" in options else "ins" if "ins" in options else "nom"
    gender, nominative, genitive, instrumental, genitives, instrumentals = _RUSSIAN_NOUNS[group.shape].split()
    if is_one:
        form, noun = f"{case} {gender}", {"nom": nominative, "gen": genitive, "ins": instrumental}[case]
    else:  # after a nominative 2 or 3 the noun is genitive singular, its adjectives are genitive plural
        form = "ins pl" if case == "ins" else "gen pl"
        noun = {"nom": genitive, "gen": genitives, "ins": instrumentals}[case]

    def agree(kind: str) -> str:
        stem, endings = _RUSSIAN_ADJECTIVES[kind]
        return stem + _RUSSIAN_ENDINGS[endings].split()[_RUSSIAN_COLUMNS.index(form)]

    count = _RUSSIAN_ONE.split()[_RUSSIAN_SINGULAR.index(form)] if is_one else _RUSSIAN_MORE[group.count][case]
    count = "две" if (count, gender) == ("два", "f") else count
    count = str(group.count) if "digits" in options else "" if is_one and "bare" in options else count
    is_behind = "with" in options or group.texture == "dotted"
    is_adjective = not is_behind and (group.texture != "plain" or "plain" in options)
    adjectives = join(agree(group.size), agree(group.colour), agree(group.texture) if is_adjective else "")
    return join(count, adjectives, noun, _RUSSIAN_PATTERNS[group.texture] if is_behind else "")


RUSSIAN = Language(
    phrase=_russian,
    options="gen ins digits plain bare with is",
    by_relation={
        "beside": ("слева от", "справа от", "над", "под"),
        "case": ("gen", "gen", "ins", "ins"),  # what beside governs
        "further": ("левее", "правее", "выше", "ниже"),  # all with the genitive
        "here": ("слева", "справа", "вверху", "внизу"),
    },
    by_background={
        "ground": ("серый", "розовый", "коричневый", "бирюзовый"),
        "prepositional": ("сером", "розовом", "коричневом", "бирюзовом"),
    },
    wordings=(
        "{a} {beside} {b:{case}} на {prepositional} фоне",
        "{a:digits} {further} {b:gen digits}, {ground} фон",
        "на {prepositional} фоне {a:bare with} {beside} {b:{case} bare with}",
        "{ground} фон с {a:ins plain} {beside} {b:{case} plain}",
        "{here} {a:bare}, {there} {b:bare}, {ground} фон",
        "{beside} {b:{case} with} {a:is} {a:with}, фон {ground}",
        "На картинке {a:digits plain} {here} и {b:digits plain} {there}, фон {ground}.",
        "На {prepositional} фоне {there} {b}, а {here} {a}.",
        "Фон {ground}, {a:bare plain} {a:is} {further} {b:gen bare plain}.",
    ),
)
