"""Guessing the next tokens of an answer, and deciding how many guesses are worth a try.

Worker process, engine thread only; numbers alone, no llama.cpp. Speculation makes one step give several tokens: guessed
tokens are evaluated beside the last one, and each is accepted while it is what the sequence's own sampler picks from the
row before it. So what is written is what would have been written without; only the time differs, and this module is about
the time.

Where guesses come from: prompt lookup. An answer that quotes, edits or goes on with what is in the prompt repeats runs of
tokens. `Ngrams` knows where the last few tokens stood before and guesses what came behind them. It is asked for every
token of every answer, also where nothing is drafted, so that how often it is right is known for nothing.

How many: a step costs more the more rows it has, on a CPU with few cores nearly in proportion, so a wrong guess is lost
time, and a neighbour waits for it, too. `choose` takes the draft length that makes the geometric mean of all running
answers' speeds largest, from what the guesses' past says (`Ngrams.expected`) and what steps have cost (`StepCosts`).
Where nothing makes it larger than plain steps, nothing is drafted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np

LENGTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
"""Draft lengths that are tried; few, since llama.cpp prepares anew for a step of another shape (0.5 ms)."""
MAX_DRAFT = LENGTHS[-1]

_N = 3
"""Tokens that must have stood there before. With 2 most finds are chance; with 4 each edited word in a copy costs more."""
_TOKEN_BITS = 21
_KEY_MASK = (1 << (_N * _TOKEN_BITS)) - 1
_QUOTED_RATES = (0.0, 0.0, 0.5, 0.75, 0.88, 0.94, 0.96)
_REPEATED_RATES = (0.0, 0.0, 0.4, 0.6, 0.75, 0.88, 0.93)
"""How often a guess is right before anything is known of this answer, by the bit length of how many tokens have agreed: of
guesses from the prompt, which an answer copies at length or not at all, and from the answer itself, which goes round in
circles and leaves them."""
_MAX_CLASS = len(_QUOTED_RATES) - 1
_QUOTED_PACE, _REPEATED_PACE = 0.09, 0.05
"""How fast the rates learn."""
_MOST = 0.995
_MIN_GAIN = 0.02
"""Less is no gain: what steps cost is not known better, and a step of another shape makes the next plain one dearer, too."""
_SHORT = 4
"""Draft lengths up to here are weighed first."""


class Ngrams:
    """One sequence's tokens, where each run of them stood last, and how well that has foretold the answer."""

    __slots__ = ("_at", "_index", "_key", "_n_agreed", "_n_prompt", "_prompt", "_quoted", "_repeated", "_tokens")

    def __init__(self, prompt: np.ndarray) -> None:
        """Take note of the prompt; it is gone through only when the first token of the answer has been handed over.

        Args:
            prompt: Token ids.
        """
        self._prompt = prompt
        self._n_prompt = len(prompt)
        self._tokens: list[int] = []
        self._index: dict[int, int] = {}
        """Run of tokens, packed -> where the token behind it stands; the latest place counts."""
        self._key = 0
        """The last tokens, packed."""
        self._at = 0
        """Where the token stands that is expected next; 0: nothing is expected."""
        self._n_agreed = 0
        """How many tokens before that place are also the last ones here."""
        self._quoted = list(_QUOTED_RATES)
        self._repeated = list(_REPEATED_RATES)

    @property
    def n_written(self) -> int:
        """Tokens of the answer so far."""
        return len(self._tokens) - self._n_prompt if self._tokens else 0

    @property
    def tokens(self) -> list[int]:
        """Prompt and answer; empty before the answer's first token."""
        return self._tokens

    @property
    def n_agreed(self) -> int:
        """How many of the last tokens stood there in the same order; 0: nothing was found."""
        return self._n_agreed if self._at else 0

    @property
    def has_guess(self) -> bool:
        """The last tokens stood somewhere before."""
        return self._at > 0

    def note(self, token: int) -> None:
        """Add a token of the answer. PERF: about 1 us; nothing is searched for."""
        if not self._tokens:
            self._read_prompt()
        tokens, at = self._tokens, self._at
        if at:
            n_agreed = self._n_agreed
            kind = min(n_agreed.bit_length(), _MAX_CLASS)
            if at < self._n_prompt:
                rates, pace = self._quoted, _QUOTED_PACE
            else:
                rates, pace = self._repeated, _REPEATED_PACE
            if tokens[at] == token:
                rates[kind] += pace * (1.0 - rates[kind])
                at, self._n_agreed = at + 1, n_agreed + 1
            else:
                rates[kind] *= 1.0 - pace
                at = 0
        tokens.append(token)
        self._key = key = (self._key << _TOKEN_BITS | token) & _KEY_MASK
        n_tokens = len(tokens)
        if not at:
            at, self._n_agreed = self._index.get(key, 0), _N
        self._at = at
        if n_tokens >= _N:
            self._index[key] = n_tokens

    def draft(self, n: int) -> list[int]:
        """The next tokens as they stood there; where that reaches the end, the text goes round in a circle."""
        tokens, at = self._tokens, self._at
        found = tokens[at : at + n]
        n_round = len(found)
        while len(found) < n:
            found += found[: min(n_round, n - len(found))]
        return found

    def expected(self, n_most: int) -> list[float]:
        """Tokens that a step is expected to give, by the number of guesses: `[1.0, ...]`, `n_most` + 1 of them."""
        rates, n_agreed = self._quoted if self._at < self._n_prompt else self._repeated, self._n_agreed
        total, chance = 1.0, 1.0
        result = [total]
        for n in range(n_agreed, n_agreed + n_most):
            rate = rates[min(n.bit_length(), _MAX_CLASS)]
            chance *= min(rate, _MOST)
            total += chance
            result.append(total)
        return result

    def _read_prompt(self) -> None:
        # PERF: 1 ms for 8,192 tokens. Keys are packed by numpy; later places win.
        wide = self._prompt.astype(np.int64)
        self._tokens = wide.tolist()
        n = len(wide) - _N + 1
        if n > 0:
            keys = wide[:n].copy()
            for place in range(1, _N):
                keys <<= _TOKEN_BITS
                keys |= wide[place : place + n]
            self._index = dict(zip(keys.tolist(), range(_N, _N + n), strict=True))
        for token in self._tokens[-_N:]:
            self._key = (self._key << _TOKEN_BITS | token) & _KEY_MASK


class StepCosts:
    """What steps cost, learnt as they go: a plain step by the number of sequences, guesses by the number of rows.

    A pass of several rows costs about a fixed time and so much a row; what is known of it is kept as sums for the
    line of best fit, older steps fading. llama.cpp takes a row of each sequence first and what some have beyond that in
    further passes, so guesses for some of the sequences are a pass of their own.
    """

    def __init__(self, n_slots: int) -> None:
        """Nothing is known yet."""
        self._plain_s = [0.0] * (n_slots + 1)
        # Sums over passes: weight, rows, rows squared, seconds, rows times seconds.
        self._sums = [0.0] * 5
        self._line = (0.0, 0.0)
        """The line of best fit: seconds of no rows, seconds a row."""

    def start(self, one_s: float, row_s: float) -> None:
        """Begin with what the warm-up said.

        Args:
            one_s: A step of one token.
            row_s: A token in a long chunk of a prompt.
        """
        self._plain_s[1] = one_s
        for n_rows in (2, 32):
            self._note(n_rows, one_s + (n_rows - 1) * row_s, 0.5)

    def plain_s(self, n: int) -> float:
        """A step of one token for each of so many sequences."""
        if n <= 1 or self._plain_s[n]:
            return self._plain_s[n]
        # What a second row costs beyond the first is the same for one sequence and for two.
        return max(self._plain_s[1], self.pass_s(n))

    def pass_s(self, n_rows: int) -> float:
        """A pass of so many rows, 2 or more."""
        fixed_s, row_s = self._line
        return max(self._plain_s[1], fixed_s + row_s * n_rows)

    def step_s(self, n: int, n_drafting: int, length: int) -> float:
        """A step of so many sequences of which some have guesses, equally many each."""
        if n_drafting == n:
            return self.pass_s(n * (length + 1))
        return self.plain_s(n) + self.pass_s(max(2, n_drafting * length))

    def learn_plain(self, n: int, elapsed_s: float) -> None:
        """Note what a plain step took."""
        old = self._plain_s[n]
        self._plain_s[n] = old + 0.25 * (min(elapsed_s, 3 * old) - old) if old else elapsed_s

    def learn(self, n: int, n_drafting: int, length: int, elapsed_s: float) -> None:
        """Note what a step with guesses took."""
        n_rows = n * (length + 1)
        if n_drafting < n:
            n_rows = n_drafting * length
            elapsed_s -= self.plain_s(n)
        if n_rows < 2 or elapsed_s <= 0:
            return
        # One step that a busy neighbour held up must not count as the truth.
        self._note(n_rows, min(elapsed_s, 3 * self.pass_s(n_rows)), 1.0)

    def _note(self, n_rows: int, seconds: float, weight: float) -> None:
        keep = 0.97
        for index, value in enumerate((1.0, n_rows, n_rows * n_rows, seconds, n_rows * seconds)):
            self._sums[index] = keep * self._sums[index] + weight * value
        total, rows, squares, all_s, products = self._sums
        spread = total * squares - rows * rows
        row_s = max(0.0, (total * products - rows * all_s) / spread) if spread > 0 else 0.0
        self._line = (all_s - row_s * rows) / total, row_s


class Source(Protocol):
    """Where guesses for one sequence come from."""

    def expected(self, n_most: int) -> list[float]:
        """See Ngrams."""


def choose(
    sources: Sequence[tuple[Source, int]],
    n: int,
    costs: StepCosts,
    n_rows: int,
    *,
    n_waiting: int = 0,
    prompt_s: float = 0.0,
    guess_s: float = 0.0,
    max_ratio: float = math.inf,
) -> tuple[list[int], int]:
    """Decide who drafts how much in the next step.

    Args:
        sources: For each sequence that has a guess: where from, and how many tokens it can take at most, 1 or more.
        n: Sequences that decode in this step.
        n_rows: Guesses that a step has room for.
        n_waiting: Prompts that are evaluated in the step.
        prompt_s: What they add to it.
        guess_s: What a draft model takes for one guess of everybody; 0: nothing is asked of one.
        max_ratio: So many times a plain step is what those may wait who have no guess themselves and so gain nothing.

    Returns:
        Places in `sources`, and how many guesses each of them makes; nobody and 0 where plain steps are better.
    """
    plain_s = costs.plain_s(n) + prompt_s
    if plain_s <= 0:
        return [], 0
    longest = min(MAX_DRAFT, n_rows)
    # PERF: tokens gained by length are concave, a step's time is a straight line, so the speed has one peak. Where it is found
    # among the first few, as with every guess that is hardly worth one, nobody need know of the others.
    for reach in (min(_SHORT, longest), longest):
        order, best, best_length, has_peak = _search(
            sources, n, costs, n_rows, reach, plain_s, n_waiting, prompt_s, guess_s, max_ratio * plain_s
        )
        if has_peak:
            break
    return order[:best], best_length


def _search(
    sources: Sequence[tuple[Source, int]],
    n: int,
    costs: StepCosts,
    n_rows: int,
    longest: int,
    plain_s: float,
    n_waiting: int,
    prompt_s: float,
    guess_s: float,
    longest_s: float,
) -> tuple[list[int], int, int, bool]:
    """Go through the draft lengths up to one.

    Returns:
        Places in `sources` in the order of their gains, how many of them draft, how much each, and whether longer drafts are
        known to be worse.
    """
    gains = []  # [how many guesses] -> log of the tokens a step then gives
    for source, n_most in sources:
        expected = source.expected(min(longest, n_most))
        expected += expected[-1:] * (longest + 1 - len(expected))
        gains.append([math.log(one) for one in expected])
    order = sorted(range(len(gains)), key=lambda index: -gains[index][-1])
    best, best_gain, best_length = 0, _MIN_GAIN, 0
    highest = -math.inf
    for length in LENGTHS:
        if length > longest:
            break
        total, peak = 0.0, -math.inf
        for n_drafting, index in enumerate(order[: n_rows // length], 1):
            total += gains[index][length]
            step_s = costs.step_s(n, n_drafting, length) + prompt_s + length * guess_s
            gain = total - (n + n_waiting) * math.log(step_s / plain_s)
            peak = max(peak, gain)
            if gain > best_gain and (n_drafting == n or step_s <= longest_s):
                best, best_gain, best_length = n_drafting, gain, length
        if peak < highest:
            return order, best, best_length, True
        highest = peak
    return order, best, best_length, False
