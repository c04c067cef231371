"""`--require-weights`: the run fails when no test that carries the marker `weights` has passed.

Without it a run whose models could not be had, or whose markers were misspelt, would look as good as a real one.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--require-weights", action="store_true", help="fail if no test on real weights passed")


def pytest_configure(config: pytest.Config) -> None:
    """Start counting when asked to."""
    if config.getoption("--require-weights"):
        config.pluginmanager.register(WeightsGate(), "weights-gate")


class WeightsGate:
    """Counts what passed."""

    def __init__(self) -> None:
        self.n_passed = 0

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test whose body passed."""
        if report.when == "call" and report.passed and "weights" in report.keywords:
            self.n_passed += 1

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Turn success without a single one into failure."""
        if self.n_passed == 0 and exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Say it."""
        if self.n_passed == 0:
            terminalreporter.write_line("no test on real weights passed (marker `weights`), so this run fails", red=True)
        else:
            terminalreporter.write_line(f"{self.n_passed} tests passed on real weights")
