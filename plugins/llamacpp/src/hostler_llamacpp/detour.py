"""The long prompt that goes around running answers: whose it is, when it is its turn, and when it comes back.

Worker process, engine thread only. It knows runs and their streams; how a prompt is evaluated aside is aside.py's, and who
goes next batching.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hostler import EngineFailed, Pace, pass_by
from hostler_llamacpp.aside import Aside
from hostler_llamacpp.run import Run
from hostler_llamacpp.streams import Streams

MIN_CHUNKS = 3
"""A prompt that would be evaluated in so many chunks beside running answers goes aside, where it is one."""
COPIED_TOKENS = 64
"""So many tokens that are known already, and are copied there and back, cost about what one gains aside."""


class Detour:
    """At most one prompt at a time. What is evaluated aside lies in its stream only once it has come back."""

    def __init__(self, aside: Aside, streams: Streams, pace: Pace) -> None:
        self.aside = aside
        self._streams = streams
        self._pace = pace
        self.run: Run | None = None
        """Whose prompt is evaluated aside, if any."""

    def expect(self, run: Run) -> None:
        """A prompt has come: make room for it, if it is long, before it is its turn. Most often the first comes alone, and
        running answers, which would be held up, find it made."""
        if self.run is None and Aside.is_long(run.n_missing(), run.n_prompt - run.n_missing()):
            self.aside.has_room(run.n_prompt - 1)

    def room_s(
        self,
        waiting: Sequence[Run],
        n_decoding: int,
        seconds: float,
        is_due: Callable[[Run], bool],
        *,
        is_alone: bool,
    ) -> float:
        """Seconds of this step for the prompt that is evaluated aside; 0: it is not its turn, or there is none.

        Args:
            waiting: Whose prompts are not complete, at least one.
            seconds: What the step may spend on prompts, and
            is_alone: whether no running answer has to flow; as Pace.room_s says.
            is_due: As in share_out.
        """
        if not self.aside.is_usable or (self.run is not None and self.run.sink.is_paused):
            return 0.0
        first = min(waiting, key=Run.turn)
        if self.run is None and (is_alone or not self._leaves(first, seconds, is_due)):
            return 0.0
        return self.awaited_s(n_decoding, seconds) if self.run is first else 0.0

    def awaited_s(self, n_decoding: int, seconds: float) -> float:
        """As room_s, where others go first and all of them wait for the beginning of the prompt that is evaluated aside."""
        if not self.aside.is_usable or self.run is None or self.run.sink.is_paused:
            return 0.0
        return min(seconds, self._pace.prompt_s(n_decoding))

    def is_worth(self, n_missing: int, n_done: int, seconds: float) -> bool:
        """Whether a prompt of which so much is missing behind so much is better evaluated aside than in chunks of so many
        seconds."""
        return n_missing >= MIN_CHUNKS * self._pace.tokens_in(seconds) + n_done // COPIED_TOKENS

    def _leaves(self, run: Run, seconds: float, is_due: Callable[[Run], bool]) -> bool:
        """Have a prompt evaluated aside from now on, if that is worth it."""
        if not self.is_worth(run.n_missing(), run.n_prompt - run.n_missing(), seconds):
            return False
        if not is_due(run) or not self.is_worth(run.n_missing(), run.n_done, seconds):
            return False
        assert run.stream is not None
        blob = self._streams.memory.save(run.stream.number, self._streams.room) if run.n_done else None
        if not self.aside.begin(run.prompt[:-1], run.n_done, blob, self._pace.token_s):
            return False
        self.run = run
        return True

    def go_on(self, waiting: Sequence[Run], seconds: float) -> None:
        """Evaluate some of the prompt, and take it back when it is complete."""
        run = self.run
        assert run is not None
        n = self.aside.advance(seconds)
        if n:
            run.n_aside = self.aside.n_done
            pass_by(waiting, [(run, n)])
            run.sink.prefilled(run.n_aside)
        if self.aside.is_complete:
            self.end()

    def end(self) -> None:
        """Put what was evaluated aside where it belongs, complete or not."""
        run, self.run = self.run, None
        assert run is not None
        self.aside.call_off()
        stream = run.stream
        if stream is None or self.aside.n_done <= stream.n_tokens:
            return
        if not self._streams.memory.restore(stream.number, self.aside.take()):
            raise EngineFailed("llama.cpp did not take a prompt back that was evaluated aside; this is a bug")
        stream.extend(run.prompt[stream.n_tokens : self.aside.n_done])
        run.n_done = run.n_aside = self.aside.n_done

    def close(self) -> None:
        """Free everything; the engine's model must still be there."""
        self.run = None
        self.aside.close()
