"""Commands of `hostler`, run in the test's process."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner, Result

from hostler.cli import cli


def run(home: Path, *arguments: str, code: int = 0) -> Result:
    """Run one over a home; it must end with this exit code."""
    done = CliRunner().invoke(cli, ["--home", str(home), *arguments])
    assert done.exit_code == code, done.output
    return done
