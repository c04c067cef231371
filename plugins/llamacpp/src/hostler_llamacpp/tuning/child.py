"""The steps of a tuning, each in a process of its own: llama.cpp and numpy are imported there and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hostler import ShowStep
from hostler import StepFailed as AnyStepFailed
from hostler import run_step as run_any_step
from hostler_llamacpp import ENVIRONMENT

STEPS = Path(__file__).parent / "steps"


class StepFailed(AnyStepFailed):
    """A step ended without a result; the text says which, why, and where its log is."""

    code = "tuning_failed"


def run_step(step: str, arguments: Mapping[str, Any], *, log: Path, show: ShowStep) -> dict[str, Any]:
    """As hostler.run_step.

    Args:
        step: Name of a module in `steps`.

    Raises:
        StepFailed
    """
    ours = {name: value for name, value in ENVIRONMENT.items() if name not in os.environ}
    return run_any_step(STEPS, step, arguments, log=log, show=show, environment=ours, failure=StepFailed)
