"""Runs one step: `python runner.py FOLDER NAME`, spoken to as steps.py says.

Floor 2. A process of its own, in an interpreter that has the step's libraries and need not have hostler: it imports the
standard library alone, and loads the step by its path.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any


def main(folder: str, name: str) -> int:
    """Run the step; its result, or the reason why there is none, is the last line."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever libraries print, also in C, is the log's

    def say(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    arguments = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=end_with_the_command, daemon=True).start()
    try:
        spec = importlib.util.spec_from_file_location(f"hostler_step_{name}", Path(folder, f"{name}.py"))
        assert spec is not None
        assert spec.loader is not None
        step = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(step)
        result = step.run(arguments, lambda text, fraction=None: say(text=text, fraction=fraction))
    except KeyboardInterrupt:
        return 130
    except BaseException as error:  # noqa: BLE001 - whatever a library raises is the reason
        sys.excepthook(*sys.exc_info())  # for the log
        say(error=str(error) if hasattr(error, "is_told") else f"{type(error).__name__}: {error}")
        return 1
    say(result=result)
    return 0


def end_with_the_command() -> None:
    """Wait for the end of stdin, which the command holds open as long as it lives."""
    while os.read(0, 4096):
        pass
    os._exit(75)


if __name__ == "__main__":
    returncode = main(*sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(returncode)  # the result is said; what libraries do at an exit could only spoil it
