"""`/v1/webhooks`: every operation, what they refuse, and that no answer shows a secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from hostler.events import ModelObject
from hostler.records.objects import Webhook, WebhookDetail
from hostler.subscription import Subscription
from support.receiver import Receiver
from support.server import eventually

Client = Any
URL = "http://127.0.0.1:9/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def create(client: Client, **body: Any) -> dict[str, Any]:
    answer = client.simulate_post("/v1/webhooks", json={"url": URL, **body})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json
    return made


def check_refusal(answer: Any, status: int, code: str, param: str | None) -> str:
    assert (answer.status_code, answer.json["error"]["code"], answer.json["error"]["param"]) == (status, code, param), (
        answer.text
    )
    return str(answer.json["error"]["message"])


def test_a_webhook_is_made_listed_shown_and_deleted(client: Client) -> None:
    made = create(client, secret="sesame", events=["model.*", "thread.created"])

    listed = client.simulate_get("/v1/webhooks").json
    shown = client.simulate_get(f"/v1/webhooks/{made['id']}").json

    assert made["id"].startswith("webhook_")
    assert made["object"] == "webhook"
    assert made["created"] == made["created_at"]
    assert (made["url"], made["events"], made["source"]) == (URL, ["model.*", "thread.created"], "api")
    assert (made["last_status"], made["last_error"], made["last_delivery_at"]) == (None, None, None)
    assert (made["n_delivered"], made["n_pending"], made["n_dropped"], made["pending"]) == (0, 0, 0, [])
    assert shown == made
    assert (listed["object"], listed["has_more"], listed["first_id"]) == ("list", False, made["id"])
    assert listed["data"] == [{name: value for name, value in made.items() if name != "pending"}]
    msgspec.convert(listed["data"][0], Webhook)
    msgspec.convert(shown, WebhookDetail)

    deleted = client.simulate_delete(f"/v1/webhooks/{made['id']}")

    assert deleted.json == {"id": made["id"], "object": "webhook.deleted", "deleted": True}
    assert client.simulate_get("/v1/webhooks").json["data"] == []


def test_a_url_is_enough(client: Client) -> None:
    made = create(client, secret=None, events=None)

    assert (made["events"], made["secret"]) == (["model.*"], None)


@pytest.mark.parametrize(("secret", "masked"), [("sesame", "***"), ("whsec_c2VzYW1l", "whsec_***")])
def test_no_answer_shows_a_secret(client: Client, secret: str, masked: str) -> None:
    made = create(client, secret=secret)

    answers = [client.simulate_get(path).text for path in ("/v1/webhooks", f"/v1/webhooks/{made['id']}")]
    refused = client.simulate_post("/v1/webhooks", json={"url": "nothing", "secret": secret})

    assert made["secret"] == masked
    assert all(secret not in text and masked in text for text in answers)
    assert secret not in refused.text


@pytest.mark.parametrize(
    ("body", "code", "param"),
    [
        ({}, "missing_required_parameter", "url"),
        ({"url": None}, "missing_required_parameter", "url"),
        ({"url": 5}, "invalid_value", "url"),
        ({"url": "ftp://host/"}, "invalid_value", "url"),
        ({"url": "http://me:pass@host/"}, "invalid_value", "url"),
        ({"url": "http://host/" + "x" * 3000}, "invalid_value", "url"),
        ({"url": URL, "secret": "whsec_!"}, "invalid_value", "secret"),
        ({"url": URL, "secret": 5}, "invalid_value", "secret"),
        ({"url": URL, "secret": "x" * 600}, "invalid_value", "secret"),
        ({"url": URL, "events": "model.*"}, "invalid_value", "events"),
        ({"url": URL, "events": []}, "invalid_value", "events"),
        ({"url": URL, "events": ["model.*", "modle.*"]}, "invalid_value", "events[1]"),
        ({"url": URL, "events": [5]}, "invalid_value", "events[0]"),
    ],
)
def test_what_cannot_be_meant_is_400_with_the_path(client: Client, body: dict[str, Any], code: str, param: str) -> None:
    check_refusal(client.simulate_post("/v1/webhooks", json=body), 400, code, param)

    assert client.simulate_get("/v1/webhooks").json["data"] == []


def test_a_second_webhook_for_a_url_is_409(client: Client) -> None:
    create(client)

    check_refusal(client.simulate_post("/v1/webhooks", json={"url": URL}), 409, "record_exists", "url")


@pytest.mark.parametrize(("method", "action"), [("GET", ""), ("DELETE", ""), ("POST", "/test")])
def test_an_unknown_webhook_is_404(client: Client, method: str, action: str) -> None:
    answer = client.simulate_request(method, f"/v1/webhooks/nope{action}")

    message = check_refusal(answer, 404, "webhook_not_found", None)
    assert message == "The webhook nope does not exist"


def test_pages_of_webhooks_are_those_of_every_list(client: Client) -> None:
    ids = [create(client, url=f"{URL}{number}")["id"] for number in range(3)]

    newest = client.simulate_get("/v1/webhooks", params={"limit": 2}).json
    rest = client.simulate_get("/v1/webhooks", params={"limit": 2, "after": newest["last_id"]}).json

    assert [one["id"] for one in newest["data"] + rest["data"]] == list(reversed(ids))
    assert (newest["has_more"], rest["has_more"]) == (True, False)
    check_refusal(client.simulate_get("/v1/webhooks", params={"after": "nope"}), 400, "invalid_value", "after")
    check_refusal(client.simulate_get("/v1/webhooks", params={"limit": 0}), 400, "invalid_value", "limit")


def test_those_of_the_configuration_are_listed_and_cannot_be_deleted(client: Client, runtime: Any, records: Any) -> None:
    runtime.webhooks._configured = (Subscription(URL, "sesame", ("thread.*",)),)

    (one,) = client.simulate_get("/v1/webhooks").json["data"]

    assert (one["url"], one["secret"], one["source"], one["events"]) == (URL, "***", "config", ["thread.*"])
    answer = client.simulate_delete(f"/v1/webhooks/{one['id']}")
    message = check_refusal(answer, 409, "configured_webhook", None)
    assert "configuration" in message
    assert answer.headers["x-should-retry"] == "false"


def test_threads_messages_and_assistants_are_told_of_to_those_who_ask(client: Client, receiver: Receiver) -> None:
    create(client, url=receiver.url, secret="sesame", events=["thread.*", "message.*", "assistant.*"])

    thread = client.simulate_post("/v1/threads", json={"messages": [{"role": "user", "content": "Hello!"}]}).json
    client.simulate_post("/v1/assistants", json={"model": "phi", "name": "Tutor"})
    client.simulate_delete(f"/v1/threads/{thread['id']}")

    received = receiver.wait_for(4)
    bodies = {request.event: request.verify(b"sesame") for request in received}
    assert [request.event for request in received if request.event != "assistant.created"] == [
        "thread.created",
        "message.created",
        "thread.deleted",
    ]
    assert bodies["thread.created"]["id"] == thread["id"]
    assert bodies["message.created"]["object"] == "thread.message"
    assert bodies["assistant.created"]["name"] == "Tutor"
    assert (bodies["thread.deleted"]["id"], bodies["thread.deleted"]["deleted"]) == (thread["id"], True)


def test_how_a_webhook_fares_is_seen_in_its_answer(client: Client, runtime: Any, receiver: Receiver) -> None:
    receiver.manners = lambda request: 503
    made = create(client, url=receiver.url)
    path = f"/v1/webhooks/{made['id']}"
    found = runtime.model("phi")

    runtime.events.model("running", found.manifest, found.resting, found.lifecycle)
    runtime.events.model("stopping", found.manifest, found.lifecycle, found.lifecycle)

    shown = eventually(
        lambda: (one := client.simulate_get(path).json)["last_status"] and one["n_pending"] == 2 and one, "news"
    )
    first, second = shown["pending"]
    assert (shown["last_status"], shown["last_error"]) == (503, "the receiver answered 503 Service Unavailable")
    assert shown["last_delivery_at"] >= made["created_at"]
    assert (first["event"], first["subject"], first["n_attempts"]) == ("model.running", "phi", 1)
    assert first["next_attempt_at"] > shown["last_delivery_at"]
    assert (second["event"], second["n_attempts"], second["next_attempt_at"]) == ("model.stopping", 0, None)
    assert msgspec.json.decode(receiver.got[0].body, type=ModelObject).id == "phi"
    assert receiver.got[0].id == first["id"]


def test_a_test_event_is_sent_signed_and_the_receivers_answer_is_shown(
    client: Client, runtime: Any, receiver: Receiver
) -> None:
    receiver.manners = lambda request: 200
    made = create(client, url=receiver.url, secret="sesame", events=["thread.*"])

    answer = client.simulate_post(f"/v1/webhooks/{made['id']}/test").json

    (request,) = receiver.got
    assert request.event == "webhook.test"
    body = request.verify(b"sesame")
    assert (body["id"], body["object"], body["event"]) == (made["id"], "webhook.test", "webhook.test")
    assert {name: answer[name] for name in ("id", "object", "url", "is_delivered", "status", "error", "answer")} == {
        "id": made["id"],
        "object": "webhook.test",
        "url": receiver.url,
        "is_delivered": True,
        "status": 200,
        "error": None,
        "answer": "thank you",
    }
    assert answer["elapsed_ms"] >= 0
    assert client.simulate_get(f"/v1/webhooks/{made['id']}").json["last_status"] == 200
    assert runtime.held == ["webhook test"]


def test_a_test_event_that_is_refused_is_shown_and_not_repeated(client: Client, receiver: Receiver) -> None:
    receiver.manners = lambda request: "redirect"
    made = create(client, url=receiver.url)

    answer = client.simulate_post(f"/v1/webhooks/{made['id']}/test")

    assert answer.status_code == 200
    assert (answer.json["is_delivered"], answer.json["status"]) == (False, 307)
    assert "redirects are not followed" in answer.json["error"]
    shown = client.simulate_get(f"/v1/webhooks/{made['id']}").json
    assert (shown["n_pending"], shown["last_status"], len(receiver.got)) == (0, 307, 1)


def test_a_test_event_takes_a_place_of_max_requests(client: Client, runtime: Any) -> None:
    made = create(client)
    runtime.n_free = 0

    check_refusal(client.simulate_post(f"/v1/webhooks/{made['id']}/test"), 429, "queue_full", None)


def test_a_foreign_page_cannot_make_a_webhook(make_client: Callable[..., Client]) -> None:
    client = make_client()

    answer = client.simulate_post("/v1/webhooks", json={"url": URL}, headers={"Origin": "https://evil.example"})

    check_refusal(answer, 403, "origin_not_allowed", None)
