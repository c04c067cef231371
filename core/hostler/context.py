"""What of a thread goes into a model's context: its newest messages, as many as fit, found with few counts.

Floor 4; on the thread of the run that asks. It knows neither records nor workers: turns come from an iterator, the newest
first, and are read no further than needed; tokens are counted by a function, which a worker stands behind, with the model's
own template and tokenizer.

Nothing is cut inside a message, and the system text is always kept. What is cut begins at a user's message, if there is one:
an answer without its question helps no model, and some templates refuse to begin with one.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from hostler.domain import Message
from hostler.errors import ContextLengthExceeded
from hostler.worker.wire import PromptSize

Count = Callable[[tuple[Message, ...]], PromptSize]
"""Tokens of the prompt that messages become. Raises ContextLengthExceeded when they are too long even to be counted."""

BYTES_PER_TOKEN = 8
"""So much text is counted first: about twice what a token has in most languages, so one count usually brackets the cut."""
WIDEN = 4
"""How much more is taken when that was not enough."""
MAX_BYTES = 32 * 1024 * 1024
"""More text is not even read: a worker renders no longer prompt."""
N_GUESSES = 3
"""Of so many steps towards the cut all but the last follow the size of the text; the last halves, so that they end."""


@dataclass(frozen=True)
class Turn:
    """One message of the thread."""

    id: str
    role: str
    text: str
    image: int | None = None
    """Which of its parts is an image, if one is."""

    @property
    def n_bytes(self) -> int:
        """What it takes in UTF-8, at least one."""
        return len(self.text.encode()) + 1


@dataclass(frozen=True)
class Limits:
    """What a run allows its prompt."""

    answer_tokens: int
    """Room that is left for the answer where older messages can be left out for it."""
    max_prompt_tokens: int | None = None
    """Of the whole prompt; None: what the context holds."""
    last_messages: int | None = None
    """Exactly so many of the newest messages; None: as many as fit."""
    expected_ctx: int = 2048
    """Tokens of the context as far as known before the first count; only a beginning to start from."""

    def wanted(self, n_ctx: int) -> int:
        """Tokens that a prompt is cut to."""
        return min(n_ctx - min(self.answer_tokens, n_ctx // 4), self.allowed(n_ctx))

    def allowed(self, n_ctx: int) -> int:
        """Tokens that a prompt may have when there is nothing left to cut."""
        return n_ctx - 1 if self.max_prompt_tokens is None else min(n_ctx - 1, self.max_prompt_tokens)


@dataclass(frozen=True)
class Fitted:
    """The prompt's messages."""

    messages: tuple[Message, ...]
    """The system text, if there is one, then the turns that are kept, the oldest first."""
    turns: tuple[Turn, ...]
    """Those turns."""
    size: PromptSize
    has_more: bool
    """There are older messages in the thread, which are left out."""


@dataclass
class History:
    """The newest turns of a thread, read as far as they were asked for. Index 0 is the newest."""

    source: Iterator[Turn]
    turns: list[Turn] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    """ends[i]: bytes of turns 0 to i together."""
    is_whole: bool = False
    """There are no others."""

    def read(self, n_turns: float = math.inf, n_bytes: float = math.inf) -> None:
        """Read on until there are so many, or one more than so many bytes hold."""
        while not self.is_whole and len(self.turns) < n_turns and self.n_bytes <= n_bytes:
            turn = next(self.source, None)
            if turn is None:
                self.is_whole = True
            else:
                self.ends.append(self.n_bytes + turn.n_bytes)
                self.turns.append(turn)

    def look_ahead(self) -> bool:
        """Whether there is a turn older than those read."""
        n_read = len(self.turns)
        self.read(n_turns=n_read + 1)
        return len(self.turns) > n_read

    @property
    def n_bytes(self) -> int:
        """Of all turns read."""
        return self.ends[-1] if self.ends else 0

    def cuts(self) -> list[int]:
        """How many of the newest turns may be kept: all of them, or those from a user's turn on."""
        n_read = len(self.turns)
        cuts = [index + 1 for index, turn in enumerate(self.turns) if turn.role == "user"]
        if not cuts:
            return list(range(1, n_read + 1))
        if self.is_whole and cuts[-1] != n_read:
            cuts.append(n_read)
        return cuts


def fit(system: str, source: Iterator[Turn], limits: Limits, count: Count) -> Fitted:
    """Choose what goes into the prompt.

    Args:
        system: The instructions; empty: none.
        source: The thread's turns, the newest first.

    Raises:
        ContextLengthExceeded: Even the newest message alone, or what `last_messages` demands, is over the limit.
        HostlerError: What `count` raises.
    """
    search = _Search(system, History(source), limits, count)
    return search.exactly(limits.last_messages) if limits.last_messages is not None else search.as_many_as_fit()


class _Search:
    """One choice on its way."""

    def __init__(self, system: str, history: History, limits: Limits, count: Count) -> None:
        self._system = (Message("system", system),) if system else ()
        self._history = history
        self._limits = limits
        self._count = count
        self._sizes: dict[int, PromptSize | ContextLengthExceeded] = {}
        """Of the newest n turns, where they have been counted."""

    def exactly(self, n_turns: int) -> Fitted:
        """The newest `n_turns` or a refusal."""
        self._history.read(n_turns, MAX_BYTES)
        n_kept = len(self._history.turns)
        return self._allowed(n_kept, "truncation_strategy")

    def as_many_as_fit(self) -> Fitted:
        """As many of the newest turns as leave room for an answer."""
        history = self._history
        history.read(n_bytes=BYTES_PER_TOKEN * self._limits.expected_ctx)
        low = 0  # so many turns fit
        while cuts := history.cuts():
            if not self._fits(cuts[-1]):
                n_kept = self._bisect(cuts, low)
                # One long message may have less room for its answer than several would be given by leaving some out.
                return self._fitted(n_kept) if n_kept else self._allowed(cuts[0], None)
            low = cuts[-1]
            if history.look_ahead():
                history.read(n_bytes=WIDEN * history.n_bytes)
            elif low == len(history.turns):
                return self._fitted(low)
        return self._allowed(0, None)

    def _bisect(self, cuts: list[int], low: int) -> int:
        """The largest cut that fits, 0 for none; the last one does not."""
        first = bisect_right(cuts, low) - 1  # index of the largest that is known to fit, -1 for none
        last = len(cuts) - 1  # index of the smallest that is known not to fit
        n_steps = 0
        while last - first > 1:
            n_steps += 1
            middle = (first + last) // 2
            if n_steps % N_GUESSES:
                middle = self._guess(cuts, first, last)
            if self._fits(cuts[middle]):
                first = middle
            else:
                last = middle
        return cuts[first] if first >= 0 else 0

    def _guess(self, cuts: list[int], first: int, last: int) -> int:
        """An index between the two, where the size of the text lets one expect the limit."""
        ends = self._history.ends
        least = self._sizes.get(cuts[first]) if first >= 0 else None
        most = self._sizes[cuts[last]]
        if isinstance(most, ContextLengthExceeded):
            return (first + last) // 2
        bytes_least, tokens_least = (ends[cuts[first] - 1], least.n_tokens) if isinstance(least, PromptSize) else (0, 0)
        bytes_most = ends[cuts[last] - 1]
        share = (self._limits.wanted(most.n_ctx) - tokens_least) / max(1, most.n_tokens - tokens_least)
        aim = bytes_least + share * (bytes_most - bytes_least)
        found = bisect_right(cuts, aim, key=lambda cut: ends[cut - 1]) - 1
        return min(max(found, first + 1), last - 1)

    def _size(self, n_turns: int) -> PromptSize | ContextLengthExceeded:
        size = self._sizes.get(n_turns)
        if size is None:
            try:
                size = self._count(self._messages(n_turns))
            except ContextLengthExceeded as error:
                size = error
            self._sizes[n_turns] = size
        return size

    def _fits(self, n_turns: int) -> bool:
        size = self._size(n_turns)
        return isinstance(size, PromptSize) and size.n_tokens <= self._limits.wanted(size.n_ctx)

    def _messages(self, n_turns: int) -> tuple[Message, ...]:
        kept = reversed(self._history.turns[:n_turns])
        messages = (*self._system, *(Message(turn.role, turn.text) for turn in kept))
        # A thread in which nothing was said is answered out of nothing, as OpenAI's are; templates want one message.
        return messages or (Message("system", ""),)

    def _fitted(self, n_turns: int) -> Fitted:
        size = self._size(n_turns)
        assert isinstance(size, PromptSize)
        has_more = len(self._history.turns) > n_turns or self._history.look_ahead()
        return Fitted(self._messages(n_turns), tuple(reversed(self._history.turns[:n_turns])), size, has_more)

    def _allowed(self, n_turns: int, param: str | None) -> Fitted:
        """The newest `n_turns`, which nothing can be left out of any more."""
        size = self._size(n_turns)
        if isinstance(size, ContextLengthExceeded):
            raise size
        n_ctx, limit = size.n_ctx, self._limits.max_prompt_tokens
        if size.n_tokens <= self._limits.allowed(n_ctx):
            return self._fitted(n_turns)
        named = ["the instructions"] if self._system else []
        if n_turns:
            named.append("the newest message" if n_turns == 1 else f"the newest {n_turns} messages")
        what = " and ".join(named) or "the prompt"
        if limit is not None and size.n_tokens < n_ctx:
            raise ContextLengthExceeded(
                f"max_prompt_tokens allows {limit} tokens. However, {what} resulted in {size.n_tokens} tokens. Please allow "
                f"more, or shorten them.",
                param="max_prompt_tokens",
            )
        raise ContextLengthExceeded(
            f"This model's maximum context length is {n_ctx} tokens. However, {what} resulted in {size.n_tokens} tokens. "
            f"Please shorten them, or start the model with a larger ctx_len.",
            param=param,
        )
