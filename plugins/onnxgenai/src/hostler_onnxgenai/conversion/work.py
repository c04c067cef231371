"""The folder in which one conversion is done: what is finished, kept over kill -9. Process of the command."""

from __future__ import annotations

from pathlib import Path

from hostler import WorkFolder, WorkRuns


class ConversionRuns(WorkRuns):
    """Another command works on the same conversion."""

    code = "conversion_runs"


class Work(WorkFolder):
    """One conversion's folder."""

    def __init__(self, home: Path, name: str) -> None:
        """Nothing is made yet.

        Args:
            name: What tells this conversion from others: source, device and precision.
        """
        super().__init__(home / "conversions", name, doing="converted", runs=ConversionRuns)
