"""The checks of the engine contract: `CHECKS` holds them by name, in the order of the imports below, and `MESSAGE_CHECKS`
those of engines that take messages. Floor 2, tests only."""

# Imported for what they register, in the order in which the checks should run.
from hostler.testing.rules import loading as loading  # isort: skip
from hostler.testing.rules import messages as messages  # isort: skip
from hostler.testing.rules import tokens as tokens  # isort: skip
from hostler.testing.rules import streaming as streaming  # isort: skip
from hostler.testing.rules import interrupting as interrupting  # isort: skip
from hostler.testing.rules import choosing as choosing  # isort: skip
from hostler.testing.rules import guiding as guiding  # isort: skip
from hostler.testing.rules import sharing as sharing  # isort: skip
from hostler.testing.rules import resources as resources  # isort: skip
from hostler.testing.rules.registry import CHECKS, MESSAGE_CHECKS

__all__ = ["CHECKS", "MESSAGE_CHECKS"]
