"""A circuit breaker: an upstream that fails again and again is left alone for a while, then tried by one request first.

    closed ──n failures in a row──▶ open ──pause over──▶ half-open ──the probe gets through──▶ closed
                                     ▲                       │
                                     └──── the probe fails ──┘

On the event loop's thread only.
"""

from __future__ import annotations

import time
from collections.abc import Callable

MAX_PAUSE_FACTOR = 8
"""Each probe that fails doubles the pause, up to so many times the first."""


class Breaker:
    """See the module."""

    def __init__(self, n_failures: int, pause_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Closed.

        Args:
            n_failures: In a row.
            pause_s: The first pause.
        """
        self._n_failures = n_failures
        self._pause_s = pause_s
        self._clock = clock
        self._n_failed = 0
        self._factor = 1
        self._open_until: float | None = None
        """None: closed."""
        self._is_probing = False

    @property
    def is_open(self) -> bool:
        """Nobody but a probe is let through."""
        return self._open_until is not None

    def admit(self) -> float | None:
        """Ask for one attempt. None: go on, and say how it went; else the seconds to stay away."""
        if self._open_until is None:
            return None
        remaining_s = self._open_until - self._clock()
        if remaining_s <= 0 and not self._is_probing:
            self._is_probing = True
            return None
        return max(remaining_s, 1.0)

    def answered(self) -> None:
        """The upstream is there: an answer has begun, or was refused for the client's own fault."""
        if self._open_until is not None:
            self._open_until, self._is_probing, self._n_failed, self._factor = None, False, 0, 1

    def succeeded(self) -> None:
        """An answer is complete."""
        self.answered()
        self._n_failed = 0

    def failed(self) -> None:
        """No answer, or one that broke off."""
        self._n_failed += 1
        if self._is_probing:
            self._factor = min(self._factor * 2, MAX_PAUSE_FACTOR)
        elif self._open_until is not None or self._n_failed < self._n_failures:
            return  # one of those that were under way when it opened
        self._is_probing = False
        self._open_until = self._clock() + self._pause_s * self._factor

    def given_up(self) -> None:
        """The attempt ended without telling anything: it was cancelled."""
        self._is_probing = False
