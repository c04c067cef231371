"""What `hostler plugins check echo` checks the engine with. Imported in its process alone."""

from __future__ import annotations

from pathlib import Path

from hostler import ModelFiles
from hostler.testing import Sample


def sample(folder: Path) -> Sample:
    """A model with all defaults."""
    path = folder / "parrot.echo"
    path.write_text("{}")
    return Sample(ModelFiles(str(path), "echo"))
