"""Keeping a user's text text: finding the texts of control tokens in it and cutting the prompt there.

Floor 2; used in the worker's preparation thread. A tokenizer that reads control tokens reads them in a user's message,
too: `<|im_end|>` typed by a user would end the turn. So a mark is put inside each such text before the messages go into
the template, and the finished prompt is cut at the marks: no segment holds the whole text, and segments are tokenized
one by one. Messages without such texts (all but a few) make a single segment, tokenized as the model was trained.

It knows neither Jinja nor engines.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_MARKS = [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900)]
"""Characters that mean nothing: Unicode's noncharacters, then the private use area. The first unused is taken."""


@dataclass(frozen=True)
class Prompt:
    """A prompt as text, ready to be tokenized segment by segment."""

    segments: tuple[str, ...]
    """In order; concatenated they are the text. Control tokens are read within a segment, never across two."""
    stops: tuple[str, ...] = ()
    """Stop strings that the form of the prompt implies, on top of the request's."""


class ControlTexts:
    """The texts of a model's control tokens, ready to be found. Immutable, any thread."""

    def __init__(self, texts: Iterable[str]) -> None:
        # A text of one character cannot be cut; no tokenizer we know has one as a control token.
        known = sorted({text for text in texts if len(text) > 1})
        self._pattern = re.compile(_trie_pattern(known)) if known else None
        self._prefixes = frozenset(text[:length] for text in known for length in range(1, len(text)))
        self._longest = max((len(text) for text in known), default=0)

    def cuts(self, text: str) -> list[int]:
        """Where to cut so that no control text is whole, also none that what follows would complete; rising."""
        if self._pattern is None or not text:
            return []
        places = set()
        match = self._pattern.search(text)
        while match is not None:
            places.add(match.start() + 1)
            # Overlapping ones count: of `<a><b` the cut of the first may leave the second whole.
            match = self._pattern.search(text, match.start() + 1)
        for length in range(1, min(self._longest, len(text) + 1)):
            if text[-length:] in self._prefixes:
                places.add(len(text) - length + 1)
        return sorted(places)


class Marker:
    """Marks the user's texts of one prompt, and cuts the prompt at the marks."""

    def __init__(self, controls: ControlTexts, texts: Iterable[str], template: str) -> None:
        """Choose a mark.

        Args:
            texts: All the user's texts.
            template: What the mark must not occur in, either.
        """
        self._controls = controls
        known = list(texts)
        self.is_needed = any(controls.cuts(text) for text in known)
        self._mark = _unused_character([template, *known]) if self.is_needed else ""

    def marked(self, value: Any) -> Any:
        """The same value with marks inside every control text of every string in it."""
        if not self.is_needed:
            return value
        if isinstance(value, str):
            pieces = []
            start = 0
            for place in self._controls.cuts(value):
                pieces.append(value[start:place])
                start = place
            return self._mark.join([*pieces, value[start:]])
        if isinstance(value, Mapping):
            return {self.marked(key): self.marked(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.marked(item) for item in value]
        return value

    def segments(self, text: str) -> tuple[str, ...]:
        """Cut the finished prompt; empty segments are left out."""
        if not self.is_needed:
            return (text,) if text else ()
        return tuple(segment for segment in text.split(self._mark) if segment)


def strings_in(value: Any) -> Iterable[str]:
    """Every string in a value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings_in(key)
            yield from strings_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings_in(item)


def _unused_character(texts: Sequence[str]) -> str:
    for code in _MARKS:
        mark = chr(code)
        if not any(mark in text for text in texts):
            return mark
    # NOTE: takes a message that holds all 6,400 private characters. The texts stay whole then, but so does the user's.
    return "\ufffd"


def _trie_pattern(texts: Sequence[str]) -> str:
    # PERF: a plain alternation of the thousands of control texts some models have tries each of them at every `<`; as a
    # trie it takes a few steps, so that a message of a million `<` costs no more than any other.
    root: dict[str, Any] = {}
    for text in texts:
        node = root
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return _node_pattern(root)


def _node_pattern(node: dict[str, Any]) -> str:
    if "" in node:
        return ""  # the shortest text is enough: its cut breaks the longer ones
    branches = []
    for character, child in node.items():
        chain = character
        while "" not in child and len(child) == 1:
            ((following, child),) = child.items()
            chain += following
        branches.append(re.escape(chain) + _node_pattern(child))
    return branches[0] if len(branches) == 1 else "(?:" + "|".join(branches) + ")"
