"""`hostler webhooks`: who is told of events, by the API's webhook routes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from hostler.cli.options import OrderedGroup, home_option, json_option, print_json, print_table, read_settings
from hostler.cli.records import delete_all, every, path_of, show_time
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.cli.client import Client


@click.group(cls=OrderedGroup)
def webhooks() -> None:
    """Who is told of what happens to models and threads: list, add, remove and try webhooks.

    Those of the configuration (the setting `webhooks`) are listed, too; they are changed there.
    """


@webhooks.command(name="list")
@json_option("Print the webhooks as a JSON list.")
@home_option
def list_(is_json: bool) -> None:
    """Show the webhooks and how they fare."""
    from hostler.cli.client import connect

    with connect(read_settings(), "webhooks list", is_reading=True) as client:
        found = list(every(client, path_of("webhooks")))
    if is_json:
        print_json(found)
        return
    if not found:
        click.echo("No webhook is here yet. `hostler webhooks add URL` makes one.")
        return
    rows = [
        [
            webhook["id"],
            webhook["url"],
            ", ".join(webhook["events"]),
            "yes" if webhook["secret"] else "no",
            _fares(webhook),
            show_time(webhook["last_delivery_at"]),
            str(webhook["n_pending"]),
            str(webhook["n_dropped"]),
        ]
        for webhook in found
    ]
    print_table(["ID", "URL", "EVENTS", "SIGNED", "LAST", "AT", "PENDING", "DROPPED"], rows)


def _fares(webhook: dict[str, Any]) -> str:
    return str(webhook["last_status"] or webhook["last_error"] or "-")


@webhooks.command()
@click.argument("url")
@click.option("--secret", metavar="TEXT", help="Signs deliveries: whsec_ and base64, or plain text; - reads it from stdin.")
@click.option("--generate-secret", is_flag=True, help="Make a secret and print it, this once.")
@click.option(
    "--event",
    "events",
    multiple=True,
    metavar="GLOB",
    help="Which events, such as model.* or thread.created. May be given several times [model.*].",
)
@json_option("Print the webhook as JSON.")
@home_option
def add(url: str, secret: str | None, generate_secret: bool, events: tuple[str, ...], is_json: bool) -> None:
    """Send events to URL from now on."""
    from hostler.cli.client import connect

    if generate_secret and secret is not None:
        raise click.UsageError("give --secret or --generate-secret, not both")
    if secret == "-":
        secret = sys.stdin.readline().rstrip("\r\n")
    if generate_secret:
        secret = _new_secret()
    body: dict[str, Any] = {"url": url, "secret": secret}
    if events:
        body["events"] = list(events)
    with connect(read_settings(), "webhooks add") as client:
        made = client.post(path_of("webhooks"), body)
    if generate_secret:
        made["secret"] = secret
    if is_json:
        print_json(made)
        return
    click.echo(f"{made['id']} gets {', '.join(made['events'])} at {made['url']}")
    if generate_secret:
        click.echo(f"secret: {secret}")


def _new_secret() -> str:
    import base64
    import secrets

    from hostler.subscription import SECRET_PREFIX

    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


@webhooks.command()
@click.argument("names", nargs=-1, required=True, metavar="WEBHOOK...")
@json_option("Print the answers as a JSON list.")
@home_option
def rm(names: tuple[str, ...], is_json: bool) -> None:
    """Remove webhooks, by id or URL, with what they have not taken yet."""
    from hostler.cli.client import connect

    with connect(read_settings(), "webhooks rm") as client:
        ids = [_id_of(client, name) for name in names]
        delete_all(client, [path_of("webhooks", webhook_id) for webhook_id in ids], is_json=is_json)


@webhooks.command()
@click.argument("name", metavar="WEBHOOK")
@click.option("--secret", metavar="TEXT", help="Signs the event, where WEBHOOK is a URL that has no webhook.")
@json_option("Print what came of it as JSON.")
@home_option
def test(name: str, secret: str | None, is_json: bool) -> None:
    """Send a test event to WEBHOOK, an id or any URL, and show the answer; exits 1 if it was not taken."""
    from hostler.cli.client import connect

    with connect(read_settings(), "webhooks test") as client:
        found = _id_of(client, name)
        is_known = found != name or not name.startswith(("http://", "https://"))
        if is_known and secret is not None:
            raise click.UsageError("--secret is for URLs that have no webhook; a webhook has its own")
        answer = client.post(path_of("webhooks", found, "test"), {}) if is_known else None
    if answer is None:
        answer = _send(name, secret or "")
    if is_json:
        print_json(answer)
    elif answer["is_delivered"]:
        click.echo(f"{answer['url']} answered {answer['status']} after {answer['elapsed_ms']} ms")
        if answer["answer"]:
            click.echo(answer["answer"])
    if not answer["is_delivered"]:
        raise click.ClickException(f"{answer['url']}: {answer['error']}")


def _send(url: str, secret: str) -> dict[str, Any]:
    """Without the API: a URL that has no webhook is nobody's business but ours."""
    import time

    import msgspec

    from hostler.signedpost import Poster
    from hostler.subscription import read_subscription
    from hostler.webhooks import send_test, test_answer

    wanted = read_subscription({"url": url, "secret": secret})
    poster = Poster()
    outcome = send_test(poster, wanted.url, wanted.secret, "", int(time.time()))
    poster.close()
    found: dict[str, Any] = msgspec.to_builtins(test_answer("", wanted.url, outcome))
    return found


def _id_of(client: Client, name: str) -> str:
    """The id of the webhook with this URL; an id, or a URL that has none, as it is."""
    return next((one["id"] for one in every(client, path_of("webhooks")) if one["url"] == name), name)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add the commands of this module."""
    cli.add_command(webhooks)
