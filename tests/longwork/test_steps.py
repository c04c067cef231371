"""A step in a process of its own: what it says, how it fails, and that it does not outlive the command."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hostler.longwork.steps import StepFailed, run_step
from support.server import eventually, is_alive


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """A folder for steps."""
    folder = tmp_path / "steps"
    folder.mkdir()
    return folder


def run(steps: Path, code: str, **arguments: object):
    (steps / "made.py").write_text("import os, sys\ndef run(arguments, show):\n    " + code.replace("\n", "\n    "))
    shown: list[tuple[str, float | None]] = []
    log = steps.parent / "made.log"

    def show(text: str, fraction: float | None) -> None:
        shown.append((text, fraction))

    return run_step(steps, "made", arguments, log=log, show=show), shown, log


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


def test_a_step_has_the_commands_environment_and_what_it_is_given_over_it(
    steps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_COMMAND", "1")
    monkeypatch.setenv("GIVEN", "1")
    (steps / "made.py").write_text("import os\ndef run(arguments, show):\n    return dict(os.environ)")

    found = run_step(steps, "made", {}, log=tmp_path / "log", show=lambda *_: None, environment={"GIVEN": "2"})

    assert (found["FROM_COMMAND"], found["GIVEN"]) == ("1", "2")


def test_a_plugins_own_error_is_raised_where_it_is_given(steps: Path, tmp_path: Path) -> None:
    class PlanFailed(StepFailed):
        code = "plan_failed"

    with pytest.raises(PlanFailed, match="nothing failed"):
        run_step(steps, "nothing", {}, log=tmp_path / "log", show=lambda *_: None, failure=PlanFailed)


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
        run_step(steps, "made", {}, log=tmp_path / "x.log", show=lambda *_: None, python="/no/such/python")


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_step_ends_when_its_command_is_killed(steps: Path, tmp_path: Path) -> None:
    (steps / "made.py").write_text(
        "import os, time, pathlib\ndef run(arguments, show):\n"
        "    part = pathlib.Path(arguments['pid'] + '.part')\n    part.write_text(str(os.getpid()))\n"
        "    part.rename(arguments['pid'])\n    time.sleep(3600)\n"
    )
    pid_file = tmp_path / "pid"
    code = (
        "from pathlib import Path\nfrom hostler.longwork.steps import run_step\n"
        f"run_step(Path({str(steps)!r}), 'made', {{'pid': {str(pid_file)!r}}}, log=Path({str(tmp_path / 'log')!r}), "
        "show=lambda text, fraction: None)"
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
