"""What a webhook may ask for, as it is read from a file, a variable, a flag or a request."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from hostler.config import load_settings
from hostler.errors import ConfigError, InvalidRequest, MissingParameter
from hostler.subscription import (
    DEFAULT_EVENTS,
    EVENT_NAMES,
    Subscription,
    is_wanted,
    mask,
    read_subscription,
    read_subscriptions,
    secret_key,
)

URL = "http://127.0.0.1:9000/hook"
SECRET = "whsec_" + base64.b64encode(b"a key of some length").decode()


# -- one --------------------------------------------------------------------------------------------------------------


def test_a_url_alone_asks_for_all_that_happens_to_models_unsigned() -> None:
    assert read_subscription(URL) == Subscription(URL, "", ("model.*",))
    assert DEFAULT_EVENTS == ("model.*",)


def test_a_table_gives_url_secret_and_events_and_null_means_absent() -> None:
    assert read_subscription({"url": URL, "secret": SECRET, "events": ["thread.*", "model.running", "thread.*"]}) == (
        Subscription(URL, SECRET, ("thread.*", "model.running"))
    )
    assert read_subscription({"url": URL, "secret": None, "events": None}) == Subscription(URL)


@pytest.mark.parametrize(
    "url",
    ["ftp://host/x", "host/x", "http://", "http:///x", "https://host:99999/", "http://host:0/", "http://a b/", "file:///etc",
     "http://[::1/", "http://host/\x00", "javascript:alert(1)", "", "http://" + "x" * 3000, 5, ["http://host/"]],
)  # fmt: skip
def test_what_is_no_http_url_is_refused_and_names_the_field(url: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_subscription({"url": url})

    assert caught.value.param == "url"


def test_a_password_in_the_url_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidRequest, match="sign deliveries with secret") as caught:
        read_subscription({"url": "https://me:sesame@host/hook"})

    assert "sesame" not in caught.value.message


def test_a_fragment_goes_nowhere_and_is_left_out() -> None:
    assert read_subscription(" https://host/hook?token=1#part ").url == "https://host/hook?token=1"


def test_a_missing_url_is_a_missing_parameter() -> None:
    with pytest.raises(MissingParameter, match="url is required"):
        read_subscription({"secret": "x"})


@pytest.mark.parametrize("value", [5, None, ["http://host/"], True])
def test_what_is_neither_url_nor_table_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequest, match="a webhook is a URL, or a table"):
        read_subscription(value)


def test_an_unknown_field_of_a_table_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a webhook has no 'event'; allowed: url, secret, events"):
        read_subscription({"url": URL, "event": ["model.*"]})


@pytest.mark.parametrize("secret", ["whsec_", "whsec_!!!", "whsec_abc", " padded ", "line\nend", "x" * 600, 5])
def test_a_bad_secret_is_refused_without_being_shown(secret: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_subscription({"url": URL, "secret": secret})

    assert caught.value.param == "secret"
    assert str(secret) == "whsec_" or str(secret) not in caught.value.message


def test_a_secret_is_base64_behind_its_prefix_and_text_without_it() -> None:
    assert secret_key(SECRET) == b"a key of some length"
    assert secret_key("plain text") == b"plain text"


def test_a_secret_shows_nowhere() -> None:
    assert (mask(SECRET), mask("sesame"), mask("")) == ("whsec_***", "***", None)
    assert "sesame" not in repr(Subscription(URL, "sesame"))


@pytest.mark.parametrize(
    ("events", "param"),
    [(["models.*"], "events[0]"), (["model.*", "thread.runing"], "events[1]"), ([], "events"), ("model.*", "events"),
     ([5], "events"), (["model.*"] * 65, "events"), ([""], "events[0]")],
)  # fmt: skip
def test_globs_that_mean_no_event_are_refused_with_their_place(events: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_subscription({"url": URL, "events": events})

    assert caught.value.param == param


def test_globs_choose_events_by_name() -> None:
    assert {name for name in EVENT_NAMES if is_wanted(name, ("model.st*", "*.deleted"))} == {
        "model.starting", "model.start_failed", "model.stopping", "model.stopped",
        "model.deleted", "thread.deleted", "message.deleted", "assistant.deleted",
    }  # fmt: skip
    assert all(is_wanted(name, ("*",)) for name in EVENT_NAMES)


# -- several ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        f"{URL}, http://other/",
        f'[{{"url": "{URL}"}}, "http://other/"]',
        [URL, {"url": "http://other/"}],
        (URL, '{"url": "http://other/"}'),
        (f'[{{"url": "{URL}"}}, "http://other/"]',),
    ],
)
def test_several_come_as_a_list_as_json_or_separated_by_commas(value: Any) -> None:
    assert read_subscriptions(value) == (Subscription(URL), Subscription("http://other/"))


def test_one_json_object_is_a_list_of_one() -> None:
    assert read_subscriptions(f'{{"url": "{URL}", "secret": "s"}}') == (Subscription(URL, "s"),)
    assert read_subscriptions("") == ()


def test_a_url_is_there_only_once() -> None:
    with pytest.raises(InvalidRequest, match=r"^webhooks\[1\]: http://127.0.0.1:9000/hook is there twice"):
        read_subscriptions([URL, {"url": URL, "events": ["thread.*"]}])


# -- as a setting -----------------------------------------------------------------------------------------------------


def test_webhooks_come_from_the_file_the_environment_and_a_flag_in_the_order_of_all_settings(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(f'[[webhooks]]\nurl = "{URL}"\nsecret = "s"\nevents = ["thread.*"]\n')

    from_file = load_settings(tmp_path, environ={})
    from_environment = load_settings(tmp_path, environ={"HOSTLER_WEBHOOKS": "http://a/,http://b/"})
    from_flag = load_settings(tmp_path, {"webhooks": ("http://c/",)}, {"HOSTLER_WEBHOOKS": "http://a/"})

    assert from_file.webhooks == (Subscription(URL, "s", ("thread.*",)),)
    assert [one.url for one in from_environment.webhooks] == ["http://a/", "http://b/"]
    assert [one.url for one in from_flag.webhooks] == ["http://c/"]
    assert from_file.replace(port=5).webhooks == from_file.webhooks


@pytest.mark.parametrize(
    ("text", "message", "param"),
    [
        ('[[webhooks]]\nurl = "http://a/"\n[[webhooks]]\nurl = "b/"', "webhooks[1]: url is 'b/'", "webhooks[1].url"),
        ('[[webhooks]]\nsecret = "s"', "webhooks[0]: url is required", "webhooks[0].url"),
        ('[webhooks]\nurl = "http://a/"', "webhooks is a list: one [[webhooks]] table each", "webhooks"),
        ('[[webhooks]]\nurl = "http://a/"\nevents = ["modle"]', "webhooks[0]: events[0] is 'modle'", "webhooks[0].events[0]"),
    ],
)
def test_a_bad_webhook_in_the_file_names_the_file_and_the_place(tmp_path: Path, text: str, message: str, param: str) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)

    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path, environ={})

    assert caught.value.message.startswith(f"{path}: {message}")
    assert caught.value.param == param


def test_a_bad_webhook_in_the_environment_names_the_variable_and_shows_no_secret(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^HOSTLER_WEBHOOKS: webhooks\[0\]: secret begins with whsec_") as caught:
        load_settings(tmp_path, environ={"HOSTLER_WEBHOOKS": f'[{{"url": "{URL}", "secret": "whsec_sesame!"}}]'})
    with pytest.raises(ConfigError, match="look like JSON but are none"):
        load_settings(tmp_path, environ={"HOSTLER_WEBHOOKS": "[{"})

    assert "sesame" not in str(caught.value)
