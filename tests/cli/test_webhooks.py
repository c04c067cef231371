"""`hostler webhooks` without a server: what it prints, and how it refuses. With one: tests/functional/test_webhooks.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hostler.cli import cli
from support.receiver import Receiver

URL = "http://127.0.0.1:9/hook"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        made.manners = lambda request: 200
        yield made


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def run(*arguments: str, given: str | None = None) -> Result:
        return CliRunner().invoke(cli, ["--home", str(tmp_path / "home"), "webhooks", *arguments], input=given)

    return run


def test_an_empty_list_says_how_to_make_one(run: Any) -> None:
    assert run("list").output.startswith("No webhook is here yet. `hostler webhooks add URL`")
    assert json.loads(run("list", "--json").output) == []


def test_what_is_added_is_listed_without_its_secret_and_removed_by_its_url(run: Any) -> None:
    added = run("add", URL, "--secret", "sesame", "--event", "model.*", "--event", "thread.created")

    assert added.exit_code == 0, added.output
    assert added.output.startswith("webhook_")
    assert f"gets model.*, thread.created at {URL}" in added.output
    (row,) = run("list").output.splitlines()[1:]
    assert row.split()[1:] == [URL, "model.*,", "thread.created", "yes", "-", "-", "0", "0"]
    assert "sesame" not in added.output + row
    removed = run("rm", URL)
    assert removed.output.split()[1:] == ["is", "deleted"]
    assert json.loads(run("list", "--json").output) == []


def test_a_secret_is_read_from_stdin_or_made_and_shown_once(run: Any, receiver: Receiver) -> None:
    run("add", f"{receiver.url}read", "--secret", "-", given="from a pipe\n")
    made = run("add", f"{receiver.url}made", "--generate-secret").output
    secret = made.split("secret: ")[1].strip()

    assert run("test", f"{receiver.url}read").exit_code == 0
    assert run("test", f"{receiver.url}made").exit_code == 0

    receiver.got[0].verify(b"from a pipe")
    receiver.got[1].verify(secret)
    assert secret not in run("list", "--json").output


def test_a_test_shows_the_answer_or_fails_with_what_went_wrong(run: Any, receiver: Receiver) -> None:
    added = json.loads(run("add", receiver.url, "--json").output)

    good = run("test", added["id"])
    receiver.manners = lambda request: 418
    bad = run("test", receiver.url, "--json")

    assert good.output.splitlines()[0].startswith(f"{receiver.url} answered 200 after ")
    assert good.output.splitlines()[1] == "thank you"
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)["status"] == 418
    assert "the receiver answered 418" in bad.stderr


def test_a_url_without_a_webhook_is_tried_with_the_secret_that_is_given(run: Any, receiver: Receiver) -> None:
    assert run("test", receiver.url, "--secret", "sesame").exit_code == 0

    receiver.got[0].verify(b"sesame")
    assert run("list", "--json").output.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "ftp://host/"), 1, "url is 'ftp://host/'; allowed: an http or https URL with a host"),
        (("add", URL, "--event", "modle.*"), 1, "events[0] is 'modle.*', which means no event"),
        (("rm", "nope"), 1, "The webhook nope does not exist"),
        (("test", "nope"), 1, "The webhook nope does not exist"),
        (("test", "https://me:pass@host/"), 1, "url holds a user name or password"),
        (("test", "nope", "--secret", "x"), 2, "--secret is for URLs that have no webhook"),
        (("add", URL, "--secret", "x", "--generate-secret"), 2, "give --secret or --generate-secret, not both"),
        (("rm",), 2, "Missing argument"),
    ],
)
def test_a_refusal_is_one_line_with_the_reason(run: Any, arguments: tuple[str, ...], code: int, message: str) -> None:
    done = run(*arguments)

    assert done.exit_code == code
    assert message in done.output
    assert "Traceback" not in done.output


def test_one_of_the_configuration_is_listed_and_not_removed(run: Any, tmp_path: Path) -> None:
    """A command does not read the configuration into the database; a server has."""
    from hostler.config import load_settings
    from hostler.plugins import get_plugins
    from hostler.runtime import Runtime

    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[[webhooks]]\nurl = "{URL}"\n')
    runtime = Runtime(load_settings(home, environ={}), get_plugins())
    runtime.webhooks.start()
    runtime.records.open()
    runtime.close(0)

    refused = run("rm", URL)

    assert refused.exit_code == 1
    assert "stands in the configuration" in refused.output
    assert json.loads(run("list", "--json").output)[0]["source"] == "config"
