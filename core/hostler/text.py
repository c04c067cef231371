"""Text assembly: from an engine's byte pieces to text that a client may see.

Floor 2; used in the worker's loop thread, one assembler a sequence, and by `hostler.testing`. It holds back what is
not decided yet and nothing else: bytes that do not make a whole UTF-8 character, and characters that may still turn out
to be the beginning of a stop string. Token counts and log probabilities travel with the text of their tokens.

Neither tokens nor engines are known here. The outcome depends on the bytes alone, never on how they were cut into
pieces: the stop string that is *completed* first ends the text (of several completed by the same character the one that
began first), so a longer one that began earlier but is not complete yet does not count.
"""

from __future__ import annotations

import codecs
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from hostler.domain import TokenLogprob

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Release(NamedTuple):
    """Text that is decided, with the tokens it is made of."""

    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...]


NOTHING = Release("", 0, ())
"""All of it is held back."""


class StopStrings:
    """A set of stop strings, compiled into an Aho-Corasick automaton: each character costs the same however many
    strings there are and however long. Immutable; empty strings are ignored."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._goto: list[dict[str, int]] = [{}]
        self._fail = [0]
        #: State -> how many of the last characters could still become a stop string.
        self.depth = [0]
        #: State -> the longest stop string that ends here, or None.
        self._ends: list[str | None] = [None]
        for stop in stops:
            if stop:
                self._insert(stop)
        self._link()
        #: PERF: most pieces hold no first character of any stop string; one set operation says so.
        self._first = frozenset(self._goto[0])
        #: The same of their UTF-8.
        self.first_bytes = frozenset(character.encode("utf-8", "surrogatepass")[0] for character in self._first)

    def __bool__(self) -> bool:
        return bool(self._first)

    def _insert(self, stop: str) -> None:
        state = 0
        for character in stop:
            following = self._goto[state].get(character)
            if following is None:
                following = len(self._goto)
                self._goto[state][character] = following
                self._goto.append({})
                self._fail.append(0)
                self.depth.append(self.depth[state] + 1)
                self._ends.append(None)
            state = following
        self._ends[state] = stop

    def _link(self) -> None:
        # Breadth first: the failure of a state (its longest proper suffix that is a prefix, too) is known before its
        # children's. The first stop string met along the failures is the longest that ends in a state.
        queue = deque(self._goto[0].values())
        while queue:
            state = queue.popleft()
            if self._ends[state] is None:
                self._ends[state] = self._ends[self._fail[state]]
            for character, child in self._goto[state].items():
                self._fail[child] = self._next(self._fail[state], character)
                queue.append(child)

    def _next(self, state: int, character: str) -> int:
        while True:
            following = self._goto[state].get(character)
            if following is not None:
                return following
            if state == 0:
                return 0
            state = self._fail[state]

    def scan(self, state: int, text: str) -> tuple[int, int, str | None]:
        """Read on from a state (0 at the beginning).

        Returns:
            The new state; and, when a stop string was completed, the index just after it and the string, else -1, None.
        """
        if state == 0 and self._first.isdisjoint(text):
            return 0, -1, None
        for index, character in enumerate(text):
            state = self._next(state, character)
            if state and self._ends[state] is not None:
                return state, index + 1, self._ends[state]
        return state, -1, None


class TextAssembler:
    """The text of one sequence. Feed it each token's bytes; it gives back what may be shown."""

    def __init__(self, stops: StopStrings | None = None) -> None:
        self._stops = stops if stops else None
        self._state = 0
        self._decoder = _new_decoder("replace")
        self._has_partial = False
        self._held = ""
        # Tokens whose text is not wholly released: (start and end as offsets in `_held`, log probability). The start of
        # the first is negative when some of its text is out already.
        self._tokens: list[tuple[int, int, TokenLogprob | None]] = []
        self.stop_string: str | None = None
        """The stop string that ended the text; what follows it is dropped."""
        self.is_idle = True
        """Nothing is held back. PERF: while it is so, an ASCII piece with none of `first_bytes` in it would come back
        from `feed` just as it is, so that the caller may skip the call. Changes with every `feed`."""
        self.first_bytes: frozenset[int] = frozenset() if self._stops is None else self._stops.first_bytes

    def feed(self, piece: bytes, logprob: TokenLogprob | None = None) -> Release:
        """Add one token's bytes and take what is decided now."""
        if self.stop_string is not None:
            return NOTHING
        text = self._decode(piece)
        end, n_held_back = -1, 0
        if self._stops is not None:
            self._state, end, self.stop_string = self._stops.scan(self._state, text)
            n_held_back = self._stops.depth[self._state]
        is_decided = self.stop_string is None and n_held_back == 0 and not self._has_partial
        if is_decided and self.is_idle:
            return Release(text, 1, () if logprob is None else (logprob,))
        self.is_idle = is_decided
        return self._add(text, logprob, n_held_back, end)

    def finish(self) -> Release:
        """Take what is left at the end of the sequence: nothing more will come, so nothing needs to be held back."""
        if self.stop_string is not None:
            return NOTHING
        rest = self._decoder.decode(b"", True)
        self._has_partial = False
        self._held += rest
        if rest and self._stops is not None:
            self._state, end, self.stop_string = self._stops.scan(self._state, rest)
            if self.stop_string is not None:
                return self._cut(len(self._held) - len(rest) + end - len(self.stop_string))
        tokens = self._tokens
        self._tokens = []
        text, self._held = self._held, ""
        self.is_idle = True
        return Release(text, len(tokens), tuple(entry for _, _, entry in tokens if entry is not None))

    def _decode(self, piece: bytes) -> str:
        if not self._has_partial and piece.isascii():
            return piece.decode("ascii")
        text = self._decoder.decode(piece)
        self._has_partial = bool(self._decoder.getstate()[0])
        return text

    def _add(self, text: str, logprob: TokenLogprob | None, n_held_back: int, stop_end: int) -> Release:
        before = len(self._held)
        self._held += text
        # Bytes that wait for the rest of their character will be one character at least.
        self._tokens.append((before, len(self._held) + self._has_partial, logprob))
        if self.stop_string is not None:
            return self._cut(before + stop_end - len(self.stop_string))
        return self._release(len(self._held) - n_held_back)

    def _release(self, length: int) -> Release:
        text, self._held = self._held[:length], self._held[length:]
        n_done = 0
        while n_done < len(self._tokens) and self._tokens[n_done][1] <= length:
            n_done += 1
        done = self._tokens[:n_done]
        self._tokens = [(start - length, end - length, entry) for start, end, entry in self._tokens[n_done:]]
        if not text and not done:
            return NOTHING
        return Release(text, n_done, tuple(entry for _, _, entry in done if entry is not None))

    def _cut(self, length: int) -> Release:
        # A token that lies partly before the stop string shows some of its text, so it belongs to the answer.
        done: list[TokenLogprob | None] = []
        for start, end, entry in self._tokens:
            if start >= length and end > length:
                break
            done.append(entry)
        text = self._held[:length]
        self._held = ""
        self._tokens = []
        return Release(text, len(done), tuple(entry for entry in done if entry is not None))
