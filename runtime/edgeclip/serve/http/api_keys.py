"""API keys: read from a file and from the settings, compared in constant time.

Digests are compared, of equal length whatever was sent, and always all of them: neither a key's beginning nor its
length nor its place in the list shows in the time. Without keys the service is open.
"""

import hashlib
import hmac
import re
from collections.abc import Iterable
from pathlib import Path

from edgeclip.errors import InputError

_COMMENT = re.compile(r"(^|\s)#.*")


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line, without blank lines and comments; InputError without one.

    A comment begins with # at the beginning of a line or after white space; inside a key it is one of its characters.
    """
    try:
        lines = path.read_text(
            encoding="utf-8-sig"
        ).splitlines()  # Windows' editors write a mark before the first key
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise InputError(f"{path}: API keys cannot be read ({reason})") from error
    keys = tuple(key for line in lines if (key := _COMMENT.sub("", line).strip()))
    if not keys:
        raise InputError(f"{path}: holds no API key; write one a line, or leave the file out to need none")
    return keys


class KeyRing:
    """The digests of the keys that open the service."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @property
    def is_needed(self) -> bool:
        """Whether a request needs a key at all."""
        return bool(self._digests)

    def opens(self, authorization: str | None) -> bool:
        """Whether an Authorization header, "Bearer KEY", lets a request in."""
        if not self._digests:
            return True
        scheme, _, key = (authorization or "").partition(" ")
        found = _digest(key.strip())
        is_known = False
        for digest in self._digests:
            is_known |= hmac.compare_digest(digest, found)
        return is_known and scheme.lower() == "bearer"


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
