"""Several prompts in one request: several generations read by one thread, as if they were one.

Floor 5; on the waitress thread of the request. At most as many run side by side as the model has slots for; the next starts
when one has ended. Each holds its own place of the request budget and its own id, `BASE-1`, `BASE-2`, ..., the first `BASE`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import msgspec

from hostler.domain import GenerationEvent
from hostler.errors import InvalidRequest, QueueFull

if TYPE_CHECKING:
    from hostler.api.answers import Events

ROUND_POLL_S = 0.02
"""Each generation is waited for so long in its turn: short, because the others wait meanwhile."""


class ManyPrompts:
    """Answers to several prompts; answer `j` of prompt `i` has the index `i * n + j`."""

    def __init__(self, generate: Callable[[int], Events], n_prompts: int, n: int) -> None:
        """Admit the first prompt.

        Args:
            generate: Admits prompt `i`.
            n: Answers a prompt.

        Raises:
            HostlerError: What `generate` raises for the first prompt.
        """
        self._generate = generate
        self._n_prompts = n_prompts
        self._n = n
        first = generate(0)
        self.id = first.id
        self.model = first.model
        self.created = first.created
        self._window = max(1, self.model.n_parallel // n)
        self._next = 1
        self._active: list[tuple[int, Events, Iterator[GenerationEvent | None]]] = [(0, first, first.events(ROUND_POLL_S))]

    def events(self, poll_s: float, *, gathers: bool = False) -> Iterator[GenerationEvent | None]:
        """All events, with indices over all prompts; None after each round in which every generation was silent.

        Args:
            poll_s: At most so many seconds pass without an event or None.
        """
        del poll_s, gathers  # a round is shorter than any caller's patience
        while self._active or self._next < self._n_prompts:
            self._fill()
            is_silent = True
            for entry in list(self._active):
                prompt, generation, events = entry
                try:
                    event = next(events)
                except StopIteration:
                    self._active.remove(entry)
                    generation.close()
                    is_silent = False
                    continue
                except InvalidRequest as error:
                    if error.param is not None and error.param.startswith("prompt"):
                        error.param = f"prompt[{prompt}]{error.param.removeprefix('prompt')}"
                    raise
                if event is not None:
                    is_silent = False
                    yield msgspec.structs.replace(event, index=prompt * self._n + event.index)
            if is_silent:
                yield None

    def _fill(self) -> None:
        while len(self._active) < self._window and self._next < self._n_prompts:
            try:
                generation = self._generate(self._next)
            except QueueFull:
                if not self._active:
                    raise
                return  # there is a place when one of ours has ended
            self._active.append((self._next, generation, generation.events(ROUND_POLL_S)))
            self._next += 1

    def close(self) -> None:
        """Cancel what runs, give everything back."""
        self._next = self._n_prompts
        for _, generation, _ in self._active:
            generation.close()
        self._active.clear()

    def __enter__(self) -> ManyPrompts:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
