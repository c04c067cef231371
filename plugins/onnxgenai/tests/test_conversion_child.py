"""A step in a process of its own: what it says, how it fails, and that it does not outlive the command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hostler_onnxgenai.conversion.child import STEPS, StepFailed, run_step
from support.server import eventually, is_alive


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """A folder of steps with the real runner."""
    folder = tmp_path / "steps"
    folder.mkdir()
    shutil.copy(STEPS / "__main__.py", folder)
    return folder


def run(steps: Path, code: str, **arguments: object):
    (steps / "made.py").write_text("import os, sys\ndef run(arguments, show):\n    " + code.replace("\n", "\n    "))
    shown: list[tuple[str, float | None]] = []
    log = steps.parent / "made.log"

    def show(text: str, fraction: float | None) -> None:
        shown.append((text, fraction))

    return run_step(sys.executable, "made", arguments, log=log, show=show, steps=steps), shown, log


def test_a_step_gets_its_arguments_and_gives_progress_and_a_result(steps: Path) -> None:
    result, shown, _ = run(steps, "show('half', 0.5)\nreturn {'twice': 2 * arguments['n'], 'text': 'ü'}", n=21)

    assert result == {"twice": 42, "text": "ü"}
    assert ("half", 0.5) in shown


def test_what_libraries_print_goes_into_the_log_and_disturbs_nothing(steps: Path) -> None:
    code = "print('from Python')\nos.write(1, b'{\"result\": 1}\\n')\nsys.stderr.write('a warning\\n')\nreturn {}"

    result, _, log = run(steps, code)

    assert result == {}
    assert set(log.read_text().split("\n")) >= {"from Python", '{"result": 1}', "a warning"}


def test_a_step_may_import_nothing_of_its_own_folder(steps: Path) -> None:
    """A step named like a library would take its place."""
    (steps / "json.py").write_text("raise RuntimeError('the wrong one')")

    result, _, _ = run(steps, "import json\nreturn {'where': json.__file__}")

    assert not result["where"].startswith(str(steps))


def test_no_network_and_no_telemetry_are_asked_for(steps: Path) -> None:
    result, _, _ = run(steps, "return {name: os.environ[name] for name in arguments['names']}", names=["HF_HUB_OFFLINE",
                       "TRANSFORMERS_OFFLINE", "ORT_DISABLE_TELEMETRY"])  # fmt: skip

    assert set(result.values()) == {"1"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('no such thing')", "made failed: ValueError: no such thing; its log is "),
        ("class Told(Exception): is_told = True\nraise Told('a sentence')", "made failed: a sentence; its log is "),
        ("sys.stderr.write('the last word\\n')\nos._exit(3)", "made ended with exit code 3 and no result.*the last word"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL, as the system does when memory runs out"),
        ("sys.exit('enough')", "made failed: SystemExit: enough"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("os.close(1); os.close(2); os._exit(0)", "made ended with exit code 0 and no result"),
    ],
)
def test_a_step_that_fails_says_why_and_where_its_log_is(steps: Path, code: str, message: str) -> None:
    with pytest.raises(StepFailed, match=message):
        run(steps, code)


def test_the_log_has_the_traceback(steps: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed):
        run(steps, "raise ValueError('no such thing')")

    assert "Traceback" in (tmp_path / "made.log").read_text()


def test_a_library_that_spoils_the_exit_spoils_nothing(steps: Path) -> None:
    result, _, _ = run(steps, "import atexit\natexit.register(os.abort)\nreturn {'done': True}")

    assert result == {"done": True}


def test_an_interpreter_that_is_not_there_is_named(steps: Path, tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="/no/such/python cannot be run"):
        run_step("/no/such/python", "made", {}, log=tmp_path / "x.log", show=lambda *_: None, steps=steps)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_step_ends_when_its_command_is_killed(steps: Path, tmp_path: Path) -> None:
    (steps / "made.py").write_text(
        "import os, time, pathlib\ndef run(arguments, show):\n"
        "    part = pathlib.Path(arguments['pid'] + '.part')\n    part.write_text(str(os.getpid()))\n"
        "    part.rename(arguments['pid'])\n    time.sleep(3600)\n"
    )
    pid_file = tmp_path / "pid"
    code = (
        "import sys\nfrom pathlib import Path\nfrom hostler_onnxgenai.conversion.child import run_step\n"
        f"run_step(sys.executable, 'made', {{'pid': {str(pid_file)!r}}}, log=Path({str(tmp_path / 'log')!r}), "
        f"show=lambda text, fraction: None, steps=Path({str(steps)!r}))"
    )
    command = subprocess.Popen([sys.executable, "-c", code])
    try:
        eventually(pid_file.exists, "the step runs")
        step = int(pid_file.read_text())
        os.kill(command.pid, 9)

        eventually(lambda: not is_alive(step), "the step has ended")
    finally:
        command.kill()
        command.wait()
