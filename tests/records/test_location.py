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
