"""The setting `database`: which URLs are meant, and that no message shows a password."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler.errors import ConfigError
from hostler.records.location import locate
from hostler.records.store import Records

HOME = Path("/home/of/hostler")


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("", HOME / "hostler.db"),
        ("sqlite:///other.db", HOME / "other.db"),
        ("sqlite:////var/lib/hostler/with space?.db", Path("/var/lib/hostler/with space?.db")),
    ],
)
def test_a_file_is_found_in_the_home_or_where_the_url_says(url, path):
    location = locate(HOME, url)

    assert (location.path, location.where, location.is_sqlite) == (path, str(path), True)


@pytest.mark.parametrize(
    ("url", "is_private"),
    [("", True), ("sqlite:///other.db", True), ("sqlite:////var/lib/shared.db", False), ("postgresql://host/name", False)],
)
def test_a_database_outside_the_home_may_have_other_homes_at_work_on_it(url, is_private):
    assert locate(HOME, url).is_private is is_private


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_spelling_of_postgresql_is_one_driver(scheme):
    location = locate(HOME, f"{scheme}://user:secret@db.example:5432/hostler?sslmode=require&password=secret")

    assert location.url == "postgresql+psycopg://user:secret@db.example:5432/hostler?sslmode=require&password=secret"
    assert location.where == "postgresql://user@db.example:5432/hostler"
    assert not location.is_sqlite


@pytest.mark.parametrize(
    "url",
    ["mysql://user:secret@host/name", "hostler.db", "sqlite://", "sqlite:///", "postgresql://", "postgresql+asyncpg://h/n"],
)
def test_other_databases_are_refused_at_once_without_showing_the_password(url):
    with pytest.raises(ConfigError, match="hostler keeps records in postgresql://") as caught:
        Records(HOME, url)

    assert caught.value.param == "database"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("rest", "where"),
    [
        ("host/name", "host/name"),
        ("/name", "/name"),
        ("user@/name?host=/run/postgresql&password=secret", "user@/name"),
        ("user:s%2Fecret@[::1]:5432/name", "user@[::1]:5432/name"),
        ("h1,h2/name?target_session_attrs=read-write", "h1,h2/name"),
    ],
)
def test_what_is_shown_of_a_postgresql_has_neither_password_nor_query(rest, where):
    assert locate(HOME, f"postgresql://{rest}").where == f"postgresql://{where}"


@pytest.mark.parametrize(
    "rest",
    [
        "user:sec/ret@host/name",
        "user:sec#ret@host/name",
        "user:sec?ret@host/name",
        "user:sec@ret@host/name",
        "user:sec ret@host/name",
        "user:sec@[::1/name",
        "user@host:sec/name",
        "user:sec",
    ],
)
def test_a_url_whose_password_could_be_read_as_something_else_is_refused_without_showing_it(rest):
    with pytest.raises(ConfigError, match="percent-encoded") as caught:
        locate(HOME, f"postgresql://{rest}")

    assert caught.value.param == "database"
    assert "sec" not in caught.value.message
