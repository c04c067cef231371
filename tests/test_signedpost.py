"""One POST to a webhook's receiver: what is sent, how it is signed, and what becomes of every sort of answer."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator

import openai
import pytest
from standardwebhooks import WebhookVerificationError

from hostler.signedpost import Outcome, Post, Poster, headers_of, is_loopback
from support.receiver import Receiver

BODY = json.dumps({"id": "zephyr-7b", "object": "model", "event": "model.running"}).encode()
KEY = base64.b64encode(b"a key of thirty-two bytes length").decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


@pytest.fixture
def poster() -> Iterator[Poster]:
    made = Poster(timeout_s=5)
    yield made
    made.close()


def send(poster: Poster, url: str, secret: str = "") -> Outcome:
    return poster.attempt(Post(url, secret, "evt_1", "model.running", BODY)).run()


# -- what is sent -----------------------------------------------------------------------------------------------------


def test_a_post_carries_the_body_and_the_headers_of_standard_webhooks(receiver: Receiver, poster: Poster) -> None:
    assert send(poster, receiver.url).is_delivered

    (request,) = receiver.got
    assert request.body == BODY
    assert request.headers["content-type"] == "application/json"
    assert request.headers["webhook-id"] == "evt_1"
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 60
    assert request.headers["x-hostler-event"] == "model.running"
    assert request.headers["user-agent"].startswith("hostler/")
    assert "webhook-signature" not in request.headers


@pytest.mark.parametrize("secret", [f"whsec_{KEY}", "plain text, with blanks", "ümlaut"])
def test_a_signature_is_accepted_by_standard_webhooks_and_by_openais_client(
    receiver: Receiver, poster: Poster, secret: str
) -> None:
    send(poster, receiver.url, secret)

    (request,) = receiver.got
    assert request.verify(secret if secret.startswith("whsec_") else secret.encode()) == json.loads(BODY)
    with openai.OpenAI(api_key="unused", webhook_secret=secret) as client:
        client.webhooks.verify_signature(request.body, request.headers)
        client.webhooks.unwrap(request.body, request.headers)
        with pytest.raises(openai.InvalidWebhookSignatureError):
            client.webhooks.verify_signature(request.body + b" ", request.headers)
    with pytest.raises(WebhookVerificationError):
        request.verify(b"another secret")


def test_a_signature_is_of_its_own_time() -> None:
    post = Post("http://host/", "secret", "evt_1", "model.running", BODY)

    early, late = headers_of(post, 1_700_000_000.9), headers_of(post, 1_700_003_600)

    assert (early["webhook-timestamp"], late["webhook-timestamp"]) == ("1700000000", "1700003600")
    assert early["webhook-signature"].startswith("v1,")
    assert early["webhook-signature"] != late["webhook-signature"]


# -- what becomes of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_any_2xx_is_delivered(receiver: Receiver, poster: Poster, status: int) -> None:
    receiver.manners = lambda request: status

    outcome = send(poster, receiver.url)

    assert (outcome.status, outcome.error, outcome.is_delivered) == (status, None, True)
    assert outcome.excerpt == ("" if status == 204 else "thank you")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, "the receiver answered 400 Bad Request"),
        (500, "the receiver answered 500 Internal Server Error"),
        (599, "the receiver answered 599"),
        (304, "the receiver answered 304 Not Modified, and redirects are not followed"),
    ],
)
def test_any_other_status_is_not_delivered(receiver: Receiver, poster: Poster, status: int, error: str) -> None:
    receiver.manners = lambda request: status

    outcome = send(poster, receiver.url)

    assert (outcome.status, outcome.error, outcome.is_delivered) == (status, error, False)


def test_a_redirect_is_not_followed(receiver: Receiver, poster: Poster) -> None:
    receiver.manners = lambda request: "redirect"

    outcome = send(poster, receiver.url)

    assert outcome.error == "the receiver answered 307 Temporary Redirect, and redirects are not followed"
    assert [request.path for request in receiver.got] == ["/"]


@pytest.mark.parametrize("manner", ["hang", "drip"])
def test_no_status_within_the_time_is_not_delivered_however_busy_the_receiver_looks(receiver: Receiver, manner: str) -> None:
    receiver.manners = lambda request: manner
    poster = Poster(timeout_s=0.3)

    outcome = send(poster, receiver.url)

    poster.close()
    assert (outcome.status, outcome.error) == (None, "no answer within 0.3 s")


def test_a_body_that_does_not_end_changes_nothing_of_a_good_status(receiver: Receiver) -> None:
    receiver.manners = lambda request: "endless"
    poster = Poster(timeout_s=0.3)

    outcome = send(poster, receiver.url)

    poster.close()
    assert outcome.is_delivered
    assert set(outcome.excerpt) == {"x"}


def test_a_connection_that_breaks_off_is_not_delivered(receiver: Receiver, poster: Poster) -> None:
    receiver.manners = lambda request: "cut"

    outcome = send(poster, receiver.url)

    assert outcome.status is None
    assert str(outcome.error).startswith("the connection broke off")


def test_nobody_listening_is_not_delivered(poster: Poster) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port meanwhile

        outcome = send(poster, f"http://127.0.0.1:{taken.getsockname()[1]}/")

    assert outcome.status is None
    assert str(outcome.error).startswith("no connection: ")


@pytest.mark.parametrize("url", ["http://name.invalid/", "http://" + "x" * 300 + "/", "http://\u2603\u0301.\u00ad/"])
def test_a_name_that_leads_nowhere_is_not_delivered(poster: Poster, url: str) -> None:
    outcome = send(poster, url)

    assert outcome.status is None
    assert outcome.error


def test_something_that_is_no_web_server_is_not_delivered(poster: Poster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"220 mail.example ESMTP\r\n")

        server = threading.Thread(target=talk)
        server.start()
        outcome = send(poster, f"http://127.0.0.1:{listener.getsockname()[1]}/")
        server.join(10)

    assert outcome.status is None
    assert str(outcome.error).startswith("the connection broke off")


def test_an_attempt_is_cut_short_by_another_thread_at_once(receiver: Receiver) -> None:
    receiver.manners = lambda request: "hang"
    poster = Poster(timeout_s=3600)
    attempt = poster.attempt(Post(receiver.url, "", "evt_1", "model.running", BODY))
    outcomes: list[Outcome] = []
    sender = threading.Thread(target=lambda: outcomes.append(attempt.run()))
    sender.start()
    receiver.wait_for(1)

    attempt.abort()
    sender.join(30)

    poster.close()
    assert [outcome.error for outcome in outcomes] == ["cut short: the server is stopping"]
    assert attempt.is_cut_short


# -- proxies ----------------------------------------------------------------------------------------------------------


def test_a_proxy_of_the_environment_never_sees_what_stays_on_this_machine(
    receiver: Receiver, poster: Poster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    assert send(poster, receiver.url).is_delivered
    assert not send(poster, "http://receiver.example/").is_delivered


@pytest.mark.parametrize(
    ("url", "expected"),
    [("http://127.0.0.1/", True), ("http://127.8.8.8:80/x", True), ("http://[::1]:9/", True), ("http://localhost/", True),
     ("http://app.localhost:3/", True), ("http://10.0.0.1/", False), ("http://localhost.example/", False), ("x", False)],
)  # fmt: skip
def test_loopback_is_told_by_name_and_by_address(url: str, expected: bool) -> None:
    assert is_loopback(url) is expected
