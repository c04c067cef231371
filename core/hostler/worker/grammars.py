"""Forms to constraints, beside the loop and beside the preparation of other requests.

Floor 3, in the worker. Most forms take a millisecond; the worst that get past guidance.py's limits take seconds of native
code that nobody can interrupt. So one thread, `grammars`, makes them one after the other, and a request whose form takes
longer than its time is refused while others go on: another thread takes the place of the one that is stuck.
"""

from __future__ import annotations

import threading
import traceback
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import replace

from hostler.domain import OutputFormat
from hostler.engine import GuidedEngine
from hostler.errors import EngineUnavailable, HostlerError
from hostler.guidance import Guide, TokenConstraint, refused
from hostler.worker.preparation import Prepared

COMPILE_TIMEOUT_S = 10.0
MAX_STUCK = 2
"""Threads that are still at a form after its time; with so many of them new forms are refused."""
MAX_KEPT = 32
"""Forms that stay ready: a program asks again and again for the same ones."""


class _Shift:
    """One thread's work. The lock of GrammarDesk protects both fields."""

    def __init__(self) -> None:
        self.job: Prepared | None = None
        self.is_condemned = False


class GrammarDesk:
    """Takes prepared requests that want a form, gives them on with their constraint."""

    def __init__(
        self,
        engine: GuidedEngine,
        *,
        on_ready: Callable[[Prepared], None],
        on_failed: Callable[[int, HostlerError], None],
        timeout_s: float = COMPILE_TIMEOUT_S,
    ) -> None:
        """No thread runs before the first request.

        Args:
            engine: Asked for its tokens with the first request.
            on_ready: Called in a thread of the desk; so is on_failed, which gets the sequence's id.
        """
        self._engine = engine
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._timeout_s = timeout_s
        self._lock = threading.Lock()  # protects all below, and the fields of shifts
        self._has_jobs = threading.Condition(self._lock)
        self._jobs: deque[Prepared] = deque()
        self._guide: Guide | None = None
        self._kept: OrderedDict[OutputFormat, TokenConstraint] = OrderedDict()
        self._is_open = False
        self._n_stuck = 0

    def put(self, prepared: Prepared) -> None:
        """Take a request; any thread. One of on_ready and on_failed follows."""
        with self._has_jobs:
            is_refused = self._n_stuck >= MAX_STUCK
            if not is_refused:
                self._jobs.append(prepared)
                if not self._is_open:
                    self._is_open = True
                    self._start()
                self._has_jobs.notify()
        if is_refused:
            message = "This model is still busy with forms that are too complex; try again"
            self._on_failed(prepared.sequence_id, EngineUnavailable(message, retry_after_s=5.0))

    def _start(self) -> None:
        threading.Thread(target=self._run, args=(_Shift(),), name="grammars", daemon=True).start()

    def _run(self, shift: _Shift) -> None:
        while self._do_next(shift):
            pass

    def _do_next(self, shift: _Shift) -> bool:
        with self._has_jobs:
            while not self._jobs:
                self._has_jobs.wait()
            shift.job = prepared = self._jobs.popleft()
        timer = threading.Timer(self._timeout_s, self._give_up, (shift, prepared))
        timer.daemon = True
        timer.start()
        result = self._result(prepared)
        timer.cancel()
        with self._lock:
            shift.job = None
            if shift.is_condemned:
                self._n_stuck -= 1
                return False
        if isinstance(result, TokenConstraint):
            self._on_ready(replace(prepared, constraint=result))
        else:
            self._on_failed(prepared.sequence_id, result)
        return True

    def _result(self, prepared: Prepared) -> TokenConstraint | HostlerError:
        form = prepared.params.output_format
        assert form is not None
        try:
            return self._constraint(form)
        except HostlerError as error:
            return error
        except BaseException as error:  # noqa: BLE001 - a panic of native code is no Exception
            traceback.print_exc()
            return refused(form, f"{type(error).__name__}: {error}")

    def _constraint(self, form: OutputFormat) -> TokenConstraint:
        with self._lock:
            guide = self._guide
            ready = self._kept.get(form)
            if ready is not None:
                self._kept.move_to_end(form)
                return ready.fork()
        if guide is None:
            guide = Guide(self._engine.token_table())
        ready = guide.compile(form)
        with self._lock:
            self._guide = guide
            self._kept[form] = ready
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return ready.fork()

    def _give_up(self, shift: _Shift, prepared: Prepared) -> None:
        """Called by the timer's thread."""
        with self._lock:
            if shift.job is not prepared:
                return  # it was done just now
            shift.is_condemned = True
            self._n_stuck += 1
            self._start()
        form = prepared.params.output_format
        assert form is not None
        self._on_failed(prepared.sequence_id, refused(form, f"it takes longer than {self._timeout_s:g} s to make sense of"))
