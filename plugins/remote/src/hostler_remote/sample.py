"""What `hostler plugins check remote --model MODEL` checks the engine with. Imported in its process alone."""

from __future__ import annotations

from pathlib import Path

from hostler import EngineSettings
from hostler.testing import Sample


def sample(folder: Path) -> Sample:  # noqa: ARG001 - the kit's signature
    """No model: whose upstream it should be is for the user to say."""
    return Sample(settings=EngineSettings(ctx_len=0, n_parallel=3))
