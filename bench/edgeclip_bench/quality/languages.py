"""The task of each text where a model's tasks are languages: data name them in their own way, as "de" or "jp".

A text whose language is not known is an error, never one in some other language.
"""

from collections.abc import Iterable, Sequence

from edgeclip.errors import InputError
from edgeclip.families.tasks import are_languages, list_tasks
from edgeclip.manifest import Manifest
from edgeclip_bench.quality.published import ENGLISH_ONLY

ENGLISH = "en"
# FLORES-200's codes of the languages of ISO 639-1, and of names that Crossmodal-3600 and XTD10 have beside them.
# Where a language has several scripts or forms, it is the one that most of its texts are in.
_SPELLED = """
    af:afr_Latn am:amh_Ethi ar:arb_Arab as:asm_Beng az:azj_Latn be:bel_Cyrl bg:bul_Cyrl bn:ben_Beng bo:bod_Tibt
    bs:bos_Latn ca:cat_Latn cs:ces_Latn cy:cym_Latn da:dan_Latn de:deu_Latn el:ell_Grek en:eng_Latn eo:epo_Latn
    es:spa_Latn et:est_Latn eu:eus_Latn fa:pes_Arab fi:fin_Latn fil:tgl_Latn fo:fao_Latn fr:fra_Latn ga:gle_Latn
    gd:gla_Latn gl:glg_Latn gn:grn_Latn gu:guj_Gujr ha:hau_Latn he:heb_Hebr hi:hin_Deva hr:hrv_Latn ht:hat_Latn
    hu:hun_Latn hy:hye_Armn id:ind_Latn ig:ibo_Latn is:isl_Latn it:ita_Latn iw:heb_Hebr ja:jpn_Jpan jp:jpn_Jpan
    jv:jav_Latn ka:kat_Geor kk:kaz_Cyrl km:khm_Khmr kn:kan_Knda ko:kor_Hang ku:kmr_Latn ky:kir_Cyrl lb:ltz_Latn
    lo:lao_Laoo lt:lit_Latn lv:lvs_Latn mg:plt_Latn mi:mri_Latn mk:mkd_Cyrl ml:mal_Mlym mn:khk_Cyrl mr:mar_Deva
    ms:zsm_Latn mt:mlt_Latn my:mya_Mymr nb:nob_Latn ne:npi_Deva nl:nld_Latn nn:nno_Latn no:nob_Latn or:ory_Orya
    pa:pan_Guru pl:pol_Latn ps:pbt_Arab pt:por_Latn quz:quy_Latn ro:ron_Latn ru:rus_Cyrl sa:san_Deva sd:snd_Arab
    si:sin_Sinh sk:slk_Latn sl:slv_Latn sm:smo_Latn sn:sna_Latn so:som_Latn sq:als_Latn sr:srp_Cyrl st:sot_Latn
    su:sun_Latn sv:swe_Latn sw:swh_Latn ta:tam_Taml te:tel_Telu tg:tgk_Cyrl th:tha_Thai tk:tuk_Latn tl:tgl_Latn
    tr:tur_Latn tt:tat_Cyrl ug:uig_Arab uk:ukr_Cyrl ur:urd_Arab uz:uzn_Latn vi:vie_Latn xh:xho_Latn yi:ydd_Hebr
    yo:yor_Latn zh:zho_Hans zh-cn:zho_Hans zh-hans:zho_Hans zh-hant:zho_Hant zh-tw:zho_Hant zu:zul_Latn
"""
_CODES = dict(pair.split(":") for pair in _SPELLED.split())
_KNOWN = frozenset((*_CODES, *(code.lower().replace("_", "-") for code in _CODES.values())))


def is_code(name: str) -> bool:
    """Whether a name is the code of a language: "de", "pt-BR", "deu_Latn"; "my_pages" is not Burmese."""
    spoken, _, place = name.replace("_", "-").partition("-")
    is_place = len(place) == 2 and place.isupper()
    return name.replace("_", "-").lower() in _KNOWN or (spoken in _CODES and is_place)


def speaks_by_task(manifest: Manifest) -> bool:
    """Whether the tasks of this model's texts are their languages."""
    return are_languages(manifest.tasks_of("text"))


def find_code(language: str, manifest: Manifest) -> str:
    """The task of texts in a language: its own name, that of ISO 639-1, or the only one of its ISO 639-3 code."""
    known = manifest.tasks_of("text")
    name = language.strip().replace("_", "-").lower()
    spoken, _, place = name.partition("-")
    alike = [code for code in known if name in (code.lower().replace("_", "-"), code.partition("_")[0])]
    # "pt-br" is Portuguese; "en-de" is two languages.
    general = _CODES.get(spoken) if place not in _CODES else None
    code = alike[0] if len(alike) == 1 else _CODES.get(name, general)
    if code not in known:
        raise InputError(f"language {language!r}: the model has no code for it; it has {list_tasks(known, language)}")
    assert code is not None
    return code


def codes_of(
    languages: Iterable[str | None], task: str | None, manifest: Manifest, *, label: str, benchmark: str | None = None
) -> Sequence[str]:
    """The task of each text, from its language or what the user asked for. Benchmarks in English name none."""
    named = [ENGLISH if one is None and benchmark in ENGLISH_ONLY else one for one in languages]
    different = list(dict.fromkeys(named))
    if task is not None:
        if len(different) > 1:
            names = ", ".join(one or "one without a name" for one in different)
            raise InputError(
                f"{label}: --task {task} is one language, and the texts are in {names}; leave it out, or choose with "
                "--language"
            )
        return [task] * len(named)
    if None in different:
        raise InputError(
            f"{label}: its texts name no language, and this model needs one: give --task, one of "
            f"{list_tasks(manifest.tasks_of('text'))}"
        )
    found = {one: find_code(one, manifest) for one in different if one is not None}
    return [found[one] for one in named if one is not None]
