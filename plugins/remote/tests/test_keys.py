"""Keys: where they come from, and that they go nowhere else than into their header."""

from __future__ import annotations

import sys
from types import ModuleType

import keyring
import keyring.errors
import pytest
from keyring.backend import KeyringBackend

from hostler import ModelLoadFailed
from hostler_remote.description import Description
from hostler_remote.keys import Key, read_key

BASE = {"url": "https://api.example/v1", "model": "m"}
SECRET = "sk-abcdef0123456789"


class Drawer(KeyringBackend):
    """A keyring of this process."""

    priority = 1  # type: ignore[assignment]

    def __init__(self, is_locked: bool = False) -> None:
        super().__init__()
        self.is_locked = is_locked

    def get_password(self, service: str, username: str) -> str | None:
        if self.is_locked:
            raise keyring.errors.KeyringLocked("it is locked")
        return SECRET if (service, username) == ("far", "hostler") else None

    def set_password(self, service: str, username: str, password: str) -> None:
        raise NotImplementedError

    def delete_password(self, service: str, username: str) -> None:
        raise NotImplementedError


@pytest.fixture
def drawer():
    before = keyring.get_keyring()
    drawer = Drawer()
    keyring.set_keyring(drawer)
    yield drawer
    keyring.set_keyring(before)


def test_a_key_comes_from_the_environment_and_goes_into_its_header() -> None:
    key = read_key(Description(**BASE, key_env="FAR_KEY"), {"FAR_KEY": f" {SECRET}\n"})

    assert key.header("authorization") == {"authorization": f"Bearer {SECRET}"}
    assert key.header("api-key") == {"api-key": SECRET}


def test_without_a_key_there_is_no_header() -> None:
    key = read_key(Description(**BASE))

    assert not key
    assert key.header("authorization") == {}


def test_a_key_does_not_print() -> None:
    key = Key(SECRET)

    assert SECRET not in f"{key!r} {key}"
    assert key.hide(f"bad key {SECRET}!") == "bad key ***!"


@pytest.mark.parametrize("value", ["", "  ", None])
def test_a_variable_that_is_not_set_is_named(value: str | None) -> None:
    environ = {} if value is None else {"FAR_KEY": value}

    with pytest.raises(ModelLoadFailed, match=r"the environment variable FAR_KEY.* is not set"):
        read_key(Description(**BASE, key_env="FAR_KEY"), environ)


@pytest.mark.parametrize("value", [f"{SECRET}\r\nx: y", f"{SECRET} two", f"{SECRET}é", f"{SECRET}\x00"])
def test_what_cannot_be_a_key_is_refused_and_not_shown(value: str) -> None:
    with pytest.raises(ModelLoadFailed, match="cannot be a key") as caught:
        read_key(Description(**BASE, key_env="FAR_KEY"), {"FAR_KEY": value})

    assert SECRET not in str(caught.value)


@pytest.mark.usefixtures("drawer")
def test_a_key_comes_from_the_keyring() -> None:
    key = read_key(Description(**BASE, key_keyring="far"))

    assert key.header("authorization") == {"authorization": f"Bearer {SECRET}"}


@pytest.mark.usefixtures("drawer")
def test_an_entry_that_does_not_exist_says_how_to_make_it() -> None:
    with pytest.raises(ModelLoadFailed, match="make it with: keyring set other me"):
        read_key(Description(**BASE, key_keyring="other", key_user="me"))


def test_a_keyring_that_is_locked_is_an_error(drawer: Drawer) -> None:
    drawer.is_locked = True

    with pytest.raises(ModelLoadFailed, match="cannot be read: KeyringLocked: it is locked"):
        read_key(Description(**BASE, key_keyring="far"))


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)  # type: ignore[arg-type]

    with pytest.raises(ModelLoadFailed, match=r"pip install 'hostler-remote\[keyring\]'"):
        read_key(Description(**BASE, key_keyring="far"))
    assert not isinstance(sys.modules["keyring"], ModuleType)
