"""The Makefile's verbs and the scripts it calls; a whole build is what .ci/run is for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHOW_PROGRESS = ROOT / ".ci" / "show_progress.py"


def run(*command, **arguments) -> subprocess.CompletedProcess[str]:
    # Without the variables by which a make that runs these tests would steer the make inside.
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=environment, **arguments)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_lists_every_verb_with_its_meaning():
    lines = run("make", "help").stdout.splitlines()

    verbs = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert {"help", "install", "run", "test", "lint", "bench", "test-native"} <= verbs.keys()
    assert all(len(line.split()) > 2 for line in verbs.values())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_test_runs_the_native_tests_and_demands_real_weights(tmp_path):
    planned = run("make", "-n", "test", f"VENV={tmp_path / 'venv'}").stdout

    assert "cpp/tests/run.sh" in planned
    assert "--require-weights" in planned
    assert "not gpu" in planned


def test_ci_runs_lint_and_test():
    text = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

    assert "set -euo pipefail" in text
    assert re.findall(r"^make (\S+)$", text, re.MULTILINE) == ["lint", "test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_progress_passes_the_exit_code_on_and_shows_the_end_of_what_failed(tmp_path):
    script = "print('[3/9] Building CXX object a/b/ggml.cpp.o'); print('no such header'); raise SystemExit(7)"

    done = run(sys.executable, str(SHOW_PROGRESS), str(tmp_path / "log"), "--", sys.executable, "-c", script)

    assert done.returncode == 7
    assert "no such header" in done.stdout
    assert "[3/9]" in (tmp_path / "log").read_text()


def test_progress_of_what_succeeds_keeps_its_output_in_the_log(tmp_path):
    done = run(sys.executable, str(SHOW_PROGRESS), str(tmp_path / "log"), "--", sys.executable, "-c", "print('fine')")

    assert done.returncode == 0
    assert (tmp_path / "log").read_text() == "fine\n"
    assert "fine" not in done.stdout


def test_progress_reads_steps_off_ninja_s_lines():
    sys.path.insert(0, str(SHOW_PROGRESS.parent))
    try:
        from show_progress import describe
    finally:
        sys.path.pop(0)

    assert describe("  [12/345] Building CXX object x/y/ggml-cpu.cpp.o", "") == "12 of 345: ggml-cpu.cpp.o"
    assert describe("Collecting numpy>=1.20", "") == "Collecting numpy>=1.20"
    assert describe("noise", "before") == "before"


def test_nothing_in_the_tree_names_the_host_of_a_package_registry():
    names = ("pypi" + ".org", "python" + "hosted", "registry" + ".npmjs")  # in parts, so that this file names none itself
    listed = run("git", "ls-files", "-z").stdout
    if not listed:
        pytest.skip("not a git checkout")

    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if path.is_file() and path.suffix in {".toml", ".txt", ".cfg", ".lock", ".in", ""}:
            text = path.read_text(encoding="utf-8", errors="replace")
            assert not any(word in text for word in names), f"{name} names a registry's host"
