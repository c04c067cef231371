"""The register of checks, and what all of them use. Floor 2, tests only.

A check is a function named after its rule; its docstring is the rule in full. It gets an EngineContract whose engine has no
active sequence, and leaves it so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract

Check = Callable[["EngineContract"], None]
CHECKS: dict[str, Check] = {}
"""Name -> check, in the order they should run: what later checks build on comes first."""
MESSAGE_CHECKS: dict[str, Check] = {}
"""The same for engines that take messages: some of the above, then their own."""

EMOJI_TEXT = "Grüße, 世界! 🦙🚂 👩‍🚒 naïve\tcafé\nline two  with  spaces {}<>\\ "
PROMPTS = (
    "The engine stood in the roundhouse and",
    "Once upon a time there was a small red fox who",
    "Water boils at one hundred degrees because",
    "The three primary colours are",
    "A recipe for bread begins with flour and",
    "In the year 1969 two people walked on",
    "The capital city of France is known for",
    "My grandmother always told me that",
    "To open a file in Python you write",
    "The quick brown fox jumps over",
    "Ships sail by night because the stars",
    "He opened the letter slowly and read:",
    "Mount Everest is the highest",
    "The first rule of the library is",
    "A good cup of tea needs",
    "When the bell rang for the second time,",
)


def check(function: Check) -> Check:
    """Register a check under its function's name."""
    CHECKS[function.__name__] = function
    return function


def also_for_messages(function: Check) -> Check:
    """Register a check for engines that take messages, too."""
    MESSAGE_CHECKS[function.__name__] = function
    return function


def tokenize(c: EngineContract, text: str) -> list[int]:
    """A text's own tokens, nothing added."""
    return list(c.engine.tokenize(text, add_special=False, parse_special=False))


def without_leading_space(text: bytes) -> bytes:
    """A text as its author wrote it, where the vocabulary puts a space in front."""
    return text[1:] if text.startswith(b" ") else text
