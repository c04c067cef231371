"""The event bus over a real log: what model events say, who reads them, and what a database that is away costs."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.scripted_runtime import manifest, view
from hostler.api import shapes
from hostler.domain import Lifecycle
from hostler.errors import StorageUnavailable
from hostler.events import EventBus, Follower, Gap
from hostler.records.events import EventLog, LoggedEvent
from hostler.records.store import Records
from hostler.subscription import EVENT_NAMES, MODEL_EVENTS
from support.server import eventually

ALL = ("*",)
POLL_S = 0.02
DOWNLOADED, STARTING, RUNNING = Lifecycle.DOWNLOADED, Lifecycle.STARTING, Lifecycle.RUNNING


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def bus(records: Records) -> Iterator[EventBus]:
    made = EventBus(records)
    records.on_event.append(made.grew)
    yield made
    made.close()


def publish(records: Records, *names: str, subject: str = "s") -> int:
    for name in names:
        records.events.publish(name, subject, b"{}")
    return records.events.last_id()


def take(follower: Follower, count: int) -> list[LoggedEvent]:
    found: list[LoggedEvent] = []
    for event in follower.events(POLL_S):
        if event is not None:
            found.append(event)
        if len(found) == count:
            return found
    raise AssertionError(f"it ended after {found}")


# -- what they say ----------------------------------------------------------------------------------------------------


def test_a_model_event_has_the_seeds_four_fields_and_hostlers_own(bus: EventBus) -> None:
    follower = bus.follow(None, ALL)

    bus.model("running", manifest(), STARTING, RUNNING)

    (event,) = take(follower, 1)
    follower.close()
    assert (event.name, event.subject) == ("model.running", "zephyr-7b")
    assert json.loads(event.body) == {
        "id": "zephyr-7b",
        "object": "model",
        "created": 1700560000,
        "owned_by": "TheBloke",
        "state": "running",
        "lifecycle": "running",
        "previous_lifecycle": "starting",
        "event": "model.running",
    }


def test_a_deletion_says_so_and_a_failure_says_why(bus: EventBus) -> None:
    follower = bus.follow(None, ALL)

    bus.model("start_failed", manifest(), STARTING, DOWNLOADED, error="no memory")
    bus.model("deleted", manifest(), DOWNLOADED, Lifecycle.NOT_DOWNLOADED)

    failed, deleted = (json.loads(event.body) for event in take(follower, 2))
    follower.close()
    assert (failed["event"], failed["lifecycle"], failed["last_error"]) == ("model.start_failed", "downloaded", "no memory")
    assert "deleted" not in failed
    assert (deleted["event"], deleted["deleted"], deleted["state"]) == ("model.deleted", True, "not_downloaded")
    assert "last_error" not in deleted


@pytest.mark.parametrize("lifecycle", list(Lifecycle))
@pytest.mark.parametrize("resting", [Lifecycle.DOWNLOADED, Lifecycle.STOPPED])
def test_the_state_of_an_event_is_what_get_model_says(bus: EventBus, lifecycle: Lifecycle, resting: Lifecycle) -> None:
    follower = bus.follow(None, ALL)

    bus.model("updated", manifest(), lifecycle, lifecycle, resting=resting)

    (event,) = take(follower, 1)
    follower.close()
    assert json.loads(event.body)["state"] == shapes.get_item(view(lifecycle=lifecycle, resting=resting)).state


def test_every_lifecycle_but_the_first_has_an_event_of_its_name() -> None:
    assert {f"model.{lifecycle}" for lifecycle in Lifecycle} - set(MODEL_EVENTS) == {"model.not_downloaded"}
    assert len(set(EVENT_NAMES)) == len(EVENT_NAMES) == 20


# -- following --------------------------------------------------------------------------------------------------------


def test_a_follower_gets_what_comes_from_now_on_or_goes_on_behind_an_id(records: Records, bus: EventBus) -> None:
    second = publish(records, "model.starting", "model.running")
    new, back = bus.follow(None, ALL), bus.follow(second - 1, ALL)

    third = publish(records, "model.stopping")

    assert [event.id for event in take(new, 1)] == [third]
    assert [event.id for event in take(back, 2)] == [second, third]
    assert new.gap is back.gap is None
    new.close()
    back.close()


def test_a_follower_gets_only_the_events_it_wants_and_none_in_a_silence(records: Records, bus: EventBus) -> None:
    follower = bus.follow(None, ("thread.*",))
    publish(records, "model.starting", "thread.created")
    events = follower.events(POLL_S)

    assert next(events).name == "thread.created"  # type: ignore[union-attr]
    assert next(events) is None
    follower.close()


def test_a_follower_is_woken_by_an_event_and_need_not_poll(records: Records, bus: EventBus) -> None:
    follower = bus.follow(None, ALL)
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(next(follower.events(3600))))
    reader.start()

    publish(records, "model.starting")
    reader.join(30)

    follower.close()
    assert [event.name for event in found] == ["model.starting"]


def test_an_id_older_than_what_is_kept_gives_a_gap_and_then_all_there_is(records: Records, bus: EventBus) -> None:
    first = publish(records, "model.starting")
    last = publish(records, *["model.updated"] * 9)
    records.events.prune(4)

    gone, just_there = bus.follow(first, ALL), bus.follow(last - 4, ALL)

    assert gone.gap == Gap(last_event_id=first, first_kept_id=last - 3)
    assert just_there.gap is None
    assert (
        [event.id for event in take(gone, 4)] == [event.id for event in take(just_there, 4)] == list(range(last - 3, last + 1))
    )
    gone.close()
    just_there.close()


def test_an_id_of_another_database_gives_a_gap_instead_of_silence(records: Records, bus: EventBus) -> None:
    last = publish(records, "model.starting")

    follower = bus.follow(last + 1000, ALL)

    assert follower.gap is not None
    assert take(follower, 1)
    assert take(bus.follow(0, ALL), last)
    follower.close()
    bus.leave()


# -- pruning ----------------------------------------------------------------------------------------------------------


def test_the_log_is_cut_as_it_grows_but_never_what_a_webhook_has_not_looked_at(
    records: Records, bus: EventBus, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hostler.subscription import Subscription

    monkeypatch.setattr("hostler.events.KEPT", 5)
    monkeypatch.setattr("hostler.events.PRUNE_EVERY", 10)
    start = publish(records, "model.starting")
    webhook = records.webhooks.create(Subscription("http://127.0.0.1:9/"), 0)

    publish(records, *["model.updated"] * 30)
    eventually(lambda: records.events.after(0, 1)[0].id == start + 1, "the log is cut up to the webhook")
    records.webhooks.delete(webhook.id)
    publish(records, *["model.updated"] * 10)

    eventually(lambda: len(records.events.after(0, 1000)) <= 15, "the log is cut")


# -- a database that is away ------------------------------------------------------------------------------------------


def test_model_events_wait_for_a_database_that_cannot_be_used_and_come_in_their_order(
    records: Records, bus: EventBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hostler.events.RETRY_S", 0.01)
    publishing, tries = EventLog.publish, []
    follower = bus.follow(None, ALL)

    def refuse_thrice(self: EventLog, *event: Any) -> None:
        tries.append(event)
        if len(tries) <= 3:
            raise StorageUnavailable("the file is locked")
        publishing(self, *event)

    monkeypatch.setattr(EventLog, "publish", refuse_thrice)
    bus.model("starting", manifest(), DOWNLOADED, STARTING)
    bus.model("running", manifest(), STARTING, RUNNING)

    assert [event.name for event in take(follower, 2)] == ["model.starting", "model.running"]
    follower.close()
    assert caplog.text.count("events of models wait: the file is locked") == 1


def test_more_events_than_can_wait_lose_the_oldest_and_say_so(
    records: Records, bus: EventBus, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("hostler.events.MAX_QUEUED", 2)
    publishing, may_write, is_in = EventLog.publish, threading.Event(), threading.Event()
    follower = bus.follow(None, ALL)

    def wait_first(self: EventLog, *event: Any) -> None:
        is_in.set()
        assert may_write.wait(30)
        publishing(self, *event)

    monkeypatch.setattr(EventLog, "publish", wait_first)
    for number in range(5):
        bus.model("updated", manifest(f"m{number}"), DOWNLOADED, DOWNLOADED)
        assert is_in.wait(30)
    may_write.set()

    assert [event.subject for event in take(follower, 2)] == ["m0", "m4"]
    follower.close()
    assert "3 events of models are lost" in caplog.text


# -- the end ----------------------------------------------------------------------------------------------------------


def test_close_writes_what_is_queued_and_lets_followers_read_it_to_the_end(records: Records, bus: EventBus) -> None:
    follower = bus.follow(None, ALL)
    found: list[str] = []

    def read() -> None:
        found.extend(event.name for event in follower.events(POLL_S) if event is not None)
        follower.close()

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(50):
        bus.model("updated", manifest(), DOWNLOADED, DOWNLOADED)
    bus.model("stopped", manifest(), Lifecycle.STOPPING, Lifecycle.STOPPED)

    bus.close()

    assert not reader.is_alive() or not reader.join(30)
    assert found == ["model.updated"] * 50 + ["model.stopped"]
    bus.model("updated", manifest(), DOWNLOADED, DOWNLOADED)
    assert records.events.after(0, 1000)[-1].name == "model.stopped"


def test_a_bus_that_nobody_used_has_no_thread_and_opens_nothing(tmp_path: Path) -> None:
    records = Records(tmp_path / "home")
    bus = EventBus(records)

    bus.close()
    records.close()

    assert not (tmp_path / "home").exists()
