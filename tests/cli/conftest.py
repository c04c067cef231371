"""A home of its own for commands that run in the test's process."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.cli import run


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with the echo model `parrot`; where another one is wanted the test's file has a fixture of that name."""
    (tmp_path / "parrot.echo").write_text("{}")
    path = tmp_path / "home"
    run(path, "import", str(tmp_path / "parrot.echo"))
    return path
