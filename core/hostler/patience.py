"""Strangers' code with a deadline: calls are made one after the other on a thread of their own, and gone on without when one
takes too long.

Floor 0; used while plugins are looked for, so by the main thread of a command or of the server. A thread and no process,
because what comes back are modules and functions. Python cannot end a thread: one that is stuck is left behind, as a daemon
that keeps no process from ending, and the calls behind it get a new one. A call that holds the interpreter's lock stands in
everybody's way, ours too; then faulthandler's watchdog, which needs no lock, ends the process with the tracebacks of all
threads, which name the culprit's file. PERF: 0.1 to 0.4 ms for all calls of a list together.
"""

from __future__ import annotations

import faulthandler
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Generic, TypeVar

DEADLINE_S = 5.0
"""For one call. A plugin's module is imported in a millisecond; from a cold disk, or with a library that it should have left
alone, in a second or two."""

LAST_RESORT_S = 30.0
"""After so long without the interpreter's lock the process ends. Far beyond the deadline, so that a machine that stood still
meanwhile is not taken for a plugin that does."""

_Answer = TypeVar("_Answer")


class TookTooLong(Exception):
    """A call that did not return in time; the text says where it stands."""

    def __init__(self, deadline_s: float, place: str) -> None:
        where = f"; it stands at {place}" if place else ""
        super().__init__(f"did not return within {deadline_s:g} s{where}")
        self.place = place


def call_each(
    calls: Sequence[Callable[[], _Answer]], deadline_s: float = DEADLINE_S
) -> Iterator[_Answer | BaseException]:
    """Make each call, in order, and give what it returned or raised; `TookTooLong` when it did neither in time."""
    n_done = 0
    try:
        while n_done < len(calls):
            helper = _Helper(calls[n_done:])
            for _ in calls[n_done:]:
                outcome = helper.next_outcome(deadline_s)
                n_done += 1
                yield outcome
                if helper.is_left:
                    break
    finally:
        faulthandler.cancel_dump_traceback_later()


class _Helper(Generic[_Answer]):
    """One thread with the calls it is to make."""

    def __init__(self, calls: Sequence[Callable[[], _Answer]]) -> None:
        self._calls = calls
        self._outcomes: queue.SimpleQueue[_Answer | BaseException] = queue.SimpleQueue()
        self.is_left = False
        """Set once by the waiting thread: make no further call."""
        self._thread = threading.Thread(target=self._run, name="plugins", daemon=True)
        self._thread.start()

    def next_outcome(self, deadline_s: float) -> _Answer | BaseException:
        try:
            return self._outcomes.get(timeout=deadline_s)
        except queue.Empty:
            self.is_left = True
            return TookTooLong(deadline_s, _place_of(self._thread))

    def _run(self) -> None:
        for call in self._calls:
            if self.is_left:
                return
            _arm()  # here, for the waiting thread may not come to it any more; each call winds it up anew
            try:
                self._outcomes.put(call())
            except BaseException as error:  # noqa: BLE001 - whatever it is, SystemExit too: it is the call's outcome
                self._outcomes.put(error)


def _arm() -> None:
    try:
        faulthandler.dump_traceback_later(LAST_RESORT_S, exit=True, file=2)
    except (OSError, RuntimeError, ValueError):
        pass  # no standard error to write to, as under pythonw


def _place_of(thread: threading.Thread) -> str:
    """`file:line, in function` where a thread stands, outside the standard library if it is anywhere else at all."""
    import sysconfig

    frame = sys._current_frames().get(thread.ident or 0)
    library = sysconfig.get_path("stdlib")
    found: FrameType | None = None
    while frame is not None and frame.f_code.co_filename != __file__:
        filename = frame.f_code.co_filename
        is_ours = not filename.startswith("<frozen") and (not filename.startswith(library) or "-packages" in filename)
        if is_ours:
            found = frame
            break
        found, frame = found or frame, frame.f_back
    return f"{found.f_code.co_filename}:{found.f_lineno}, in {found.f_code.co_name}" if found is not None else ""
