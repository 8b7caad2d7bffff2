"""NLLB's tokenizer for a bundle: a language code before each text, the closing token behind it.

Older versions of transformers saved the code behind the closing token, and those of today put the code in front
whatever the file says. In the wrong place the model would pool a word piece, so the layout is written anew here.
"""

import json
import re

from tokenizers import Tokenizer, processors

from edgeclip.errors import BuildError

# FLORES-200's codes, as eng_Latn and zho_Hans: ISO 639-3 with the script of ISO 15924.
_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")
# Which code stands before a text as long as nobody says another; the runtime always says one.
_DEFAULT = "eng_Latn"


def order_tokens(content: bytes, eos_id: int) -> tuple[str, dict[str, int]]:
    """tokenizer.json that gives [code] X [eos], and the ids of all language codes, that code first.

    BuildError for a file that is no tokenizer, has no language codes or closes texts with another token.
    """
    try:
        tokenizer = Tokenizer.from_str(content.decode())
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception, and its panics are no Exception at all
        raise BuildError(f"tokenizer.json: not a tokenizer ({error})") from error
    added = {token.content: id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    names = sorted(filter(_CODE.fullmatch, added), key=lambda name: (name != _DEFAULT, name))
    codes = {name: added[name] for name in names}
    if not codes:
        raise BuildError(
            "tokenizer.json: has no language codes (as eng_Latn) among its special tokens; take the one of "
            "facebook/nllb-200-distilled-600M"
        )
    closing = tokenizer.id_to_token(eos_id)
    if added.get(closing or "") != eos_id:
        raise BuildError(f"tokenizer.json: the closing token {eos_id} is {closing!r}, wanted a special token")
    first = names[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {closing}",
        pair=f"{first} $A $B {closing}",
        special_tokens=[(first, codes[first]), (closing, eos_id)],
    )
    return json.dumps(json.loads(tokenizer.to_str()), ensure_ascii=False), codes
