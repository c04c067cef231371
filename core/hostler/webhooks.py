"""Webhooks as the API and the CLI see them: made, listed, deleted, tried; and their deliverer, while a server runs.

Floor 4; any thread. A command without a server may change webhooks but delivers nothing: what is pending waits for the next
server.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from hostler.delivery import Clock, Deliverer, SystemClock
from hostler.records.objects import Page, PageRequest, Webhook, WebhookDetail, WebhookTest
from hostler.signedpost import Outcome, Post, Poster
from hostler.subscription import TEST_EVENT, Subscription

if TYPE_CHECKING:
    from hostler.records.store import Records
    from hostler.records.webhooks import WebhookStore

log = logging.getLogger("hostler.webhooks")

SHARED_IDLE_S = 5.0
"""How soon events are seen that another host logs in a database that both share."""


class TrialObject(msgspec.Struct, frozen=True):
    """The body of a test event."""

    id: str
    """The webhook's."""
    created: int
    object: str = TEST_EVENT
    event: str = TEST_EVENT


class Webhooks:
    """The webhooks of one home.

    `_lock` protects `_is_serving`.
    """

    def __init__(
        self,
        records: Records,
        configured: Sequence[Subscription],
        *,
        clock: Clock | None = None,
        poster: Poster | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            records: Where they are kept.
            configured: Those of the setting `webhooks`; kept when a server starts.
            clock, poster: Replaced in tests.
        """
        self._records = records
        self._configured = tuple(configured)
        self._clock = clock or SystemClock()
        self._poster = poster or Poster()
        self._lock = threading.Lock()
        self._is_serving = False
        idle_s = None if records.database.location.is_private else SHARED_IDLE_S
        self._deliverer = Deliverer(lambda: records.webhooks, self._poster, self._clock, idle_s)

    # -- serving --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """A server serves: deliver as soon as the database is open. Call it before that."""
        with self._lock:
            self._is_serving = True

    def opened(self, store: WebhookStore) -> None:
        """The database is open, and nobody has written anything yet: a webhook that is new in the configuration gets all that
        follows. Only a server's configuration counts; a command may have been given another."""
        with self._lock:
            is_serving = self._is_serving
        if is_serving:
            store.reconcile(self._configured, int(self._clock.now()))
            if store.targets():
                self._deliverer.start()

    def grew(self, newest: int) -> None:
        """The log of events has a new one. Does not wait."""
        del newest
        self._deliverer.wake()

    def close(self) -> None:
        """Send what is due, if receivers take it at once; everything else stays pending."""
        self._deliverer.close()
        self._poster.close()

    # -- for the API ----------------------------------------------------------------------------------------------------

    def create(self, wanted: Subscription) -> Webhook:
        """Keep a webhook; it gets what happens from now on.

        Raises:
            RecordExists, InvalidRequest, StorageUnavailable
        """
        made = self._records.webhooks.create(wanted, int(self._clock.now()))
        self._changed()
        return made

    def page(self, page: PageRequest) -> Page[Webhook]:
        """Part of the list.

        Raises:
            InvalidRequest: `after` or `before` is no webhook's id.
        """
        return self._records.webhooks.page(page)

    def get(self, webhook_id: str) -> WebhookDetail:
        """One, with what it has not taken yet.

        Raises:
            WebhookNotFound
        """
        return self._records.webhooks.get(webhook_id)

    def delete(self, webhook_id: str) -> None:
        """Forget a webhook, with what it has not taken yet.

        Raises:
            WebhookNotFound, ConfiguredWebhook
        """
        self._records.webhooks.delete(webhook_id)
        self._changed()

    def test(self, webhook_id: str) -> WebhookTest:
        """Send a webhook a test event, once, and wait for the answer.

        Raises:
            WebhookNotFound
        """
        store = self._records.webhooks
        target = store.target(webhook_id)
        outcome = send_test(self._poster, target.url, target.secret, webhook_id, int(self._clock.now()))
        store.record_test(target, outcome.status, outcome.error, self._clock.now())
        return test_answer(webhook_id, target.url, outcome)

    def _changed(self) -> None:
        with self._lock:
            is_serving = self._is_serving
        if is_serving:
            self._deliverer.start()
        self._deliverer.reload()


def send_test(poster: Poster, url: str, secret: str, webhook_id: str, now: int) -> Outcome:
    """Send a signed test event to a URL."""
    body = msgspec.json.encode(TrialObject(webhook_id, now))
    return poster.attempt(Post(url, secret, f"evt_{secrets.token_hex(12)}", TEST_EVENT, body)).run()


def test_answer(webhook_id: str, url: str, outcome: Outcome) -> WebhookTest:
    """What came of it, as the API answers."""
    return WebhookTest(
        id=webhook_id,
        url=url,
        is_delivered=outcome.is_delivered,
        status=outcome.status,
        error=outcome.error,
        elapsed_ms=round(outcome.elapsed_s * 1000),
        answer=outcome.excerpt,
    )
