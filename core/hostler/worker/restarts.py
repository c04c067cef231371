"""When a worker that died may be started again.

Floor 3, in the host, the supervisor's thread. Pure: times come in as arguments. A worker that dies now and then is started
again at once; one that keeps dying, after a pause that doubles until it has run for a whole window without dying.
"""

from __future__ import annotations


class RestartPolicy:
    """The crashes of one supervisor."""

    def __init__(self, window_s: float, crashes_before_backoff: int, first_backoff_s: float, max_backoff_s: float) -> None:
        self._window_s = window_s
        self._limit = crashes_before_backoff
        self._first_s = first_backoff_s
        self._max_s = max_backoff_s
        self._crashes: list[float] = []
        self._n_pauses = 0

    def pause_after_crash(self, now: float, ready_for_s: float) -> float:
        """Note a crash.

        Args:
            now: Monotonic seconds.
            ready_for_s: How long the worker had been ready; 0 when it died while loading.

        Returns:
            Seconds to wait before the next start; 0 for at once.
        """
        self._crashes = [time for time in self._crashes if now - time < self._window_s] + [now]
        if ready_for_s >= self._window_s:
            self._n_pauses = 0
        if len(self._crashes) < self._limit and self._n_pauses == 0:
            return 0.0
        self._n_pauses += 1
        return min(self._max_s, self._first_s * 2.0 ** min(self._n_pauses - 1, 60))
