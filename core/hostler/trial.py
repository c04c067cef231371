"""New plugins on trial: a process of its own loads everything that is installed, before a server that runs does.

Floor 2. `try_plugins` runs in the server, `main` in the process (`python -m hostler.trial HOME`), which writes the name of
each plugin before it touches it, and at its end what took too long. A plugin that kills the process, or holds it up for good,
is so found without harm; another process then tries the others. One that is merely slow to come back is left out, too: in the
server it would cost a thread that nobody can end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

TIMEOUT_S = 60.0
"""For a whole trial; each import and each hook has a deadline of its own, and the interpreter's lock has one (patience.py)."""


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    begun: str = ""
    """A plugin."""
    delays: dict[str, str] | None = None
    """The last line: plugin -> what did not return in time."""


def try_plugins(home: Path, timeout_s: float = TIMEOUT_S) -> dict[str, str]:
    """Find the plugins that would harm a server.

    Returns:
        Plugin -> why it must not be loaded; with `home`'s disabled ones left out.
    """
    refused: dict[str, str] = {}
    while True:
        begun, delays, how = _try_once(home, refused, timeout_s)
        if delays is not None:
            return {**refused, **delays}
        if not begun or begun in refused:
            return refused  # it died of something else; the server loads the rest by itself, with its deadlines
        refused[begun] = f"is skipped: on trial {how}; `hostler plugins disable {begun}` leaves it out"


def _try_once(home: Path, refused: Mapping[str, str], timeout_s: float) -> tuple[str, dict[str, str] | None, str]:
    """The plugin that was touched last, what is too slow if it came to its end, and how it ended if not."""
    command = [sys.executable, "-P", "-m", "hostler.trial", str(home)]
    try:
        done = subprocess.run(
            command, input=msgspec.json.encode(dict(refused)), capture_output=True, timeout=timeout_s, check=False
        )
        output, how = done.stdout, "its process ended with " + _explain(done.returncode)
    except subprocess.TimeoutExpired as error:
        output, how = error.stdout or b"", f"its process did not end within {timeout_s:g} s"
    lines = [msgspec.json.decode(line, type=_Line) for line in output.splitlines() if line.endswith(b"}")]
    begun = next((line.begun for line in reversed(lines) if line.begun), "")
    return begun, next((line.delays for line in lines if line.delays is not None), None), how


def _explain(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def main(home: Path) -> None:
    """Load everything, telling of it on the real stdout, whatever plugins print."""
    from hostler.plugins import load_plugins

    refused = msgspec.json.decode(sys.stdin.buffer.read(), type=dict[str, str])
    answers = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answers, "wb") as stream:

        def tell(line: _Line) -> None:
            stream.write(msgspec.json.encode(line) + b"\n")
            stream.flush()

        plugins = load_plugins(home, refused=refused, before_each=lambda plugin: tell(_Line(plugin)))
        tell(_Line(delays={problem.plugin: _reason(problem.plugin, problem.message) for problem in plugins.delays}))


def _reason(plugin: str, message: str) -> str:
    """A problem's text without the name that is put before it again."""
    return message.removeprefix(f"plugin {plugin!r} ")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
