"""Who sends events to webhooks, and when: at least once, in order for each subject, again after a failure.

Floor 4, in the host process. One thread, `webhooks`, makes deliveries of what is logged and hands out those that are due; each
attempt runs on a thread of its own, at most N_SENDERS a webhook, so that a slow receiver holds back nobody but itself. Between
events the one thread sleeps, and without a webhook there is none. What is to be done stands in the database
(records/webhooks.py); nothing here must survive.

`_changed` (a condition) protects `_is_woken`, `_is_stale`, `_ends_at`, `_is_over` and `_under_way`. It is never held while
the database or a receiver is waited for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from hostler.errors import HostlerError
from hostler.signedpost import Attempt, Outcome, Post, Poster
from hostler.subscription import site_of

if TYPE_CHECKING:
    from hostler.records.webhooks import Delivery, Target, WebhookStore

log = logging.getLogger("hostler.webhooks")

RETRY_DELAYS_S = (5.0, 30.0, 120.0, 600.0, 3600.0)
"""After each failed attempt, then the delivery is dropped; spec/API.md section 10."""
N_SENDERS = 4
"""Attempts at once to one webhook, each of another subject."""
BATCH = 200
"""Events looked at in one transaction."""
STORAGE_PAUSE_S = 5.0
"""After the database could not be used."""
FAREWELL_S = 1.0
"""At the end: what is due may still go out, a receiver that hangs is not waited for."""


class Clock(Protocol):
    """Time, replaced in tests."""

    def now(self) -> float:
        """Unix seconds."""

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        """Wait on a condition that is held, for so long at most; None: until it is notified."""


class SystemClock:
    """The machine's own."""

    def now(self) -> float:
        """Unix seconds: what is due is kept over a restart."""
        return time.time()

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        """Wait."""
        condition.wait(timeout_s)


class Deliverer:
    """Delivers until it is closed."""

    def __init__(
        self,
        open_store: Callable[[], WebhookStore],
        poster: Poster,
        clock: Clock,
        idle_s: float | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            open_store: Called by the thread until it succeeds; may take its time.
            poster: Makes the attempts.
            clock: When is what due.
            idle_s: Longest sleep, for a database whose events others may log, too; None: until something is due.
        """
        self._open_store = open_store
        self._poster = poster
        self._clock = clock
        self._idle_s = idle_s
        self._changed = threading.Condition()
        self._is_woken = False
        self._is_stale = True
        """The webhooks are not those that were read last."""
        self._ends_at: float | None = None
        """Monotonic; set by `close`."""
        self._is_over = False
        self._under_way: dict[int, tuple[str, Attempt]] = {}
        """Delivery -> its webhook, and the attempt."""
        self._targets: dict[str, Target] = {}  # of the one thread
        self._store: WebhookStore | None = None  # of the one thread, until it is set
        self._complaint = ""
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Deliver from now on; harmless when it does."""
        with self._changed:
            if self._thread is None and self._ends_at is None:
                self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)
                self._thread.start()

    def wake(self) -> None:
        """Something was logged. From any thread; does not wait."""
        with self._changed:
            self._is_woken = True
            self._changed.notify_all()

    def reload(self) -> None:
        """There are other webhooks than before."""
        with self._changed:
            self._is_stale = True
        self.wake()

    def close(self, farewell_s: float = FAREWELL_S) -> None:
        """Send what is due, for so long at most, then cut short what is under way; it stays pending."""
        with self._changed:
            self._ends_at = time.monotonic() + farewell_s
            thread = self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join(farewell_s + 1.0)
        with self._changed:
            self._is_over = True
            attempts = [attempt for _, attempt in self._under_way.values()]
            self._changed.notify_all()
        for attempt in attempts:
            attempt.abort()
        with self._changed:
            self._changed.wait_for(lambda: not self._under_way, 1.0)

    # -- the one thread -----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_woken = False
            wait_s = self._try_round()
            with self._changed:
                if self._ends_at is not None:
                    left_s = self._ends_at - time.monotonic()
                    if left_s <= 0 or not (self._is_woken or self._under_way):
                        return
                    if not self._is_woken:
                        self._changed.wait(left_s)
                elif not self._is_woken:
                    self._clock.wait(self._changed, wait_s)

    def _try_round(self) -> float | None:
        try:
            wait_s = self._round()
        except HostlerError as error:
            if error.message != self._complaint:
                log.warning("webhooks wait: %s", error.message)
            self._complaint = error.message
            return STORAGE_PAUSE_S
        except Exception:
            log.exception("delivering to webhooks failed; it goes on in %g s", STORAGE_PAUSE_S)
            return STORAGE_PAUSE_S
        self._complaint = ""
        return wait_s

    def _round(self) -> float | None:
        """Do all there is to do now.

        Returns:
            Seconds until something is due; None: nothing is.
        """
        store = self._store
        if store is None:
            store = self._store = self._open_store()
        with self._changed:
            is_stale, self._is_stale = self._is_stale, False
        if is_stale:
            try:
                self._targets = {target.id: target for target in store.targets()}
            except BaseException:
                with self._changed:
                    self._is_stale = True
                raise
        now = self._clock.now()
        for target in list(self._targets.values()):
            self._catch_up(store, target, now)
            self._hand_out(store, target, now)
        if not self._targets:
            return None
        due = store.next_due(now)
        waits = [] if due is None else [max(0.0, due - self._clock.now())]
        if self._idle_s is not None:
            waits.append(self._idle_s)
        return min(waits, default=None)

    def _catch_up(self, store: WebhookStore, target: Target, now: float) -> None:
        while True:
            further = store.catch_up(target, now, BATCH)
            self._targets[target.id] = further
            if further.seen == target.seen:
                return
            target = further

    def _hand_out(self, store: WebhookStore, target: Target, now: float) -> None:
        with self._changed:
            mine = [delivery for delivery, (webhook, _) in self._under_way.items() if webhook == target.id]
        if len(mine) >= N_SENDERS:
            return
        for delivery in store.due(target, now, N_SENDERS - len(mine), mine):
            post = Post(target.url, target.secret, delivery.message_id, delivery.name, delivery.body)
            attempt = self._poster.attempt(post)
            with self._changed:
                if self._is_over:
                    return
                self._under_way[delivery.id] = (target.id, attempt)
            sender = threading.Thread(
                target=self._send, args=(store, target, delivery, attempt), name=f"webhook {target.id}", daemon=True
            )
            try:
                sender.start()
            except RuntimeError:  # no more threads: the next round tries again
                with self._changed:
                    del self._under_way[delivery.id]
                raise

    # -- a sender -----------------------------------------------------------------------------------------------------

    def _send(self, store: WebhookStore, target: Target, delivery: Delivery, attempt: Attempt) -> None:
        try:
            outcome = attempt.run()
            if outcome.is_delivered or not attempt.is_cut_short:
                self._record(store, target, delivery, outcome)
        except Exception:
            log.exception("the outcome of %s to %s is lost; it is sent again", delivery.name, target.id)
        finally:
            with self._changed:
                del self._under_way[delivery.id]
                self._is_woken = True
                self._changed.notify_all()

    def _record(self, store: WebhookStore, target: Target, delivery: Delivery, outcome: Outcome) -> None:
        """Note the outcome; while the database cannot be used this delivery waits, for it would be sent again at once."""
        from hostler.records.webhooks import Result

        n_attempts = delivery.n_attempts + 1
        now, retry_at = self._clock.now(), None
        if outcome.error is not None and n_attempts <= len(RETRY_DELAYS_S):
            retry_at = now + RETRY_DELAYS_S[n_attempts - 1]
        self._log(target, delivery, outcome, retry_at, now)
        while True:
            try:
                store.record(target, delivery, Result(outcome.status, outcome.error, retry_at), now)
            except HostlerError as error:
                log.warning("what became of a webhook's delivery cannot be noted yet: %s", error.message)
                with self._changed:
                    if self._is_over or self._ends_at is not None:
                        return
                    self._clock.wait(self._changed, STORAGE_PAUSE_S)
            else:
                return

    @staticmethod
    def _log(target: Target, delivery: Delivery, outcome: Outcome, retry_at: float | None, now: float) -> None:
        what, whom = f"{delivery.name} of {delivery.subject}", f"{target.id} at {site_of(target.url)}"
        if outcome.error is None:
            log.debug("%s was delivered to %s", what, whom)
        elif retry_at is None:
            log.warning(
                "%s was not delivered to %s after %d attempts and is dropped: %s",
                *(what, whom, delivery.n_attempts + 1, outcome.error),
            )
        else:
            log.info("%s was not delivered to %s, again in %g s: %s", what, whom, retry_at - now, outcome.error)
