"""What `hostler plugins check onnxgenai` checks the engine with. Imported in its process alone."""

from __future__ import annotations

from pathlib import Path

from hostler import ModelFiles
from hostler.testing import Sample
from hostler_onnxgenai.tinymodel import write_llama

NEAR_TIE = 0.25
"""Log probabilities closer than this may swap places: models of 4 bits round their activations to 8, so that a prompt in
chunks and one in a piece are not quite the same (SmolLM2-135M: log probabilities up to 0.2 apart)."""


def sample(folder: Path) -> Sample:
    """A tiny model with random weights."""
    return Sample(ModelFiles(str(write_llama(folder / "tiny")), "onnxgenai"), allow_near_tie=NEAR_TIE)
