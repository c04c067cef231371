"""Names of uploaded files: cleaned on the way in, written into a header on the way out.

Floor 5; pure. A name is a label: it never becomes a path here, but somebody may save the file under it.
"""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

MAX_NAME_LENGTH = 255
MAX_EXTENSION_LENGTH = 16
NAMELESS = "file"
ATTR_CHARS = "!#$&+-.^_`|~"
"""RFC 5987 section 3.2.1: what stands for itself, letters and digits apart."""
_UNWANTED = frozenset({"Cc", "Cs", "Zl", "Zp"})
"""Control characters, lone surrogates, line and paragraph separators."""
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""They turn the text around, so that `gpj.exe` reads `exe.jpg`."""


def clean_filename(sent: str) -> str:
    """The last part of a name as sent, without what no name should hold, at most MAX_NAME_LENGTH characters."""
    base = sent.replace("\\", "/").rpartition("/")[2]
    kept = "".join(one for one in base if unicodedata.category(one) not in _UNWANTED and one not in _DIRECTION).strip()
    if kept.strip(".") == "":
        return NAMELESS
    if len(kept) <= MAX_NAME_LENGTH:
        return kept
    stem, dot, extension = kept.rpartition(".")
    if not dot or len(extension) > MAX_EXTENSION_LENGTH:
        return kept[:MAX_NAME_LENGTH]
    return f"{stem[: MAX_NAME_LENGTH - len(extension) - 1]}.{extension}"


def attachment(name: str) -> str:
    """Content-Disposition that makes a browser save a file instead of showing it. Source: RFC 6266, appendix D."""
    fallback = "".join(one if one.isascii() and one.isprintable() and one not in '"\\%' else "_" for one in name)
    header = f'attachment; filename="{fallback}"'
    return header if fallback == name else f"{header}; filename*=UTF-8''{quote(name, safe=ATTR_CHARS)}"
