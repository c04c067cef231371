"""What every engine with continuous batching has to decide: how much of a prompt beside running answers, whose prompt,
which KV cache a sequence gets, and which of them to keep side by side.

Floor 2; pure Python for engine plugins, which import it from `hostler`. Engine thread only. It knows counts, seconds and
bytes, nothing of models, tokens' values or what evaluates them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

MAX_ITL_RATIO = 2.6
"""How long a step may take beside running answers, as a multiple of one that only decodes, unless the user says otherwise."""
ALONE_STEP_S = 1.0
"""Length of a step while no answer has to flow: whoever cancels or arrives waits no longer than that, or than an engine
stretches it."""
PATIENCE_S = 3.0
"""How long in all an answer may be held up by prompts that waited when it began. Who was first of many that came together owes
the others that much: they all decode in one batch the sooner, where a token costs half of what it costs alone."""
TOGETHER_S = 0.3
"""A prompt that comes so soon after an answer's beginning counts as one that waited: while a step lasts nobody is seen."""
BURST = 2
"""So many prompts must have waited when an answer began for it to be held up: beside one alone an answer flows at once."""
ANSWER_STEP_S = 0.1
"""A step with prompts alone is long enough for an answer to begin behind it: prompts that came together begin one by one."""
ANSWER_STEPS = 5
"""Into so many steps at most those who wait are parted, where the steps are as long as that: 16 prompts of 112 tokens, four a
step, are done 1 % sooner than three a step; five a step are no sooner done, and half of them wait 10 % longer."""
BATCH_SHARE = 0.5
"""Of the usual time for a prompt of priority batch beside answers of a higher one."""
AGING_TOKENS = 16384
"""Prompt tokens of others after which a prompt that waits counts as one priority higher: half a minute of a small model on two
cores, two seconds of a GPU."""
MIN_PROMPT_S = 0.01
"""Prefill of a step beside running answers, at least, where decode is so fast that a reader does not notice that much."""
MIN_CHUNK_TOKENS = 8
MIN_ALONE_TOKENS = 128
SIT_OUT_S = ANSWER_STEP_S
"""Answers that need not flow are left out of a step that takes so long: a token in it would be slow all the same, and the
prompts are done sooner."""
MIN_REST = 0.25
"""Of a step's time for prompts this part is theirs, however long its decode took."""
MAX_CHANGE = 1.02
"""A decode that took longer than so many times what is known counts as if it had taken that: with longer contexts decode gets
slower by less, and while something else has a core for seconds, steps must not become longer still for prompts' sake. One that
took less by as much likewise, else the few that are quick would be all that is learnt;"""
MIN_DROP = 1.5
"""but one that took so many times less shows that what is known was of a busier moment."""
_LEARNING_RATE = 0.25
_BATCH_RANK = 2


class Turn:
    """What decides when a sequence's prompt is evaluated and whether its answer must flow: to be inherited by what an engine
    keeps of a sequence. Only this module writes to it."""

    __slots__ = ("begun_s", "came_s", "is_of_burst", "n_waited", "patience_s", "priority")

    def __init__(self, priority: int) -> None:
        """It comes now.

        Args:
            priority: As in SequenceSink.
        """
        self.priority = priority
        self.came_s = time.monotonic()
        self.begun_s = 0.0
        """When its prompt was complete: at first the beginning of the step that does it, until the engine says `begins`."""
        self.n_waited = 0
        """Prompt tokens that were evaluated of others while it waited."""
        self.patience_s = PATIENCE_S
        self.is_of_burst = False
        """Enough prompts waited when its answer began."""

    def n_missing(self) -> int:
        """Prompt tokens that are still to be evaluated, at least one while it waits."""
        raise NotImplementedError

    def begins(self) -> None:
        """Its prompt is complete now; to be called behind a step that may have been long."""
        self.begun_s = time.monotonic()

    def turn(self) -> tuple[int, int]:
        """Who has the smallest goes next; see share_out."""
        rank = self.priority - self.n_waited // AGING_TOKENS
        return rank if rank > 0 else 0, self.n_missing() - self.n_waited


AnyTurn = TypeVar("AnyTurn", bound=Turn)


class Pace:
    """How many prompt tokens a step may evaluate, so that running answers keep flowing; one loaded model's learnt costs.

    A step that decodes and prefills takes the time of both, so the prompt tokens of a step are what the decode time
    allows. Costs grow with position, shrink with faster machines, and change with their neighbours.

    Not every running answer counts. One that began while several prompts were waiting is held up for their sake, by
    PATIENCE_S at most; one of priority batch is held up by every prompt of a higher priority. Where no answer has to flow
    the step may be as long as one with prompts alone; if it is short they get their token in it all the same.
    """

    def __init__(
        self,
        n_batch: int,
        n_slots: int,
        *,
        max_itl_ratio: float = MAX_ITL_RATIO,
        alone_step_s: float = ALONE_STEP_S,
        min_alone_tokens: int = MIN_ALONE_TOKENS,
        min_prompt_s: float = MIN_PROMPT_S,
    ) -> None:
        """Nothing is known yet.

        Args:
            n_batch: Prompt tokens of a step at most.
            n_slots: Sequences that decode at most.
            max_itl_ratio: Length of a step with prompts beside running answers, in steps without.
            alone_step_s: Length of a step while nothing decodes.
            min_alone_tokens: But no fewer tokens than this, where short chunks are slow.
            min_prompt_s: Beside running answers so much at least.
        """
        self._n_batch = n_batch
        self._share = max_itl_ratio - 1
        self._alone_step_s = alone_step_s
        self._min_alone_tokens = min_alone_tokens
        self._min_prompt_s = min_prompt_s
        self._prefill_s = 0.0
        """Seconds a prompt token costs; 0: unknown."""
        self._decode_s = [0.0] * (n_slots + 1)
        """Seconds of a step that decodes so many sequences; 0: unknown."""
        self._held: list[Turn] = []
        """Answers that the step at hand costs some of their patience."""

    def prompt_s(self, n_decoding: int) -> float:
        """Seconds that may be spent beside so many decoding sequences, between one of their tokens and the next."""
        if not n_decoding:
            return self._alone_step_s
        return max(self._share * self._decode_time(n_decoding), self._min_prompt_s)

    def chunk_tokens(self, n_decoding: int, share: float = 1.0) -> int:
        """Prompt tokens that may be evaluated beside so many decoding sequences.

        Args:
            share: Of the time; less than 1 where others want theirs.
        """
        return self.tokens_in(share * self.prompt_s(n_decoding), is_alone=not n_decoding)

    def tokens_in(self, seconds: float, *, is_alone: bool = False) -> int:
        """Prompt tokens that can be evaluated in so much time, within the bounds of a step."""
        floor = self._min_alone_tokens if is_alone else MIN_CHUNK_TOKENS
        if not self._prefill_s:
            return min(self._n_batch, floor if is_alone else 4 * floor)
        return min(self._n_batch, max(floor, int(seconds / self._prefill_s)))

    def room_s(self, waiting: Sequence[Turn], decoding: Sequence[Turn]) -> tuple[float, bool]:
        """Seconds that the next step may spend on prompts, and whether no running answer has to flow.

        Args:
            waiting: Whose prompts are not complete, at least one.
            decoding: Whose answers run.
        """
        rank = min(one.turn()[0] for one in waiting)
        oldest_s = min(one.came_s for one in waiting)
        is_flowing = is_outranked = False
        self._held.clear()
        young = [one for one in decoding if one.begun_s > oldest_s - TOGETHER_S and one.patience_s > 0]
        # Beside the last of a burst those flow no more than beside the others, and who began last belongs to it, too.
        is_burst = len(waiting) >= BURST or any(one.is_of_burst for one in young)
        for one in decoding:
            if one.priority >= _BATCH_RANK > rank:
                continue
            if is_burst and one in young:
                one.is_of_burst = True
                self._held.append(one)
                continue
            is_flowing = True
            is_outranked = is_outranked or one.priority < _BATCH_RANK <= rank
        if not is_flowing:
            return self._alone_step_s, True
        return self.prompt_s(len(decoding)) * (BATCH_SHARE if is_outranked else 1.0), False

    def rest_s(self, seconds: float, n_decoding: int, elapsed_s: float) -> float:
        """Of so many seconds for prompts what is left behind a decode that took `elapsed_s`, so that the step as a whole takes
        what it should: a decode that was slow once takes from them, a quick one leaves more."""
        left_s = seconds + self._decode_time(n_decoding) - elapsed_s
        return min(max(left_s, MIN_REST * seconds), seconds / (1 - MIN_REST))

    def n_enough(self, waiting: Sequence[Turn]) -> int:
        """Prompt tokens of a step that an answer may begin behind; see share_out. More where many wait: larger steps are
        cheaper (16 prompts of 112 tokens by two and three at once took 5 % less time than one by one)."""
        return max(self.tokens_in(ANSWER_STEP_S), sum(one.n_missing() for one in waiting) // ANSWER_STEPS)

    @property
    def token_s(self) -> float:
        """Seconds that a prompt token costs; 0: unknown."""
        return self._prefill_s

    def is_long(self, n_tokens: int) -> bool:
        """Whether so many prompt tokens make a step that answers sit out, when none of them has to flow."""
        return n_tokens * self._prefill_s >= SIT_OUT_S

    def learn(self, n_decoding: int, n_prefilled: int, elapsed_s: float) -> None:
        """Note what a step took, or the part of it that decoded or prefilled."""
        if not n_prefilled:
            known_s = self._decode_s[n_decoding]
            if known_s and elapsed_s > known_s / MIN_DROP:
                elapsed_s = min(max(elapsed_s, known_s / MAX_CHANGE), known_s * MAX_CHANGE)
            self._decode_s[n_decoding] = _blend(known_s, elapsed_s)
            return
        for one in self._held:
            one.patience_s -= elapsed_s
        if n_prefilled >= MIN_CHUNK_TOKENS // 2:
            spent_s = elapsed_s - (self._decode_time(n_decoding) if n_decoding else 0.0)
            # A decode estimate from a busier moment must not make prefill look free.
            self._prefill_s = _blend(self._prefill_s, max(spent_s, elapsed_s / 10) / n_prefilled)

    def _decode_time(self, n_decoding: int) -> float:
        known = self._decode_s[n_decoding]
        if known:
            return known
        nearest = min(
            (n for n, seconds in enumerate(self._decode_s) if seconds),
            key=lambda n: abs(n - n_decoding),
            default=0,
        )
        # Unknown: what one prompt token costs is the least a step can take.
        return self._decode_s[nearest] if nearest else self._prefill_s * n_decoding


def _blend(old: float, new: float) -> float:
    return old + _LEARNING_RATE * (new - old) if old else new


def share_out(
    waiting: Sequence[AnyTurn],
    n_tokens: int,
    is_due: Callable[[AnyTurn], bool],
    *,
    min_tokens: int = 1,
    stretch: float = 1.0,
    n_enough: int | None = None,
) -> list[tuple[AnyTurn, int]]:
    """Choose which prompts are evaluated in a step, and how many tokens of each.

    The higher priority first, and of equals the one that misses the fewest tokens: most are answered soonest so, and a short
    question need not wait for a long document. Waiting counts: each token that is evaluated of others takes one from what a
    waiting prompt is taken to miss, so that nobody who comes later overtakes a prompt of `n` tokens once `n` tokens have been
    evaluated since it came; and AGING_TOKENS of them raise it by a priority.

    So nobody starves. While a prompt waits, no more tokens of others are evaluated than what those missed that were there
    when it came, `AGING_TOKENS` for each priority above its own, and its own length times the number of slots; one that was
    paused comes anew.

    Args:
        waiting: In the order in which they came, at least one.
        n_tokens: As Pace says.
        is_due: Asked when one is chosen. It may find that the prompt is better left for later (False), or give it its
            place in the KV cache, which may make what is missing less.
        min_tokens: A second prompt in the step gets no fewer, save where they complete it: for engines to whom each
            further prompt is a pass of its own.
        stretch: The last prompt of a step is completed if the step becomes at most so many times as long by that: no crumbs
            are left.
        n_enough: With so many tokens and a prompt that is complete the step is good, so that its answer begins before the
            next prompt's tokens are evaluated; None: no such end.

    Returns:
        Each with 1 to `n_missing()` tokens, together about `n_tokens`: never more without `stretch`.
    """
    # The little more is for a stretch that is a quotient of whole numbers: rounding must not cost its last token.
    n_left, n_spare = n_tokens, int(n_tokens * (stretch - 1.0) + 1e-6)
    chunks: list[tuple[AnyTurn, int]] = []
    for one in sorted(waiting, key=Turn.turn) if len(waiting) > 1 else waiting:
        if n_left < 1:
            break
        if not is_due(one):
            continue
        n_missing = one.n_missing()
        n = min(n_missing, n_left)
        if n_missing <= n_left + n_spare:
            n = n_missing
            one.begun_s = time.monotonic()
        elif chunks and n < min_tokens:
            continue
        n_left -= n
        chunks.append((one, n))
        if n_enough is not None and n == n_missing and n_tokens - n_left >= n_enough:
            break
    pass_by(waiting, chunks)
    return chunks


def pass_by(waiting: Sequence[Turn], chunks: Sequence[tuple[Turn, int]]) -> None:
    """Note for all who wait what is evaluated of others."""
    n_evaluated = sum(n for _, n in chunks)
    for one in waiting:
        one.n_waited += n_evaluated
    for one, n in chunks:
        one.n_waited -= n


class Cache:
    """One KV cache of many that lie side by side, and the tokens in it. It keeps what its last sequence left."""

    def __init__(self, number: int, buffer: Any) -> None:
        """Start empty.

        Args:
            number: Its place among the others.
            buffer: An array of whole numbers, such as numpy's, with room for every token it can hold.
        """
        self.number = number
        """Changes when two are swapped."""
        self._tokens = buffer
        self.n_tokens = 0
        """INVARIANT: the keys and values of so many tokens lie in it, at positions 0 to n_tokens - 1."""
        self.is_active = False
        """A sequence owns it."""
        self.is_shared = False
        """Other sequences may begin with what lies in it; else it goes with the one it is of."""
        self.last_used = 0
        """Rises with each release."""

    @property
    def tokens(self) -> Any:
        """What lies in it; the buffer's beginning."""
        return self._tokens[: self.n_tokens]

    def append(self, token: int) -> None:
        """Note one evaluated token."""
        self._tokens[self.n_tokens] = token
        self.n_tokens += 1

    def extend(self, tokens: Any) -> None:
        """Note evaluated tokens."""
        self._tokens[self.n_tokens : self.n_tokens + len(tokens)] = tokens
        self.n_tokens += len(tokens)

    def take_over(self, other: Cache, n_tokens: int) -> None:
        """Note that the first tokens of another have been copied here."""
        self._tokens[:n_tokens] = other._tokens[:n_tokens]
        self.n_tokens = n_tokens


AnyCache = TypeVar("AnyCache", bound=Cache)


def common_prefix(one: Any, other: Any) -> int:
    """How many tokens two numpy arrays have in common from the beginning."""
    n = min(len(one), len(other))
    differs = one[:n] != other[:n]
    place = int(differs.argmax()) if n else 0
    return place if n and differs[place] else n


MIN_COPIED_TOKENS = 16
"""A shorter common beginning is evaluated: a copy takes as long as the tokens behind it, too."""


def choose_cache(
    caches: Sequence[AnyCache],
    n_common: Callable[[AnyCache], int],
    rank: Callable[[AnyCache], tuple[int, int]],
    may_copy: Callable[[AnyCache, int], bool],
) -> tuple[AnyCache, AnyCache | None, int]:
    """Choose where a new sequence goes, so that most of its prompt is known and least of what others left is lost.

    Args:
        caches: All; at least one is idle.
        n_common: Tokens of the prompt that a cache begins with.
        rank: The idle cache with the smallest is given up first.
        may_copy: Whether so many of a cache's first tokens can be copied into another.

    Returns:
        The cache to take, the one to copy its beginning from (None: nothing to copy), and how many tokens to keep.
    """
    victim = min((cache for cache in caches if not cache.is_active), key=rank)
    common = {id(cache): n_common(cache) for cache in caches}
    # Of equals an idle one, which may be taken over without a copy.
    source = max(caches, key=lambda cache: (common[id(cache)], not cache.is_active))
    n = common[id(source)]
    if n == 0:
        return victim, None, 0
    # A tail of a quarter is the old end of the same conversation; more is another one that only begins alike.
    is_continued = source.n_tokens - n <= max(64, source.n_tokens // 4)
    if not source.is_active and (is_continued or source is victim):
        return source, None, n
    if n >= MIN_COPIED_TOKENS and may_copy(source, n):
        return victim, source, n
    return victim, None, 0


class Place(Protocol):
    """A numbered KV cache, or whatever stands for one."""

    number: int
    n_tokens: int


AnyPlace = TypeVar("AnyPlace", bound=Place)


class Packing:
    """Decides when holes between the running caches are worth closing.

    A hole costs each step, a swap moves KV bytes: both are memory traffic, so they are compared in bytes. Like renting and
    buying: a swap is made when the holes have cost as much as it will.
    """

    def __init__(self, hole_bytes: int, token_bytes: int, scratch_bytes: int, *, is_hole_per_cache: bool = False) -> None:
        """Note what things cost.

        Args:
            hole_bytes: Read in every step for a hole.
            token_bytes: KV of one token.
            scratch_bytes: Host memory that one swap may take for a moment.
            is_hole_per_cache: Each idle cache between two running ones costs, not each gap.
        """
        self._hole_bytes = hole_bytes
        self._token_bytes = token_bytes
        self._scratch_bytes = scratch_bytes
        self._is_hole_per_cache = is_hole_per_cache
        self._debt_bytes = 0

    def no_holes(self) -> None:
        """Note a step without any, instead of `plan`: what earlier ones have cost is forgotten."""
        self._debt_bytes = 0

    def plan(self, caches: Sequence[AnyPlace], runs: Callable[[AnyPlace], bool]) -> list[tuple[AnyPlace, AnyPlace]]:
        """Swaps to make before this step; usually none.

        Args:
            caches: All, by number.
            runs: Whether a cache takes part in this step.
        """
        running = [cache for cache in caches if runs(cache)]
        if not running or running[-1].number - running[0].number == len(running) - 1:
            self._debt_bytes = 0
            return []
        gaps = [b.number - a.number - 1 for a, b in itertools.pairwise(running)]
        n_holes = sum(gaps) if self._is_hole_per_cache else sum(gap > 0 for gap in gaps)
        swaps = self._cheapest(caches, running, runs)
        n_tokens = sum(one.n_tokens + other.n_tokens for one, other in swaps)
        if max(one.n_tokens + other.n_tokens for one, other in swaps) * self._token_bytes > self._scratch_bytes:
            return []
        self._debt_bytes += n_holes * self._hole_bytes
        # Saved and restored: each byte is read twice and written twice.
        if self._debt_bytes < 4 * n_tokens * self._token_bytes:
            return []
        self._debt_bytes = 0
        return swaps

    @staticmethod
    def _cheapest(
        caches: Sequence[AnyPlace], running: Sequence[AnyPlace], runs: Callable[[AnyPlace], bool]
    ) -> list[tuple[AnyPlace, AnyPlace]]:
        """The window of consecutive numbers that all running caches can be swapped into with the fewest tokens moved."""
        best: list[tuple[AnyPlace, AnyPlace]] = []
        best_cost: int | None = None
        for start in range(len(caches) - len(running) + 1):
            end = start + len(running)
            outside = [cache for cache in running if not start <= cache.number < end]
            inside = [cache for cache in caches[start:end] if not runs(cache)]
            cost = sum(cache.n_tokens for cache in [*outside, *inside])
            if best_cost is None or cost < best_cost:
                best, best_cost = list(zip(outside, inside, strict=True)), cost
        return best
