"""Webhooks and their deliveries in the database; what a sender does with them is in tests/test_delivery.py."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path

import pytest

from hostler.errors import ConfiguredWebhook, InvalidRequest, RecordExists, WebhookNotFound
from hostler.records.objects import PageRequest
from hostler.records.store import Records
from hostler.records.webhooks import MAX_WEBHOOKS, SEEN_EVERY, Delivery, Result, Target, WebhookStore
from hostler.subscription import Subscription

URL = "http://127.0.0.1:9000/hook"
ALL = PageRequest(limit=100, order="asc")
NOW = 1_700_000_000.0


def publish(records: Records, subject: str, *names: str) -> None:
    for name in names:
        records.events.publish(name, subject, b'{"id":"x"}')


def caught_up(store: WebhookStore, target: Target) -> Target:
    while True:
        further = store.catch_up(target, NOW, 3)
        if further.seen == target.seen:
            return further
        target = further


def made(records: Records, **fields) -> Target:
    """A webhook that has its deliveries of `model.starting` and `model.running` of a and b."""
    store = records.webhooks
    created = store.create(Subscription(URL, **fields), int(NOW))
    for subject in ("a", "b"):
        publish(records, subject, "model.starting", "thread.created", "model.running")
    return caught_up(store, store.target(created.id))


def names(due: list[Delivery]) -> list[tuple[str, str]]:
    return [(one.subject, one.name) for one in due]


# -- kept -------------------------------------------------------------------------------------------------------------


def test_a_webhook_is_kept_listed_and_deleted_and_its_secret_is_masked(records: Records) -> None:
    store = records.webhooks
    first = store.create(Subscription(URL, "sesame", ("thread.*", "model.*")), int(NOW))
    second = store.create(Subscription("http://other/"), int(NOW))

    assert first.id.startswith("webhook_")
    assert (first.url, first.secret, first.events, first.source) == (URL, "***", ["thread.*", "model.*"], "api")
    assert (first.n_pending, first.n_delivered, first.n_dropped, first.last_status) == (0, 0, 0, None)
    assert [one.id for one in store.page(ALL).data] == [first.id, second.id]
    assert [one.id for one in store.page(PageRequest(limit=1)).data] == [second.id]
    assert store.target(first.id).secret == "sesame"

    store.delete(first.id)

    assert [one.id for one in store.page(ALL).data] == [second.id]
    for ask in (store.get, store.delete, store.target):
        with pytest.raises(WebhookNotFound, match=f"The webhook {first.id} does not exist"):
            ask(first.id)


def test_a_url_has_one_webhook(records: Records) -> None:
    records.webhooks.create(Subscription(URL), int(NOW))

    with pytest.raises(RecordExists, match="has a webhook already") as caught:
        records.webhooks.create(Subscription(URL, "other"), int(NOW))

    assert caught.value.param == "url"


def test_there_is_a_limit_of_webhooks(records: Records) -> None:
    for number in range(MAX_WEBHOOKS):
        records.webhooks.create(Subscription(f"{URL}{number}"), int(NOW))

    with pytest.raises(InvalidRequest, match=f"there are {MAX_WEBHOOKS} webhooks"):
        records.webhooks.create(Subscription(URL), int(NOW))


def test_homes_that_share_a_database_have_each_its_own(tmp_path: Path, empty_postgresql: str) -> None:
    with (
        closing(Records(tmp_path / "here", empty_postgresql)) as here,
        closing(Records(tmp_path / "there", empty_postgresql)) as there,
    ):
        mine, theirs = made(here), made(there)

        assert [one.id for one in there.webhooks.page(ALL).data] == [theirs.id]
        with pytest.raises(WebhookNotFound):
            there.webhooks.get(mine.id)
        there.webhooks.reconcile((), int(NOW))
        assert [one.id for one in here.webhooks.targets()] == [mine.id]


# -- the configuration ------------------------------------------------------------------------------------------------


def test_webhooks_of_the_configuration_are_what_it_says_and_cannot_be_deleted(records: Records) -> None:
    store = records.webhooks
    api = store.create(Subscription("http://api/"), int(NOW))
    store.reconcile((Subscription(URL, "old"), Subscription("http://gone/")), int(NOW))
    ids = {one.url: one.id for one in store.page(ALL).data}

    store.reconcile((Subscription(URL, "new", ("thread.*",)), Subscription("http://new/")), int(NOW))

    found = {one.url: one for one in store.page(ALL).data}
    assert set(found) == {"http://api/", URL, "http://new/"}
    assert (found[URL].id, found[URL].source, found[URL].events) == (ids[URL], "config", ["thread.*"])
    assert store.target(ids[URL]).secret == "new"
    assert found["http://api/"].id == api.id
    with pytest.raises(ConfiguredWebhook, match="stands in the configuration"):
        store.delete(ids[URL])


def test_a_configuration_that_says_the_same_writes_nothing(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    store = records.webhooks
    wanted = (Subscription(URL, "secret", ("thread.*", "model.*")),)
    store.reconcile(wanted, int(NOW))
    monkeypatch.setattr(records.database, "write", lambda: pytest.fail("it wrote"))

    store.reconcile(wanted, int(NOW))


def test_a_webhook_of_the_api_that_comes_into_the_configuration_stays_the_same_and_is_the_configurations(
    records: Records,
) -> None:
    mine = made(records)

    records.webhooks.reconcile((Subscription(URL, "s"),), int(NOW))

    (found,) = records.webhooks.page(ALL).data
    assert (found.id, found.source, found.n_pending) == (mine.id, "config", 4)


# -- deliveries -------------------------------------------------------------------------------------------------------


def test_only_the_oldest_of_each_subject_is_due(records: Records) -> None:
    target = made(records)
    store = records.webhooks

    due = store.due(target, NOW, 10)

    assert names(due) == [("a", "model.starting"), ("b", "model.starting")]
    assert names(store.due(target, NOW, 10, [due[0].id])) == [("b", "model.starting")]
    assert names(store.due(target, NOW, 1)) == [("a", "model.starting")]
    assert store.due(target, NOW - 1, 10) == []
    assert due[0].body == b'{"id":"x"}'


def test_a_delivered_one_goes_and_the_next_of_its_subject_is_due(records: Records) -> None:
    target = made(records)
    store = records.webhooks
    first = store.due(target, NOW, 1)[0]

    store.record(target, first, Result(204, None), NOW + 1)

    assert names(store.due(target, NOW + 1, 10)) == [("b", "model.starting"), ("a", "model.running")]
    shown = store.get(target.id)
    assert (shown.n_delivered, shown.n_pending, shown.last_status, shown.last_error) == (1, 3, 204, None)
    assert shown.last_delivery_at == int(NOW + 1)


def test_a_failed_one_is_due_later_and_holds_its_subject_back(records: Records) -> None:
    target = made(records)
    store = records.webhooks
    first = store.due(target, NOW, 1)[0]

    store.record(target, first, Result(500, "it said 500", NOW + 5), NOW)

    assert names(store.due(target, NOW + 4, 10)) == [("b", "model.starting")]
    assert store.next_due(NOW) == NOW + 5
    again = next(one for one in store.due(target, NOW + 5, 10) if one.subject == "a")
    assert (again.id, again.message_id, again.n_attempts) == (first.id, first.message_id, 1)
    shown = store.get(target.id)
    assert [(one.event, one.subject, one.n_attempts, one.next_attempt_at, one.last_error) for one in shown.pending] == [
        ("model.starting", "a", 1, int(NOW + 5), "it said 500"),
        ("model.running", "a", 0, None, None),
        ("model.starting", "b", 0, int(NOW), None),
        ("model.running", "b", 0, None, None),
    ]
    assert shown.pending[0].id == first.message_id


def test_one_that_is_given_up_is_counted_and_the_next_is_due(records: Records) -> None:
    target = made(records)
    store = records.webhooks

    store.record(target, store.due(target, NOW, 1)[0], Result(None, "no answer"), NOW + 1)

    assert names(store.due(target, NOW + 1, 10)) == [("b", "model.starting"), ("a", "model.running")]
    shown = store.get(target.id)
    assert (shown.n_dropped, shown.n_delivered, shown.last_status, shown.last_error) == (1, 0, None, "no answer")


def test_a_new_event_of_a_subject_that_waits_waits_behind_it(records: Records) -> None:
    target = made(records)
    store = records.webhooks
    publish(records, "a", "model.stopping")
    publish(records, "c", "model.starting")

    target = caught_up(store, target)

    assert names(store.due(target, NOW, 10)) == [(subject, "model.starting") for subject in ("a", "b", "c")]


def test_events_that_nobody_wants_are_noted_now_and_then_only(records: Records) -> None:
    store = records.webhooks
    target = store.target(store.create(Subscription(URL), int(NOW)).id)
    with records.database.write() as connection:
        for _ in range(SEEN_EVERY):
            records.events.append(connection, "thread.updated", "t", b"{}")

    few = store.catch_up(target, NOW, SEEN_EVERY - 1)
    all_of_them = store.catch_up(few, NOW, SEEN_EVERY)

    assert (few.seen, few.noted) == (target.seen + SEEN_EVERY - 1, target.noted)
    assert (all_of_them.seen, all_of_them.noted) == (target.seen + SEEN_EVERY, target.seen + SEEN_EVERY)
    assert store.least_seen() == all_of_them.seen
    assert store.get(target.id).n_pending == 0


def test_results_of_a_webhook_that_is_gone_change_nothing(records: Records) -> None:
    target = made(records)
    store = records.webhooks
    first = store.due(target, NOW, 1)[0]
    store.delete(target.id)

    store.record(target, first, Result(204, None), NOW)
    store.record(target, first, Result(500, "x", NOW + 5), NOW)

    assert store.catch_up(target, NOW, 10) == target
    assert store.page(ALL).data == []
    assert store.due(target, NOW + 10, 10) == []


def test_events_and_results_at_once_leave_nothing_waiting_for_nobody(records: Records) -> None:
    """A delivery that comes while the one before it ends must not wait behind nothing."""
    store = records.webhooks
    target = store.target(store.create(Subscription(URL), int(NOW)).id)
    n_events = 40
    is_through = threading.Event()

    def log() -> None:
        seen = target
        for _ in range(n_events):
            publish(records, "a", "model.updated")
            seen = caught_up(store, seen)
        is_through.set()

    logger = threading.Thread(target=log)
    logger.start()
    n_done = 0
    while n_done < n_events:
        for one in store.due(target, NOW + 1, 10):
            store.record(target, one, Result(204, None), NOW)
            n_done += 1
        assert not is_through.is_set() or store.due(target, NOW + 1, 1) or n_done == n_events, f"stuck after {n_done}"
    logger.join(30)

    assert store.get(target.id).n_delivered == n_events


def test_past_the_limit_the_oldest_are_dropped_and_the_next_of_their_subjects_are_due(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hostler.records.webhooks.MAX_PENDING", 3)

    target = made(records)

    store = records.webhooks
    assert names(store.due(target, NOW, 10)) == [("a", "model.running"), ("b", "model.starting")]
    shown = store.get(target.id)
    assert (shown.n_pending, shown.n_dropped) == (3, 1)


def test_one_that_is_dropped_while_it_is_under_way_and_taken_all_the_same_counts_once(
    records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, store = made(records), records.webhooks
    under_way = store.due(target, NOW, 1)[0]
    monkeypatch.setattr("hostler.records.webhooks.MAX_PENDING", 3)
    publish(records, "c", "model.starting")
    caught_up(store, target)
    assert store.get(target.id).n_dropped == 2

    store.record(target, under_way, Result(204, None), NOW)

    shown = store.get(target.id)
    assert (shown.n_pending, shown.n_delivered, shown.n_dropped) == (3, 1, 1)
