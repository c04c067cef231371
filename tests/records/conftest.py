"""Each test of records runs twice: on SQLite in a fresh home, and on a PostgreSQL that the tests start themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler.records.store import Records


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """The setting `database` of a database with nothing in it."""
    return "" if request.param == "sqlite" else request.getfixturevalue("cleared_postgresql")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def records(home: Path, url: str) -> Iterator[Records]:
    """Records of a new home."""
    records = Records(home, url, default_model="smollm2")
    yield records
    records.close()


@pytest.fixture
def sqlite_records(home: Path) -> Iterator[Records]:
    """The same on SQLite only, where a test is about the file."""
    records = Records(home, default_model="smollm2")
    yield records
    records.close()
