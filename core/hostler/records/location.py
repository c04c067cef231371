"""Where records are kept: the file of a home, or what the setting `database` names.

Floor 1; any thread. Reads nothing and loads no driver.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct

from hostler.errors import ConfigError

DATABASE_FILE = "hostler.db"

_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")


class Location(Struct, frozen=True):
    """One database."""

    url: str
    """As SQLAlchemy takes it; it may hold a password."""
    path: Path | None
    """The file, when it is SQLite."""
    where: str
    """For people: the file, or the URL without its password."""

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
        return _sqlite(home / DATABASE_FILE)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        return _sqlite(home / rest[1:])  # sqlite:///name is relative, sqlite:////name absolute
    if scheme in _POSTGRESQL and rest:
        return Location(f"postgresql+psycopg://{rest}", None, f"postgresql://{_without_password(rest)}")
    shown = f"{scheme}://..." if rest else "something that is no URL"
    raise ConfigError(
        f"database is {shown}; hostler keeps records in postgresql://user:password@host/name or sqlite:///file, and "
        f"without the setting in {home / DATABASE_FILE}",
        param="database",
    )


def _sqlite(path: Path) -> Location:
    return Location("sqlite:///", path, str(path))


def _without_password(rest: str) -> str:
    parts = urlsplit(f"//{rest}")
    user, _, address = parts.netloc.rpartition("@")
    name = user.partition(":")[0]
    # The query may hold a password, too.
    return f"{name + '@' if name else ''}{address}{parts.path}"
