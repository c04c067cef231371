"""The checks of the engine contract: `CHECKS` holds them by name, in the order of the imports below. Floor 2, tests only."""

# Imported for what they register, in the order in which the checks should run.
from hostler.testing.checks import loading as loading  # isort: skip
from hostler.testing.checks import tokens as tokens  # isort: skip
from hostler.testing.checks import streaming as streaming  # isort: skip
from hostler.testing.checks import interrupting as interrupting  # isort: skip
from hostler.testing.checks import choosing as choosing  # isort: skip
from hostler.testing.checks import sharing as sharing  # isort: skip
from hostler.testing.checks import resources as resources  # isort: skip
from hostler.testing.checks.registry import CHECKS

__all__ = ["CHECKS"]
