"""Runs a command that takes minutes and says every few seconds how far it is; all its output goes to a log.

    show_progress.py LOG -- COMMAND...

Steps are read off ninja's `[12/345] ...` lines, which pip passes on with `-v`. Ends with the command's exit code; when that is
not 0, the end of the log is shown.
"""

from __future__ import annotations

import re
import select
import subprocess
import sys
import time
from pathlib import Path

SAY_EVERY_S = 10.0
TAIL_LINES = 60
STEP = re.compile(r"\[(\d+)/(\d+)\]\s+(.*)")


def main(log: Path, command: list[str]) -> int:
    """Run it."""
    started = time.monotonic()
    next_word = started + SAY_EVERY_S
    step = "getting ready"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        rest = b""
        while True:
            # Waits on the output, but not longer than until the next word to the user.
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, next_word - time.monotonic()))
            if ready:
                chunk = process.stdout.read1(65536)
                if not chunk:
                    break
                sink.write(chunk)
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    step = describe(line.decode(errors="replace"), step)
            if time.monotonic() >= next_word:
                next_word += SAY_EVERY_S
                minutes, seconds = divmod(int(time.monotonic() - started), 60)
                sys.stdout.write(f"  {minutes:2d}m{seconds:02d}s  {step}\n")
                sys.stdout.flush()
        code = process.wait()
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        sys.stdout.write("\n".join(lines[-TAIL_LINES:]) + f"\n\nit failed; the whole output is in {log}\n")
    return code


def describe(line: str, step: str) -> str:
    """What the line says of the progress; the step before when it says nothing."""
    found = STEP.search(line)
    if found:
        what = found[3].rsplit("/", 1)[-1][:60]
        return f"{found[1]} of {found[2]}: {what}"
    words = line.strip()
    if words.startswith(("Collecting ", "Downloading ", "Building wheel", "Building editable", "Installing ")):
        return words[:80]
    return step


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[3:]))
