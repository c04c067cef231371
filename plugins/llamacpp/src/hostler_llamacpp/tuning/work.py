"""The folder in which one model is tuned: what was measured, kept over kill -9. Process of the command."""

from __future__ import annotations

from pathlib import Path

from hostler import WorkFolder, WorkRuns


class TuningRuns(WorkRuns):
    """Another command works on the same model."""

    code = "tuning_runs"


class Work(WorkFolder):
    """One model's folder. Beside results it holds files to measure, which are taken away when the command is through."""

    def __init__(self, home: Path, model_id: str) -> None:
        super().__init__(home / "tunings", model_id, doing="tuned", runs=TuningRuns)
