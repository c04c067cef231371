"""Listeners of plugins over a real log: what they hear, and what one that is slow, stuck or broken costs."""

from __future__ import annotations

import itertools
import json
import logging
import queue
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import hostler.listeners
from hostler.listeners import Listeners
from hostler.listening import Event, ListenerSpec
from hostler.records.store import Records
from support.server import eventually

MODELS = ("model.*",)
Hear = Callable[..., tuple[str, ListenerSpec]]
_names = itertools.count()


@pytest.fixture
def records(tmp_path: Path) -> Iterator[Records]:
    made = Records(tmp_path / "home")
    yield made
    made.close()


@pytest.fixture
def listeners(records: Records) -> Iterator[Listeners]:
    made = Listeners(records)
    records.on_open.append(made.opened)
    records.on_event.append(made.grew)
    yield made
    made.close()
    eventually(lambda: not threads(), "the threads of listeners have ended")


@pytest.fixture
def hear(monkeypatch: pytest.MonkeyPatch) -> Hear:
    """Makes a function one that a plugin's module has."""

    def hear(function: Callable[[Event], Any], *events: str, plugin: str = "toy") -> tuple[str, ListenerSpec]:
        name = f"made_up_listener_{next(_names)}"
        module = types.ModuleType(name)
        module.__dict__["told"] = function
        monkeypatch.setitem(sys.modules, name, module)
        return plugin, ListenerSpec(f"{name}:told", events or MODELS)

    return hear


def publish(records: Records, *names: str) -> None:
    for name in names:
        records.events.publish(name, "it", json.dumps({"event": name}).encode())


def take(heard: queue.Queue[Event], count: int) -> list[str]:
    return [heard.get(timeout=30).name for _ in range(count)]


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("listener")]


def test_a_listener_hears_each_event_it_wants_once_and_in_order(records: Records, listeners: Listeners, hear: Hear) -> None:
    heard: queue.Queue[Event] = queue.Queue()
    listeners.start([hear(heard.put, "model.*", "thread.created")])

    publish(records, "model.running", "thread.created", "thread.deleted", "model.stopped")

    events = [heard.get(timeout=30) for _ in range(3)]
    assert [event.name for event in events] == ["model.running", "thread.created", "model.stopped"]
    assert [event.id for event in events] == sorted(event.id for event in events)
    assert events[0].subject == "it"
    assert events[0].data == {"event": "model.running"}
    listeners.close()
    assert heard.empty()


def test_events_of_earlier_servers_are_not_told(records: Records, listeners: Listeners, hear: Hear, tmp_path: Path) -> None:
    earlier = Records(tmp_path / "home")
    publish(earlier, "model.running", "model.stopped")
    earlier.close()
    heard: queue.Queue[Event] = queue.Queue()
    listeners.start([hear(heard.put)])

    publish(records, "model.deleted")

    assert take(heard, 1) == ["model.deleted"]


def test_events_of_the_first_transaction_after_the_start_are_all_told(
    records: Records, listeners: Listeners, hear: Hear
) -> None:
    heard: queue.Queue[Event] = queue.Queue()
    listeners.start([hear(heard.put, "thread.*", "message.*")])

    with records.events._database.write() as connection:
        for name in ("thread.created", "message.created", "message.created"):
            records.events.append(connection, name, "t", b"{}")

    assert take(heard, 3) == ["thread.created", "message.created", "message.created"]


def test_without_a_server_nobody_is_told(records: Records, listeners: Listeners, hear: Hear) -> None:
    listeners.use([hear(lambda event: pytest.fail("told"))])

    publish(records, "model.running")

    assert listeners.views() == []


def test_a_host_in_which_nothing_happens_has_no_thread_and_opens_nothing(
    records: Records, listeners: Listeners, hear: Hear, tmp_path: Path
) -> None:
    listeners.start([hear(print)])

    assert threads() == []
    assert not (tmp_path / "home").exists()


def test_a_listener_that_raises_is_named_and_told_the_next(
    records: Records, listeners: Listeners, hear: Hear, caplog: pytest.LogCaptureFixture
) -> None:
    heard: queue.Queue[Event] = queue.Queue()

    def fail(event: Event) -> None:
        heard.put(event)
        raise ValueError("not this one") if event.name != "model.deleted" else SystemExit("nor this")

    listeners.start([hear(fail, plugin="clumsy")])

    publish(records, "model.running", "model.stopped", "model.deleted", "model.updated")

    assert take(heard, 4) == ["model.running", "model.stopped", "model.deleted", "model.updated"]
    eventually(lambda: listeners.views()[0].n_failed == 4, "all four have failed")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert errors[0].getMessage().startswith("plugin 'clumsy': made_up_listener_")
    assert "raised ValueError: not this one on event" in errors[0].getMessage()
    tracebacks = [bool(record.exc_info and record.exc_info[0]) for record in errors]
    assert tracebacks == [True, False, True, True], "a traceback once for each kind of failure in a row"
    assert listeners.views()[0].last_error == "ValueError: not this one"


def test_a_listener_that_cannot_be_imported_is_named_and_the_others_hear(
    records: Records, listeners: Listeners, hear: Hear, caplog: pytest.LogCaptureFixture
) -> None:
    heard: queue.Queue[Event] = queue.Queue()
    lost = ("lost", ListenerSpec("there_is_no_such_module:told", MODELS))
    listeners.start([lost, hear(heard.put)])

    publish(records, "model.running", "model.stopped")

    assert take(heard, 2) == ["model.running", "model.stopped"]
    eventually(lambda: listeners.views()[0].last_error, "the loss is noted")
    assert "ModuleNotFoundError" in str(listeners.views()[0].last_error)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert errors == ["plugin 'lost': there_is_no_such_module:told cannot be imported; it hears of nothing"]


def test_a_listener_that_hangs_costs_the_others_nothing_and_is_named(
    records: Records, listeners: Listeners, hear: Hear, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostler.listeners, "SLOW_S", 0.05)
    monkeypatch.setattr(hostler.listeners, "CLOSE_TIMEOUT_S", 0.2)
    heard: queue.Queue[Event] = queue.Queue()
    begun, release = threading.Event(), threading.Event()

    def hang(event: Event) -> None:
        begun.set()
        release.wait()

    listeners.start([hear(hang, plugin="stuck"), hear(heard.put)])
    publish(records, "model.running")
    assert begun.wait(30)
    eventually(lambda: (listeners.views()[0].busy_s or 0) > 0.05, "it is busy")

    publish(records, "model.stopped", "model.deleted")

    assert take(heard, 3) == ["model.running", "model.stopped", "model.deleted"]
    listeners.close()
    warnings = [record.getMessage() for record in caplog.records if record.name == "hostler.listeners"]
    assert len(warnings) == 2, "named once for an event, and once at the end"
    assert warnings[0].startswith("plugin 'stuck': made_up_listener_")
    assert "(model.running) for 0 s; the events behind it wait" in warnings[0]
    assert warnings[1].endswith("(model.running) and is left behind")
    release.set()


def test_at_the_end_what_is_logged_is_still_told(records: Records, listeners: Listeners, hear: Hear) -> None:
    heard: list[str] = []
    first = threading.Event()

    def slowly(event: Event) -> None:
        first.wait(30)
        heard.append(event.name)

    listeners.start([hear(slowly)])
    publish(records, "model.stopping", "model.stopped")

    first.set()
    listeners.close()

    assert heard == ["model.stopping", "model.stopped"]
    assert threads() == []


def test_a_listener_that_was_too_slow_is_told_what_is_left_and_named(
    records: Records, listeners: Listeners, hear: Hear, caplog: pytest.LogCaptureFixture
) -> None:
    heard: queue.Queue[Event] = queue.Queue()
    release = threading.Event()

    def slowly(event: Event) -> None:
        heard.put(event)
        release.wait(30)

    listeners.start([hear(slowly, "model.*", plugin="snail")])
    publish(records, "model.running")
    first = heard.get(timeout=30).id
    publish(records, "model.updated", "model.updated", "model.updated", "model.stopped")
    records.events.prune(1)

    release.set()

    assert take(heard, 1) == ["model.stopped"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].endswith(f"was too slow: the events {first + 1} to {first + 3} are gone")


def test_other_listeners_can_take_the_place_and_those_that_stay_miss_nothing(
    records: Records, listeners: Listeners, hear: Hear
) -> None:
    stays: queue.Queue[Event] = queue.Queue()
    goes: queue.Queue[Event] = queue.Queue()
    comes: queue.Queue[Event] = queue.Queue()
    staying, going, coming = hear(stays.put, "model.*"), hear(goes.put, "model.*"), hear(comes.put, "model.*")
    listeners.start([staying, going])
    publish(records, "model.running")
    assert take(stays, 1) == take(goes, 1) == ["model.running"]

    listeners.use([staying, coming])
    publish(records, "model.stopped")

    assert take(stays, 1) == take(comes, 1) == ["model.stopped"]
    assert goes.empty()
    eventually(lambda: len(threads()) == 2, "the thread of the one that is gone has ended")


def test_a_listener_of_a_plugin_that_has_changed_goes_on_with_what_was_not_told(
    records: Records, listeners: Listeners, hear: Hear, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, release = threading.Event(), threading.Event()

    def old(event: Event) -> None:
        begun.set()
        release.wait(30)

    plugin, spec = hear(old, "model.*")
    listeners.start([(plugin, spec)])
    publish(records, "model.running", "model.stopped", "model.deleted")
    assert begun.wait(30)
    heard: queue.Queue[Event] = queue.Queue()
    monkeypatch.setitem(sys.modules[spec.listener.partition(":")[0]].__dict__, "told", heard.put)

    listeners.use([(plugin, spec)], changed=[plugin])
    release.set()

    assert take(heard, 3) == ["model.running", "model.stopped", "model.deleted"], "what was going on is told once more"
