"""The steps of a conversion, each in a process of its own: the heavy libraries are imported there and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hostler import ShowStep
from hostler import StepFailed as AnyStepFailed
from hostler import run_step as run_any_step

STEPS = Path(__file__).parent / "steps"
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "GOMP_SPINCOUNT": "10000",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
}
"""A conversion needs no network and tells nobody; its threads do not spin for ever beside busy neighbours."""


class StepFailed(AnyStepFailed):
    """A step ended without a result; the text says which, why, and where its log is."""

    code = "conversion_failed"


def run_step(
    python: str, step: str, arguments: Mapping[str, Any], *, log: Path, show: ShowStep, steps: Path = STEPS
) -> dict[str, Any]:
    """As hostler.run_step.

    Args:
        python: Interpreter; it needs the step's libraries, hostler it does not need.
        step: Name of a module in `steps`.
        steps: Folder of the modules.

    Raises:
        StepFailed
    """
    return run_any_step(steps, step, arguments, log=log, show=show, python=python, environment=OFFLINE, failure=StepFailed)
