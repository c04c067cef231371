"""The model file of a remote model: a small JSON or TOML text that says which upstream it is and how to talk to it.

Pure, any process. A key never stands in it: only the name of the environment variable, or of the keyring's entry, that has it.
"""

from __future__ import annotations

import ipaddress
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from hostler import InvalidModelFile

FORMAT = "remote"
MAX_BYTES = 64 * 1024
NO_PROXY = "none"
Kind = Literal["other", "hostler", "llamacpp", "vllm", "sglang", "ollama", "openai"]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "api-key", "x-api-key", "x-goog-api-key"})
OWN_HEADERS = frozenset(
    {"host", "connection", "content-length", "content-type", "transfer-encoding", "accept", "accept-encoding", "user-agent"}
)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Description(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One upstream model."""

    url: str
    """What `/chat/completions` is appended to: `https://api.openai.com/v1`."""
    model: str
    """Its name there."""
    key_env: str = ""
    """Environment variable of the server that holds the key."""
    key_keyring: str = ""
    """Service of the system's keyring that holds it."""
    key_user: str = "hostler"
    """User name of the keyring's entry."""
    key_header: str = "authorization"
    """Header that carries the key; in any other than this one it stands without `Bearer`."""
    headers: dict[str, str] = {}
    """Further headers of every request."""
    kind: Kind = "other"
    """What the upstream is, so which further parameters it takes and by which names; see dialect.py."""
    strict: bool = False
    """The upstream refuses or ignores what OpenAI does not know, so such parameters are refused here."""
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    chat: bool = True
    """It answers; false: it only embeds."""
    embeddings: bool = False
    """It embeds."""
    embed_batch: Annotated[int, Meta(ge=1, le=2048)] = 64
    """Inputs a request."""
    proxy: str = ""
    """Empty: as the environment says, and none for this machine itself; `none`; or a URL."""
    ca_file: str = ""
    """Certificates to be trusted beside the system's, as PEM."""
    connect_timeout_s: Seconds = 5.0
    first_byte_timeout_s: Seconds = 300.0
    """From the request to the head of its answer: a long prompt in a long queue."""
    idle_timeout_s: Seconds = 60.0
    """Between two bytes of an answer."""
    retries: Annotated[int, Meta(ge=0, le=10)] = 2
    """After the first attempt, before the first byte of an answer."""
    breaker_failures: Annotated[int, Meta(ge=1, le=1000)] = 5
    """Consecutive failures after which nobody is sent there for a while."""
    breaker_pause_s: Seconds = 10.0
    """That while."""

    @property
    def place(self) -> str:
        """The upstream as errors name it: `https://api.openai.com`."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def key_source(self) -> str:
        """Where the key comes from, for people; empty: there is none."""
        if self.key_env:
            return f"the environment variable {self.key_env}"
        return f"the keyring's entry {self.key_keyring} (user {self.key_user})" if self.key_keyring else ""

    @property
    def is_local(self) -> bool:
        """The upstream is on this machine."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost" or host.endswith(".localhost")


TUNING = frozenset(
    {
        "kind", "strict", "max_tokens_field", "embed_batch", "connect_timeout_s", "first_byte_timeout_s", "idle_timeout_s",
        "retries", "breaker_failures", "breaker_pause_s",
    }
)  # fmt: skip
"""What the model's setting `extra` may change for a run. Not where it goes and with which key."""


def read_description(path: Path) -> Description:
    """Read a model file.

    Raises:
        InvalidModelFile: With the reason.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidModelFile(f"{path} cannot be read: {error.strerror or error}", path=str(path)) from error
    if len(data) > MAX_BYTES:
        raise InvalidModelFile(f"{path} has more than {MAX_BYTES} bytes: no description of a remote model", path=str(path))
    try:
        return parse_description(data)
    except ValueError as error:
        raise InvalidModelFile(f"{path} is no description of a remote model: {error}", path=str(path)) from error


def parse_description(data: bytes) -> Description:
    """JSON, or else TOML, to a description.

    Raises:
        ValueError: With the reason.
    """
    try:
        fields = msgspec.json.decode(data) if data.lstrip()[:1] == b"{" else tomllib.loads(data.decode())
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"neither JSON nor TOML: {error}") from error
    return description_of(fields)


def description_of(fields: Any) -> Description:
    """Fields to a description.

    Raises:
        ValueError: With the reason.
    """
    for name in ("key", "api_key", "apikey", "token"):
        if isinstance(fields, Mapping) and name in fields:
            raise ValueError(f"keys do not belong in this file: put yours into a variable and name it in key_env, not {name}")
    try:
        description = msgspec.convert(fields, Description)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error
    description = msgspec.structs.replace(description, url=description.url.strip().rstrip("/"))
    _check_url("url", description.url)
    if not description.model:
        raise ValueError("model is empty: the name that the upstream knows it by")
    if not (description.chat or description.embeddings):
        raise ValueError("chat and embeddings are both false, so there is nothing to ask of it")
    if description.key_env and description.key_keyring:
        raise ValueError("key_env and key_keyring both name a key; choose one")
    if description.key_env and not _VARIABLE.fullmatch(description.key_env):
        # Not shown: whoever writes a key here would find it in the log.
        raise ValueError("key_env is no name of an environment variable; the key itself does not belong here")
    if description.proxy and description.proxy != NO_PROXY:
        _check_url("proxy", description.proxy)
    if description.ca_file and not os.path.isabs(description.ca_file):
        raise ValueError(f"ca_file is {description.ca_file!r}; give the whole path")
    _check_headers(description)
    return description


def with_tuning(description: Description, extra: Mapping[str, Any]) -> tuple[Description, tuple[str, ...]]:
    """A description with what the setting `extra` changes for a run, and warnings of what it cannot.

    Raises:
        ValueError: A bad value.
    """
    changes = {name: value for name, value in extra.items() if name in TUNING}
    warnings = tuple(f"the setting {name!r} means nothing to remote" for name in extra if name not in TUNING)
    fields = {**msgspec.to_builtins(description), **changes}
    return description_of(fields), warnings


def _check_url(name: str, url: str) -> None:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise ValueError(f"{name} is no URL: {error}") from error
    if "@" in parts.netloc:
        raise ValueError(f"{name} has a user name or password in it, which does not belong in this file")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name} is {url!r}; it must look like https://HOST/v1")
    if parts.query or parts.fragment or any(character.isspace() or ord(character) < 33 for character in url):
        raise ValueError(f"{name} is {url!r}; it may have no query, no fragment and no blanks")


def _check_headers(description: Description) -> None:
    if not _HEADER_NAME.fullmatch(description.key_header) or description.key_header.lower() in OWN_HEADERS:
        raise ValueError(f"key_header is {description.key_header!r}, which cannot carry a key")
    for name, value in description.headers.items():
        if not _HEADER_NAME.fullmatch(name) or not value.isascii() or not value.isprintable():
            raise ValueError(f"headers has {name!r}, whose name or value HTTP does not allow")
        if name.lower() in SECRET_HEADERS or name.lower() == description.key_header.lower():
            raise ValueError(f"headers has {name!r}: keys do not belong in this file; use key_env and key_header")
        if name.lower() in OWN_HEADERS:
            raise ValueError(f"headers has {name!r}, which hostler sets itself")
