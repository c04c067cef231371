"""What a webhook asks for: a URL, a secret, and the events it wants; and the names of all events there are.

Floor 0; pure values, read alike from config.toml, the environment, a flag, the API and the CLI. Source: spec/API.md section
10; the form of secrets is that of the Standard Webhooks specification.
"""

from __future__ import annotations

import base64
import binascii
import fnmatch
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hostler.errors import InvalidRequest, MissingParameter

MODEL_EVENTS = (
    "model.registered",
    "model.downloading",
    "model.downloaded",
    "model.download_failed",
    "model.starting",
    "model.running",
    "model.start_failed",
    "model.stopping",
    "model.stopped",
    "model.updated",
    "model.deleted",
)
RECORD_EVENTS = tuple(
    f"{kind}.{what}" for kind in ("thread", "message", "assistant") for what in ("created", "updated", "deleted")
)
EVENT_NAMES = (*MODEL_EVENTS, *RECORD_EVENTS)
TEST_EVENT = "webhook.test"
"""Sent by `hostler webhooks test`, whatever the webhook's own events are; in no log and no stream."""

DEFAULT_EVENTS = ("model.*",)
MAX_GLOBS = 64
MAX_URL = 2048
MAX_SECRET = 512
SECRET_PREFIX = "whsec_"


class Subscription(msgspec.Struct, frozen=True):
    """One webhook as its owner wrote it."""

    url: str
    secret: str = ""
    """`whsec_` and base64, or plain text; empty: deliveries are not signed."""
    events: tuple[str, ...] = DEFAULT_EVENTS
    """Globs over EVENT_NAMES."""

    def __repr__(self) -> str:
        # Settings are logged and shown; a secret must not be.
        return f"Subscription(url={self.url!r}, secret={mask(self.secret)!r}, events={self.events!r})"


def mask(secret: str) -> str | None:
    """What may be shown of a secret: that there is one, and of which form."""
    if not secret:
        return None
    return f"{SECRET_PREFIX}***" if secret.startswith(SECRET_PREFIX) else "***"


def site_of(url: str) -> str:
    """What may be logged of a URL: its path and query are a secret where the receiver has no other, as with Slack."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def secret_key(secret: str) -> bytes:
    """The bytes that sign. As OpenAI's clients read a secret: base64 behind `whsec_`, else the text itself."""
    if secret.startswith(SECRET_PREFIX):
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    return secret.encode()


def is_wanted(name: str, globs: Iterable[str]) -> bool:
    """Whether one of the globs means this event."""
    return any(fnmatch.fnmatchcase(name, glob) for glob in globs)


# -- reading ----------------------------------------------------------------------------------------------------------


def read_subscription(value: Any) -> Subscription:
    """One webhook, from the URL alone or from a table with `url`, `secret`, `events`.

    Raises:
        InvalidRequest: Naming the field in `param` and in the text, never showing the secret.
    """
    if isinstance(value, Subscription):
        return value
    if isinstance(value, str):
        return Subscription(check_url(value))
    if not isinstance(value, dict):
        raise InvalidRequest("a webhook is a URL, or a table with url, secret and events")
    unknown = sorted(set(value) - {"url", "secret", "events"})
    if unknown:
        raise InvalidRequest(f"a webhook has no {unknown[0]!r}; allowed: url, secret, events", param=unknown[0])
    if value.get("url") is None:
        raise MissingParameter("url is required: where the events go", param="url")
    secret, events = value.get("secret"), value.get("events")
    return Subscription(
        check_url(value["url"]),
        "" if secret is None else check_secret(secret),
        DEFAULT_EVENTS if events is None else check_globs(events, "events"),
    )


def read_subscriptions(value: Any) -> tuple[Subscription, ...]:
    """Several webhooks: a list of what `read_subscription` takes; as text, JSON or URLs separated by commas.

    Raises:
        InvalidRequest: Its text begins with the place, such as `webhooks[1]`.
    """
    if isinstance(value, str):
        value = _from_text(value)
    if not isinstance(value, list | tuple):
        raise InvalidRequest("webhooks is a list: one [[webhooks]] table each, with url, secret and events")
    items: list[Any] = []
    for item in value:  # a flag's value may be JSON, too: a table, or several
        items += _from_text(item) if _is_json(item) else [item]
    found: list[Subscription] = []
    for position, item in enumerate(items):
        place = f"webhooks[{position}]"
        try:
            one = read_subscription(item)
        except InvalidRequest as error:
            param = f"{place}.{error.param}" if error.param else place
            raise InvalidRequest(f"{place}: {error.message}", param=param) from error
        if one.url in {other.url for other in found}:
            raise InvalidRequest(
                f"{place}: {one.url} is there twice; give it all its events in one place", param=f"{place}.url"
            )
        found.append(one)
    return tuple(found)


def _from_text(text: str) -> Any:
    if _is_json(text):
        value = _from_json(text)
        return [value] if isinstance(value, dict) else value
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_json(value: Any) -> bool:
    return isinstance(value, str) and value.lstrip().startswith(("[", "{"))


def _from_json(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidRequest(f"webhooks look like JSON but are none: {error}") from error


def check_url(url: Any) -> str:
    """An http or https URL with a host and without a password.

    Raises:
        InvalidRequest
    """
    if not isinstance(url, str):
        raise InvalidRequest(f"url is {url!r}; allowed: an http or https URL", param="url")
    url = url.strip()
    if len(url) > MAX_URL:
        raise InvalidRequest(f"url has {len(url)} characters; allowed: at most {MAX_URL}", param="url")
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in {"http", "https"} and _is_host(parts.hostname or "") and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or not url.isascii() or any(character.isspace() or not character.isprintable() for character in url):
        raise InvalidRequest(f"url is {url!r}; allowed: an http or https URL with a host", param="url")
    if "@" in parts.netloc:
        # It would stand in every answer that shows the webhook.
        raise InvalidRequest("url holds a user name or password; sign deliveries with secret instead", param="url")
    return str(parts._replace(fragment="").geturl())


def _is_host(name: str) -> bool:
    """A name or an address; an international name in its ASCII form, xn--..."""
    return bool(name) and all(character.isalnum() or character in "-._:%" for character in name)


def check_secret(secret: Any) -> str:
    """`whsec_` and base64, or plain text.

    Raises:
        InvalidRequest
    """
    if not isinstance(secret, str):
        raise InvalidRequest("secret is not text", param="secret")
    if len(secret) > MAX_SECRET:
        raise InvalidRequest(f"secret has {len(secret)} characters; allowed: at most {MAX_SECRET}", param="secret")
    if secret.strip() != secret or not secret.isprintable():
        raise InvalidRequest("secret begins or ends with a blank, or holds a control character", param="secret")
    try:
        is_empty = bool(secret) and not secret_key(secret)
    except (binascii.Error, ValueError):
        is_empty = True
    if is_empty:
        raise InvalidRequest(f"secret begins with {SECRET_PREFIX}, but what follows is not base64", param="secret")
    return secret


def check_globs(globs: Any, param: str) -> tuple[str, ...]:
    """Globs over the names of events; one that means no event is a typing error.

    Raises:
        InvalidRequest
    """
    if not isinstance(globs, list | tuple) or not all(isinstance(glob, str) for glob in globs):
        raise InvalidRequest(f'{param} is {globs!r}; allowed: a list such as ["model.*"]', param=param)
    if not 1 <= len(globs) <= MAX_GLOBS:
        raise InvalidRequest(f"{param} has {len(globs)} entries; allowed: 1 to {MAX_GLOBS}", param=param)
    for position, glob in enumerate(globs):
        if not any(fnmatch.fnmatchcase(name, glob) for name in EVENT_NAMES):
            place = f"{param}[{position}]"
            raise InvalidRequest(f"{place} is {glob!r}, which means no event; there are {_listed(EVENT_NAMES)}", param=place)
    return tuple(dict.fromkeys(globs))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)
