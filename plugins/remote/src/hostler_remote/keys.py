"""The key of an upstream: read from the environment or the keyring when a model starts, kept in memory, shown to nobody.

In the worker, and in the process of `hostler remote check`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from hostler import ModelLoadFailed
from hostler_remote.description import Description

HIDDEN = "***"


class Key:
    """A key that does not print; empty: there is none."""

    def __init__(self, value: str = "") -> None:
        self._value = value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"<Key {HIDDEN}>" if self._value else "<no Key>"

    def header(self, name: str) -> dict[str, str]:
        """The header that carries it."""
        if not self._value:
            return {}
        return {name: f"Bearer {self._value}" if name.lower() == "authorization" else self._value}

    def hide(self, text: str) -> str:
        """A stranger's text without the key, should it be quoted there."""
        return text.replace(self._value, HIDDEN) if self._value else text


def read_key(description: Description, environ: Mapping[str, str] | None = None) -> Key:
    """Get the key from where the description says.

    Raises:
        ModelLoadFailed: It is not there, or cannot be a key.
    """
    source = description.key_source
    if description.key_env:
        value = (os.environ if environ is None else environ).get(description.key_env, "")
        if not value.strip():
            raise ModelLoadFailed(
                f"{source}, which holds the key for {description.place}, is not set; set it where hostler is started"
            )
    elif description.key_keyring:
        value = _from_keyring(description)
    else:
        return Key()
    value = value.strip()
    # SAFETY: a library that refuses a header shows it in its error.
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ModelLoadFailed(f"what {source} holds cannot be a key: it has blanks or letters that HTTP does not allow")
    return Key(value)


def _from_keyring(description: Description) -> str:
    source = description.key_source
    try:
        import keyring
        import keyring.errors
    except ImportError as error:
        raise ModelLoadFailed(
            f"{source} cannot be asked: the keyring library is missing; pip install 'hostler-remote[keyring]'"
        ) from error
    try:
        value = keyring.get_password(description.key_keyring, description.key_user)
    except (keyring.errors.KeyringError, OSError) as error:
        raise ModelLoadFailed(f"{source} cannot be read: {type(error).__name__}: {error}") from error
    if not value:
        raise ModelLoadFailed(
            f"{source} does not exist; make it with: keyring set {description.key_keyring} {description.key_user}"
        )
    return str(value)
