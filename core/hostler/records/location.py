"""Where records are kept: the file of a home, or what the setting `database` names.

Floor 1; any thread. Reads nothing and loads no driver.
"""

from __future__ import annotations

import re
from pathlib import Path

from msgspec import Struct

from hostler.errors import ConfigError

DATABASE_FILE = "hostler.db"

_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_ADDRESS = re.compile(
    r"((?P<user>[^:/?#@\[\]\s]*)(:[^:/?#@\[\]\s]*)?@)?"
    r"(?P<host>(\[[0-9A-Fa-f:.%]+\]|[^:/?#@\[\]\s]*)(:[0-9]{1,5})?)"
    r"(?P<name>/[^?#\s]*)?(\?[^#\s]*)?"
)
"""What follows postgresql://. Stricter than SQLAlchemy, which takes passwords with / or ? in them: such a URL can be read in
two ways, and one of them would show a part of the password as the database's name."""


class Location(Struct, frozen=True):
    """One database."""

    url: str
    """As SQLAlchemy takes it; it may hold a password."""
    path: Path | None
    """The file, when it is SQLite."""
    where: str
    """For people: the file, or the URL without its password."""
    is_private: bool = False
    """It lies in the home, so no other home's hostler works on it."""

    @property
    def is_sqlite(self) -> bool:
        """SQLite, else PostgreSQL."""
        return self.path is not None


def locate(home: Path, url: str = "") -> Location:
    """Read the setting `database`.

    Raises:
        ConfigError: The URL names a database hostler has no driver for.
    """
    scheme, _, rest = url.partition("://")
    if not url:
        return _sqlite(home, DATABASE_FILE)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return _sqlite(home, rest[1:])  # sqlite:///name is relative, sqlite:////name absolute
    if scheme in _POSTGRESQL and rest:
        return _postgresql(rest)
    shown = f"{scheme}://..." if rest else "something that is no URL"
    raise ConfigError(
        f"database is {shown}; hostler keeps records in postgresql://user:password@host/name or sqlite:///file, and "
        f"without the setting in {home / DATABASE_FILE}",
        param="database",
    )


def _sqlite(home: Path, name: str) -> Location:
    path = home / name
    return Location("sqlite:///", path, str(path), is_private=path.is_relative_to(home))


def _postgresql(rest: str) -> Location:
    parts = _ADDRESS.fullmatch(rest)
    if parts is None:
        raise ConfigError(
            "database is a URL that cannot be read; it looks like postgresql://user:password@host:5432/name, and what stands "
            "for itself in user and password, such as : / ? # [ ] @, is percent-encoded there: %40 for @",
            param="database",
        )
    # Neither password nor query, which may hold a password, too.
    user = f"{parts['user']}@" if parts["user"] else ""
    return Location(f"postgresql+psycopg://{rest}", None, f"postgresql://{user}{parts['host']}{parts['name'] or ''}")
