"""New ids with OpenAI's prefixes. Floor 1; any thread."""

from __future__ import annotations

import secrets
import string
from typing import Literal

Kind = Literal["thread", "msg", "asst", "file", "run", "step", "webhook"]

ID_LETTERS = 24
"""142 bits: nobody guesses one, and two never meet."""
_ALPHABET = string.ascii_letters + string.digits


def new_id(kind: Kind) -> str:
    """`thread_` and 24 letters or digits; a file's has a hyphen, as OpenAI's have."""
    letters = "".join(secrets.choice(_ALPHABET) for _ in range(ID_LETTERS))
    return f"file-{letters}" if kind == "file" else f"{kind}_{letters}"
