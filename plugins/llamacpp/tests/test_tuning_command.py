"""`hostler tune` as it is typed: flags, what it prints, and the real model."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from hostler.library.store import Library
from hostler_llamacpp.tuning.commands import tune
from support.workers import wait_until

from .tuning_home import home_with

HOSTLER = [sys.executable, "-m", "hostler"]
LIMIT_S = 1500
"""A bound for what hangs. What a tuning takes depends on who else works on the machine, and rounds that are disturbed are
repeated."""


def call(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HOSTLER, "--home", str(home), "tune", *arguments], capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["m", "--choose", "Q8_0"], "--choose says what --apply keeps"),
        (["m", "--revert", "--apply"], "--revert takes back"),
        (["m", "--max-loss", "lots"], "'lots' is no share; write 1% or 0.01"),
        (["m", "--max-loss", "-3%"], "is no share"),
        ([], "Missing argument 'MODEL'"),
    ],
)
def test_flags_that_contradict_each_other_are_usage_errors(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(tune, arguments)

    assert result.exit_code == 2
    assert said in result.output


def test_loss_may_be_written_as_a_share_or_in_per_cent() -> None:
    [option] = [one for one in tune.params if one.name == "max_loss"]
    context = click.Context(tune)

    assert option.type.convert("1%", option, context) == option.type.convert("0.01", option, context) == 0.01


def test_unknown_model_is_one_clear_line(tmp_path: Path) -> None:
    done = call(tmp_path / "home", "nope")

    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == "Error: The model nope does not exist"


def test_command_imports_nothing_heavy_before_it_runs() -> None:
    code = (
        "import sys, hostler.cli\n"
        "from hostler_llamacpp.tuning import commands, applying, job, report, plot\n"
        "print(sorted({'llama_cpp', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


def has_ended(group: int) -> bool:
    """Whether every process of a group has."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for one process")
def test_ctrl_c_leaves_no_process_and_the_next_command_goes_on(tmp_path: Path, models: Path) -> None:
    settings = home_with(tmp_path / "home", tiny=models / "llama.gguf")
    command = [*HOSTLER, "--home", str(settings.home), "tune", "tiny", "--quick", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    n_done = 0
    while n_done < 2:  # the first one is surely kept when the second is told
        n_done += json.loads(process.stdout.readline()).get("state") == "done"
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the command and its child
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "interrupted; the same command goes on where it was" in errors
    wait_until(lambda: has_ended(process.pid), "the end of the command's last process")

    again = call(settings.home, "tiny", "--quick", "--json")

    assert again.returncode == 0, again.stderr
    lines = [json.loads(line) for line in again.stdout.splitlines()]
    assert any("are known" in line.get("note", "") for line in lines)
    assert lines[-1]["state"] == "tuned"


@pytest.mark.weights
def test_quick_tuning_of_the_default_model_applies_and_reverts(smollm2_path: Path, tmp_path: Path) -> None:
    settings = home_with(tmp_path / "home", smol=smollm2_path)
    digest = smollm2_path.stat()
    before = Library(settings.home, {}).find("smol").manifest.settings

    done = call(settings.home, "smol", "--quick", "--json", "--apply", "--choose", "Q8_0")

    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    [result] = [line["result"] for line in lines if line.get("state") == "tuned"]
    found = {one["name"]: one for one in result["variants"]}
    assert list(found) == ["original", "Q8_0", "IQ4_NL", "Q4_0"]
    assert abs(found["Q8_0"]["loss"]["change"]) < 0.01
    assert found["Q8_0"]["loss"]["kl"] < 0.02 < found["IQ4_NL"]["loss"]["kl"] < 0.3
    assert lines[-1]["state"] == "applied"
    library = Library(settings.home, {})
    assert library.find("smol").manifest.metadata["quantization"] == "Q8_0"
    assert Path(library.files("smol").primary).stat().st_size == found["Q8_0"]["size_bytes"]

    reverted = call(settings.home, "smol", "--revert")

    # Whether settings were changed, too, is up to what was measured.
    assert re.fullmatch(r"smol runs its own file( with .+)? from its next start on", reverted.stdout.strip())
    library = Library(settings.home, {})
    assert library.find("smol").manifest.settings == before
    assert Path(library.files("smol").primary) == smollm2_path
    assert smollm2_path.stat() == digest
