"""Why a worker process ended: the exit codes of the child, and the report that the supervisor makes of an end.

Floor 3, used on both sides: the child picks a code from the table, the host reads it back. Knows no engine and no state.

    code  name               the worker ended because
    0     ORDERLY            it was told to stop and its engine is closed
    81    HOST_GONE          standard input ended: the host is dead (nobody reads this code)
    82    LOAD_FAILED        the engine refused the model; LoadFailed was sent before
    83    ENGINE_BUG         `step` (or `cancel`) raised; the traceback is in the output
    84    TEMPLATE_STUCK     a chat template (or the tokenizer) would not end and could not be stopped
    85    OUT_OF_MEMORY      Python raised MemoryError in the engine
    86    PROTOCOL           host and worker do not understand each other: different versions, nonsense on the pipe
"""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

ORDERLY = 0
HOST_GONE = 81
LOAD_FAILED = 82
ENGINE_BUG = 83
TEMPLATE_STUCK = 84
OUT_OF_MEMORY = 85
PROTOCOL = 86

_MEANINGS = {
    LOAD_FAILED: "the engine could not load the model",
    ENGINE_BUG: "the engine raised an exception",
    TEMPLATE_STUCK: "the chat template or the tokenizer would not end",
    OUT_OF_MEMORY: "the engine ran out of memory",
    PROTOCOL: "host and worker do not understand each other; are both of the same hostler version?",
}


@dataclass(frozen=True)
class ExitReport:
    """One worker's end, as a person should read it."""

    kind: str
    """`exited`, `signalled`, `out_of_memory`, `stopped` (we asked), `stalled`, `start_timeout`, `babbled` (we killed it),
    `spawn_failed`."""
    code: int | None = None
    """Exit code, when it exited."""
    signal: str | None = None
    """`SIGSEGV`, when a signal ended it."""
    detail: str = ""
    """What else is known, such as how long it stood still."""
    last_output: str = ""
    """The last lines it wrote to its standard output and error."""

    @property
    def reason(self) -> str:
        """One clause without the output: `was killed by SIGSEGV`."""
        match self.kind:
            case "stopped":
                text = "was stopped"
            case "stalled":
                text = "stood still and was killed"
            case "start_timeout":
                text = "made no progress with loading and was killed"
            case "out_of_memory":
                text = "ran out of memory"
            case "babbled":
                text = "lost its control pipe and was killed"
            case "spawn_failed":
                text = "could not be started"
            case "signalled":
                text = f"was killed by {self.signal}"
            case _:
                meaning = _MEANINGS.get(self.code or 0)
                text = f"exited with code {self.code}" + (f" ({meaning})" if meaning else "")
        return f"{text}: {self.detail}" if self.detail else text

    def text(self) -> str:
        """Reason and last output together."""
        if not self.last_output:
            return self.reason
        return f"{self.reason}. Its last output:\n{self.last_output}"


def classify(
    returncode: int, *, asked_for: str | None, detail: str, oom_kills: int, last_output: str
) -> ExitReport:
    """Make the report of a finished process.

    Args:
        returncode: As Popen gives it: negative for a signal.
        asked_for: Why we ended it ourselves (`stopped`, `stalled`, ...); None: we did not.
        detail: More on `asked_for`.
        oom_kills: How many processes the kernel killed for memory while this one lived.
        last_output: The last lines of its output.
    """
    code = returncode if returncode >= 0 else None
    name = _signal_name(-returncode) if returncode < 0 else None
    if asked_for is not None:
        return ExitReport(asked_for, code, name, detail, last_output)
    if code == OUT_OF_MEMORY:
        return ExitReport("out_of_memory", code, None, "", last_output)
    if name == "SIGKILL" and oom_kills > 0:
        return ExitReport("out_of_memory", None, name, "the system's out-of-memory killer ended it", last_output)
    if name is not None:
        return ExitReport("signalled", None, name, detail, last_output)
    return ExitReport("exited", code, None, detail, last_output)


def oom_kill_count() -> int:
    """How many processes the kernel has killed for want of memory, here and in this control group; 0 where unknown."""
    return sum(_counter(path, key) for path, key in _oom_sources())


def _oom_sources() -> list[tuple[Path, str]]:
    # A cgroup's own limit kills without touching the machine's counter on older kernels, so both are asked.
    sources = [(Path("/proc/vmstat"), "oom_kill")]
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return sources
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            sources.append((Path("/sys/fs/cgroup", path.lstrip("/"), "memory.events"), "oom_kill"))
        elif "memory" in controllers.split(","):
            sources.append((Path("/sys/fs/cgroup/memory", path.lstrip("/"), "memory.oom_control"), "oom_kill"))
    return sources


def _counter(path: Path, key: str) -> int:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        pass  # no such file on this system: the counter is unknown, and 0 never grows
    return 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
