"""The grammar of ten languages: how a group of objects is said, with all words that must agree with each other.

Words stand in the files of `languages`, what depends on others' gender, number or case is decided here. A function
takes a language's words, a group, and options, which mean the same in every language that has them:

    digits   the count as a figure             plain   the texture "plain" is named, not left out
    bare     one object without the word one   with    the texture as "with stripes", or a synonym
    is       nothing but the verb that agrees with the group
"""

from collections.abc import Callable, Mapping
from typing import Any

from edgeclip_bench.demo.scenes import Group

Options = frozenset[str]
Words = Mapping[str, Any]


def join(*words: str) -> str:
    """The words that are not empty, with single spaces between."""
    return " ".join(word for word in words if word)


def _english(words: Words, group: Group, options: Options) -> str:
    is_one = group.count == 1
    if "is" in options:
        return "is" if is_one else "are"
    count = str(group.count) if "digits" in options else words["counts"][group.count]
    count = "a" if is_one and "bare" in options else count
    noun = group.shape if is_one else group.shape + ("es" if group.shape == "cross" else "s")
    if "with" in options:
        return join(count, words["synonyms"][group.size], group.colour, noun, words["patterns"][group.texture])
    texture = "" if group.texture == "plain" and "plain" not in options else group.texture
    return join(count, group.size, texture, group.colour, noun)


def _german(words: Words, group: Group, options: Options) -> str:
    is_one, is_dative = group.count == 1, "dative" in options
    if "is" in options:
        return "befindet sich" if is_one else "befinden sich"
    gender, *forms = words["nouns"][group.shape]
    noun = forms[(0 if is_one else 2) + is_dative]
    ending = "en" if is_dative else words["ending"][gender] if is_one else "e"
    count = (words["one"][gender][is_dative], "zwei", "drei")[group.count - 1]
    count = str(group.count) if "digits" in options else count
    is_adjective = "with" not in options and (group.texture != "plain" or "plain" in options)
    kinds = (group.size, group.texture, group.colour) if is_adjective else (group.size, group.colour)
    adjectives = [words["stems"][kind] + ending for kind in kinds]
    return join(count, *adjectives, noun, words["patterns"][group.texture] if "with" in options else "")


def _french(words: Words, group: Group, options: Options) -> str:
    if "is" in options:
        return "se trouve" if group.count == 1 else "se trouvent"
    gender, singular, plural = words["nouns"][group.shape]
    is_one, is_feminine = group.count == 1, gender == "f"

    def agree(kind: str) -> str:
        if kind in words["invariable"]:
            return words["invariable"][kind]
        return words["adjectives"][kind][is_feminine] + ("" if is_one else "s")

    count = ("une" if is_feminine else "un", "deux", "trois")[group.count - 1]
    count = str(group.count) if "digits" in options else count
    if "de" in options:
        count = f"d'{count}" if count.startswith("u") else f"de {count}"
    texture = "" if group.texture == "plain" and "plain" not in options else agree(group.texture)
    texture = words["patterns"][group.texture] if "with" in options else texture
    return join(count, agree(group.size), singular if is_one else plural, agree(group.colour), texture)


def _spanish(words: Words, group: Group, options: Options) -> str:
    gender, singular, plural = words["nouns"][group.shape]
    is_one, is_feminine = group.count == 1, gender == "f"

    def agree(kind: str) -> str:
        return words["adjectives"][kind][(0 if is_one else 2) + is_feminine]

    count = ("una" if is_feminine else "un", "dos", "tres")[group.count - 1]
    count = str(group.count) if "digits" in options else count
    noun, size, colour = singular if is_one else plural, agree(group.size), agree(group.colour)
    if "with" in options:
        return join(count, noun, size, colour, words["synonyms"][group.texture])
    texture = "" if group.texture == "plain" and "plain" not in options else agree(group.texture)
    if "before" in options:  # large is cut short before a singular noun
        size = agree("large before") if group.size == "large" else size
        return join(count, size, noun, colour, texture)
    return join(count, noun, colour, size, words["patterns"].get(group.texture, texture))


def _turkish(words: Words, group: Group, options: Options) -> str:
    noun = words["nouns"][group.shape]["genitive" in options]
    size, texture, colour = (words["adjectives"][kind] for kind in (group.size, group.texture, group.colour))
    texture = "" if group.texture == "plain" and "plain" not in options else texture
    texture = words["synonyms"][group.texture] if "with" in options else texture
    if "digits" in options or group.count > 1:
        count = str(group.count) if "digits" in options else ("iki", "üç")[group.count - 2]
        return join(count, size, texture, colour, noun)
    return join(size, texture, colour, "bir", noun)  # as an article, one stands after the adjectives


def _russian(words: Words, group: Group, options: Options) -> str:
    is_one = group.count == 1
    if "is" in options:
        return "находится" if is_one else "находятся"
    case = "gen" if "gen" in options else "ins" if "ins" in options else "nom"
    gender, nominative, genitive, instrumental, genitives, instrumentals = words["nouns"][group.shape].split()
    if is_one:
        form, noun = f"{case} {gender}", {"nom": nominative, "gen": genitive, "ins": instrumental}[case]
    else:  # after a nominative 2 or 3 the noun is genitive singular, its adjectives are genitive plural
        form = "ins pl" if case == "ins" else "gen pl"
        noun = {"nom": genitive, "gen": genitives, "ins": instrumentals}[case]

    def agree(kind: str) -> str:
        stem, endings = words["adjectives"][kind]
        return stem + words["endings"][endings].split()[words["columns"].index(form)]

    count = words["one"].split()[words["singular"].index(form)] if is_one else words["more"][str(group.count)][case]
    count = "две" if (count, gender) == ("два", "f") else count
    count = str(group.count) if "digits" in options else "" if is_one and "bare" in options else count
    is_behind = "with" in options or group.texture == "dotted"
    is_adjective = not is_behind and (group.texture != "plain" or "plain" in options)
    adjectives = join(agree(group.size), agree(group.colour), agree(group.texture) if is_adjective else "")
    return join(count, adjectives, noun, words["patterns"][group.texture] if is_behind else "")


def _chinese(words: Words, group: Group, options: Options) -> str:
    classifier, noun = words["nouns"][group.shape][0], words["nouns"][group.shape][1:]
    count = str(group.count) if "digits" in options else "一两三"[group.count - 1]  # before a classifier two is 两
    size, colour = words["sizes"][group.size], words["colours"][group.colour]
    texture, is_plain = words["textures"][group.texture], group.texture == "plain"
    is_unsaid = is_plain and "plain" not in options
    if "loose" in options:  # the size apart, in front
        look = colour if is_unsaid else f"纯{colour}" if is_plain else colour + texture
        return f"{count}{classifier}{size}的{look}{noun}"
    pattern = "" if is_unsaid else f"{texture}的" if is_plain else f"带{texture}的"
    return f"{count}{classifier}{pattern}{colour}{size}{noun}"


def _japanese(words: Words, group: Group, options: Options) -> str:
    is_synonym = "with" in options
    count = f"{group.count}個" if "digits" in options else f"{'一二三'[group.count - 1]}つ"
    is_unsaid = group.texture == "plain" and "plain" not in options
    texture = "" if is_unsaid else words["textures"][group.texture][is_synonym]
    noun = words["sizes"][group.size][is_synonym] + texture + words["colours"][group.colour]
    noun += words["nouns"][group.shape]
    return f"{noun}が{count}" if "subject" in options else f"{count}の{noun}"  # "stars, two" or "two stars"


def _hindi(words: Words, group: Group, options: Options) -> str:
    is_several, is_oblique = group.count > 1, "oblique" in options
    if "is" in options:
        return "हैं" if is_several else "है"
    column = is_several or is_oblique
    noun = words["nouns"][group.shape][is_several + 2 * is_oblique]
    count = str(group.count) if "digits" in options else ("एक", "दो", "तीन")[group.count - 1]
    size, texture, colour = (words["adjectives"][kind][column] for kind in (group.size, group.texture, group.colour))
    texture = "" if group.texture == "plain" and "plain" not in options else texture
    texture = words["patterns"][group.texture][column] if "with" in options else texture
    if "coloured" in options:  # "of red colour, two small stars": the colour agrees with the word colour
        of_colour = join(words["adjectives"][group.colour][1], "रंग", ("का", "के")[column])
        return join(of_colour, count, size, texture, noun)
    return join(count, size, texture, colour, noun)


def _arabic(words: Words, group: Group, options: Options) -> str:
    gender, singular, dual, plural = words["nouns"][group.shape]
    is_feminine, suffix = gender == "f", "ين" if "oblique" in options else "ان"
    noun = (singular, dual + suffix, plural)[group.count - 1]

    def agree(kind: str) -> str:
        masculine, feminine, feminine_dual = words["adjectives"][kind]
        if group.count == 2:
            return (feminine_dual if is_feminine else masculine) + suffix
        return feminine if is_feminine or group.count == 3 else masculine  # the plural of things is feminine

    texture = "" if group.texture == "plain" else agree(group.texture)
    texture = "سادة" if group.texture == "plain" and "plain" in options else texture
    texture = words["patterns"][group.texture] if "with" in options else texture
    described = join(agree(group.size), agree(group.colour), texture)
    if group.count == 3:  # three takes the gender that the noun has not
        return join("3" if "digits" in options else "ثلاث" if is_feminine else "ثلاثة", noun, described)
    # One and two are the noun's own form: no figure can stand for them, a word may stress them.
    stressed = agree(("one", "two")[group.count - 1]) if "digits" in options else ""
    return join(noun, stressed, described)


PHRASES: Mapping[str, Callable[[Words, Group, Options], str]] = {
    "en": _english,
    "de": _german,
    "fr": _french,
    "es": _spanish,
    "tr": _turkish,
    "ru": _russian,
    "zh": _chinese,
    "ja": _japanese,
    "hi": _hindi,
    "ar": _arabic,
}
