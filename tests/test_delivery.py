"""Deliveries to real receivers out of a real database, by a clock that the tests turn."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostler.delivery import N_SENDERS, RETRY_DELAYS_S
from hostler.errors import StorageUnavailable
from hostler.events import EventBus
from hostler.records.objects import PageRequest, WebhookDetail
from hostler.records.store import Records
from hostler.records.webhooks import MAX_PENDING
from hostler.signedpost import Poster
from hostler.subscription import Subscription
from hostler.webhooks import Webhooks
from support.receiver import Received, Receiver
from support.server import eventually

DEADLINE_S = 30.0
HOUR_S = 3600.0
ALL = PageRequest(order="asc")
STARTED = ("model.starting", "model.running")


class TurnedClock:
    """Stands still until a test turns it. What waits is woken by a turn, and by nothing else but its condition."""

    def __init__(self) -> None:
        self._now = time.time()
        self._seen = threading.local()
        self._waiting: set[threading.Condition] = set()
        self.waits: list[float | None] = []
        """How long was asked for, in order."""

    def now(self) -> float:
        self._seen.now = self._now
        return self._now

    def wait(self, condition: threading.Condition, timeout_s: float | None) -> None:
        self.waits.append(timeout_s)
        self._waiting.add(condition)
        is_due = timeout_s is not None and timeout_s <= 0  # it was turned while the caller looked what is due
        if not is_due and self._seen.now == self._now:  # else it was turned since the caller reckoned how long to wait
            condition.wait(DEADLINE_S * 4)

    def turn(self, seconds: float) -> None:
        self._now += seconds
        for condition in list(self._waiting):
            with condition:
                condition.notify_all()


class Host:
    """Records, events and webhooks as a runtime wires them."""

    def __init__(self, home: Path, clock: TurnedClock, *configured: Subscription, timeout_s: float = 60) -> None:
        self.records = Records(home)
        self.events = EventBus(self.records)
        self.webhooks = Webhooks(self.records, configured, clock=clock, poster=Poster(timeout_s))
        self.records.on_open.append(self.webhooks.opened)
        self.records.on_event += [self.events.grew, self.webhooks.grew]

    def tell(self, subject: str, *names: str) -> None:
        for name in names:
            self.records.events.publish(name, subject, f'{{"id":"{subject}","event":"{name}"}}'.encode())

    def close(self) -> None:
        self.events.close()
        self.webhooks.close()
        self.records.close()


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def make_host(tmp_path: Path, clock: TurnedClock) -> Iterator[Callable[..., Host]]:
    """Makes hosts on one home; each serves until it or the test ends."""
    made: list[Host] = []

    def make(*configured: Subscription, **arguments: float) -> Host:
        host = Host(tmp_path / "home", clock, *configured, **arguments)
        host.webhooks.start()
        host.records.open()
        made.append(host)
        return host

    yield make
    for host in made:
        host.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def pending(host: Host) -> list[int]:
    return [one.n_pending for one in host.webhooks.page(ALL).data]


def only(host: Host) -> WebhookDetail:
    (one,) = host.webhooks.page(ALL).data
    return host.webhooks.get(one.id)


# -- what goes out ----------------------------------------------------------------------------------------------------


def test_a_webhook_gets_the_events_it_wants_in_their_order_each_once(
    make_host: Callable[..., Host], receiver: Receiver
) -> None:
    host = make_host(Subscription(receiver.url, "secret", ("model.*",)))

    host.tell("a", "model.downloading", "thread.created", "model.downloaded", *STARTED)

    received = receiver.wait_for(4)
    assert [request.event for request in received] == ["model.downloading", "model.downloaded", *STARTED]
    assert [request.json["event"] for request in received] == receiver.events
    assert len({request.id for request in received}) == 4
    assert received[0].verify(b"secret")["id"] == "a"
    eventually(lambda: only(host).n_delivered == 4, "all are noted")
    one = only(host)
    assert (one.n_pending, one.n_dropped, one.last_status, one.last_error) == (0, 0, 204, None)
    assert one.last_delivery_at is not None


def test_a_webhook_gets_nothing_of_what_was_before_it(make_host: Callable[..., Host], receiver: Receiver) -> None:
    host = make_host()
    host.tell("a", "model.downloading")
    host.webhooks.create(Subscription(receiver.url))

    host.tell("a", "model.downloaded")

    receiver.wait_for(1)
    assert receiver.events == ["model.downloaded"]


def test_every_webhook_gets_its_own(make_host: Callable[..., Host], receiver: Receiver) -> None:
    host = make_host(
        Subscription(f"{receiver.url}both", "", ("thread.*", "model.*")),
        Subscription(f"{receiver.url}threads", "", ("thread.*",)),
    )

    host.tell("t", "thread.created")
    host.tell("a", "model.starting")

    receiver.wait_for(3)
    assert sorted((request.path, request.event) for request in receiver.got) == [
        ("/both", "model.starting"),
        ("/both", "thread.created"),
        ("/threads", "thread.created"),
    ]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_failed_delivery_is_repeated_after_each_delay_under_the_same_id_and_then_dropped(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock, caplog: pytest.LogCaptureFixture
) -> None:
    receiver.manners = lambda request: 500
    host = make_host(Subscription(f"{receiver.url}services/TOKEN?key=TOKEN", "TOKEN"))
    caplog.set_level("DEBUG", logger="hostler")

    host.tell("a", "model.starting")
    receiver.wait_for(1)
    for n_attempts, delay_s in enumerate(RETRY_DELAYS_S, 1):
        eventually(lambda n=n_attempts: [one.n_attempts for one in only(host).pending] == [n], "the failure is noted")
        waiting = only(host).pending[0]
        assert waiting.next_attempt_at == int(clock.now() + delay_s)
        assert waiting.last_error == "the receiver answered 500 Internal Server Error"
        clock.turn(delay_s - 1)
        clock.turn(0)
        assert len(receiver.got) == n_attempts
        clock.turn(1)
        receiver.wait_for(n_attempts + 1)

    eventually(lambda: only(host).n_dropped == 1, "it is given up")
    clock.turn(HOUR_S * 24)
    assert RETRY_DELAYS_S == (5, 30, 120, 600, 3600)
    assert len(receiver.got) == 6
    assert len({request.id for request in receiver.got}) == 1
    one = only(host)
    assert (one.n_pending, one.n_delivered, one.last_status) == (0, 0, 500)
    assert "model.starting of a was not delivered" in caplog.text
    assert f"{one.id} at {receiver.url.rstrip('/')} after 6 attempts and is dropped" in caplog.text
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("hostler")]
    assert not [line for line in ours if "TOKEN" in line]


def test_a_failing_delivery_holds_back_later_ones_of_its_subject_and_url_and_no_others(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock
) -> None:
    is_down = threading.Event()
    is_down.set()

    def manners(request: Received) -> int:
        return 503 if is_down.is_set() and request.path == "/" and request.json["id"] == "a" else 204

    receiver.manners = manners
    host = make_host(Subscription(receiver.url), Subscription(f"{receiver.url}other"))

    host.tell("a", *STARTED)
    host.tell("b", *STARTED)
    received = receiver.wait_for(7)
    eventually(lambda: pending(host) == [2, 0], "only those of one model and URL are pending")

    def of(path: str, model: str) -> list[str]:
        return [one.event for one in receiver.got if (one.path, one.json["id"]) == (path, model)]

    assert len(received) == 7
    assert of("/", "a") == ["model.starting"]
    assert of("/", "b") == of("/other", "a") == of("/other", "b") == list(STARTED)
    assert [one.next_attempt_at is None for one in host.webhooks.get(host.webhooks.page(ALL).data[0].id).pending] == [
        False,
        True,
    ]
    is_down.clear()
    clock.turn(RETRY_DELAYS_S[0])
    receiver.wait_for(9)
    assert of("/", "a") == ["model.starting", "model.starting", "model.running"]


def test_what_waits_behind_a_dropped_delivery_is_next(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock
) -> None:
    receiver.manners = lambda request: 500 if request.event == "model.starting" else 204
    host = make_host(Subscription(receiver.url))

    host.tell("a", *STARTED)
    for count in itertools.count(1):
        receiver.wait_for(count)
        if count > len(RETRY_DELAYS_S):
            break
        eventually(lambda n=count: only(host).pending[0].n_attempts == n, "the failure is noted")
        clock.turn(HOUR_S)

    received = receiver.wait_for(7)
    assert [request.event for request in received] == ["model.starting"] * 6 + ["model.running"]


def test_a_slow_receiver_holds_back_no_other(make_host: Callable[..., Host], receiver: Receiver) -> None:
    receiver.manners = lambda request: "hang" if request.path == "/slow" else 204
    host = make_host(Subscription(f"{receiver.url}slow"), Subscription(f"{receiver.url}quick"))

    for number in range(20):
        host.tell(f"model {number}", *STARTED)

    eventually(lambda: [one.path for one in list(receiver.got)].count("/quick") == 40, "the quick one has all")
    assert [one.path for one in list(receiver.got)].count("/slow") == N_SENDERS
    n_senders = [thread.name for thread in threading.enumerate() if thread.name.startswith("webhook webhook_")]
    assert len(n_senders) <= 2 * N_SENDERS
    receiver.go_on.set()
    eventually(lambda: pending(host) == [0, 0], "the slow one has all, too")


def test_a_webhook_that_is_deleted_gets_nothing_more(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock
) -> None:
    receiver.manners = lambda request: 500
    host = make_host()
    made = host.webhooks.create(Subscription(receiver.url))
    host.tell("a", *STARTED)
    receiver.wait_for(1)
    eventually(lambda: only(host).pending[0].n_attempts == 1, "the failure is noted")

    host.webhooks.delete(made.id)
    clock.turn(HOUR_S)
    host.tell("a", "model.stopping")
    other = host.webhooks.create(Subscription(f"{receiver.url}other"))
    host.tell("a", "model.stopped")

    received = receiver.wait_for(2)
    assert [(one.path, one.event) for one in received] == [("/", "model.starting"), ("/other", "model.stopped")]
    assert [one.id for one in host.webhooks.page(ALL).data] == [other.id]


def test_a_database_that_cannot_be_used_delays_deliveries_and_loses_none(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hostler.records.webhooks import WebhookStore

    host = make_host(Subscription(receiver.url))
    is_locked = threading.Event()
    is_locked.set()
    record = WebhookStore.record

    def refuse(self: WebhookStore, *arguments: object) -> None:
        if is_locked.is_set():
            raise StorageUnavailable("the file is locked")
        record(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(WebhookStore, "record", refuse)
    host.tell("a", *STARTED)
    receiver.wait_for(1)
    eventually(lambda: 5.0 in clock.waits, "the sender waits for the database")

    is_locked.clear()
    clock.turn(5)

    received = receiver.wait_for(2)
    assert [one.event for one in received] == list(STARTED)
    eventually(lambda: only(host).n_delivered == 2, "both are noted")


# -- idle -------------------------------------------------------------------------------------------------------------


def test_without_a_webhook_there_is_no_thread_and_with_one_it_sleeps_until_something_happens(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock
) -> None:
    host = make_host()
    host.tell("a", *STARTED)
    assert not [thread for thread in threading.enumerate() if thread.name == "webhooks"]

    host.webhooks.create(Subscription(receiver.url))
    eventually(lambda: clock.waits, "the thread has nothing to do")

    assert set(clock.waits) == {None}


# -- restarts ---------------------------------------------------------------------------------------------------------


def test_what_is_pending_is_delivered_after_a_restart_under_the_same_id_and_delay(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock
) -> None:
    receiver.manners = lambda request: 500
    first = make_host(Subscription(receiver.url))
    first.tell("a", *STARTED)
    receiver.wait_for(1)
    eventually(lambda: only(first).pending[0].n_attempts == 1, "the failure is noted")
    first.close()
    receiver.manners = lambda request: 204

    second = make_host(Subscription(receiver.url))
    assert pending(second) == [2]
    assert len(receiver.got) == 1
    clock.turn(RETRY_DELAYS_S[0])

    received = receiver.wait_for(3)
    assert [one.event for one in received] == ["model.starting", "model.starting", "model.running"]
    assert received[0].id == received[1].id != received[2].id


def test_what_happened_without_a_server_is_delivered_by_the_next(
    tmp_path: Path, make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock
) -> None:
    """A command changes models, too; it has no time to deliver, and may not know the server's configuration."""
    make_host(Subscription(receiver.url)).close()
    command = Host(tmp_path / "home", clock)
    command.tell("a", "model.registered")
    command.close()
    assert not receiver.got

    make_host(Subscription(receiver.url))

    assert [one.event for one in receiver.wait_for(1)] == ["model.registered"]


def test_an_end_sends_what_is_due_and_does_not_wait_for_a_receiver_that_hangs(
    make_host: Callable[..., Host], receiver: Receiver
) -> None:
    receiver.manners = lambda request: "hang" if request.path == "/hangs" else 204
    host = make_host(Subscription(f"{receiver.url}hangs"), Subscription(receiver.url), timeout_s=3600)
    host.tell("a", "model.stopping")
    receiver.wait_for(2)

    host.tell("a", "model.stopped")
    host.close()

    assert [one.event for one in receiver.got if one.path == "/"] == ["model.stopping", "model.stopped"]
    receiver.manners = lambda request: 204
    again = make_host(Subscription(f"{receiver.url}hangs"), Subscription(receiver.url))
    eventually(lambda: pending(again) == [0, 0], "what hung is delivered")
    hung = [one for one in receiver.got if one.path == "/hangs"]
    assert [one.event for one in hung] == ["model.stopping", "model.stopping", "model.stopped"]
    assert hung[0].id == hung[1].id


# -- the configuration ------------------------------------------------------------------------------------------------


def test_a_webhook_that_leaves_the_configuration_goes_and_one_that_changes_keeps_what_is_pending(
    make_host: Callable[..., Host], receiver: Receiver, clock: TurnedClock
) -> None:
    receiver.manners = lambda request: 500
    gone, kept = Subscription(f"{receiver.url}gone"), Subscription(f"{receiver.url}kept", "old")
    first = make_host(gone, kept)
    made = first.webhooks.create(Subscription(f"{receiver.url}api"))
    first.tell("a", "model.starting")
    receiver.wait_for(3)
    ids = {one.url: one.id for one in first.webhooks.page(ALL).data}
    first.close()
    receiver.got.clear()
    receiver.manners = lambda request: 204

    second = make_host(Subscription(kept.url, "new", ("thread.*",)))

    found = {one.url: one for one in second.webhooks.page(ALL).data}
    assert set(found) == {kept.url, made.url}
    assert (found[kept.url].id, found[kept.url].events, found[kept.url].source) == (ids[kept.url], ["thread.*"], "config")
    assert found[made.url].source == "api"
    clock.turn(HOUR_S)
    received = receiver.wait_for(2)
    (request,) = [one for one in received if one.path == "/kept"]
    assert request.event == "model.starting"
    request.verify(b"new")


def test_more_than_a_webhook_may_have_pending_drops_the_oldest(
    make_host: Callable[..., Host], receiver: Receiver, monkeypatch: pytest.MonkeyPatch, clock: TurnedClock
) -> None:
    monkeypatch.setattr("hostler.records.webhooks.MAX_PENDING", 3)
    receiver.manners = lambda request: 500
    host = make_host(Subscription(receiver.url))
    host.tell("a", "model.downloading")
    receiver.wait_for(1)
    eventually(lambda: only(host).pending[0].n_attempts == 1, "the failure is noted")
    receiver.manners = lambda request: 204

    host.tell("a", "model.downloaded", "model.starting", "model.running", "model.stopping")

    eventually(lambda: only(host).n_dropped == 2 or only(host).n_delivered, "the oldest are dropped")
    eventually(lambda: not only(host).n_pending, "the others are delivered")
    assert MAX_PENDING == 10_000
    assert receiver.events[-1] == "model.stopping"
    assert only(host).n_dropped + only(host).n_delivered == 5
    assert only(host).n_dropped >= 1
