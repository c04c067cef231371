"""Which revisions of the tables this program knows, and what it says of others.

Floor 1; any thread. Knows neither SQLAlchemy nor Alembic, so that a server can look before it announces itself. A test
compares the list with the scripts in migrations/versions.
"""

from __future__ import annotations

from hostler.errors import StorageUnavailable

REVISIONS = ("0001",)
"""Oldest first; a new script in migrations/versions brings its line here."""
HEAD = REVISIONS[-1]
VERSION_TABLE = "hostler_revision"
"""Where Alembic keeps the revision; not its default name, which other programs of a shared PostgreSQL use."""


def refuse_unknown(revision: str, where: str) -> None:
    """Refuse a database that a newer hostler has changed: this one could only damage it.

    Raises:
        StorageUnavailable
    """
    if revision not in REVISIONS:
        raise StorageUnavailable(
            f"{where} was written by a newer hostler (its revision is {revision}, this one knows up to {HEAD}); install "
            f"that version again, put back the copy it made before it changed the file, or choose another place with "
            f"--database"
        )
