"""What a worker process settles with the system before anything else: its descriptors, its signals, its parent.

Floor 3, in the worker, main thread, once, before any import that is not hostler's own. It must not know messages.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import sys
from typing import BinaryIO

from hostler.worker import exits

_PR_SET_PDEATHSIG = 1
_OOM_SCORE = 500
"""Added to the share of memory in use (0 to 1000) that the kernel judges by: it shall end workers before the host."""


def take_control_streams() -> tuple[BinaryIO, BinaryIO]:
    """Move the control streams away from descriptors 0 and 1.

    A library that prints writes to the log from now on, one that reads gets end of file, and none of the worker's own
    children inherits the pipes.

    Returns:
        What the host writes, and what it reads (unbuffered).
    """
    control_in = os.fdopen(os.dup(0), "rb")
    control_out = os.fdopen(os.dup(1), "wb", buffering=0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        # Last words count: a buffer would die with the process.
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    return control_in, control_out


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process with its parent, where it can (Linux); exit if the parent is gone already.

    The pipe's end says the same to a healthy worker; this is for one that holds Python's lock in native code. It fires
    when the spawning *thread* ends, so that one must live as long as the host.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(exits.HOST_GONE)
    try:
        with open("/proc/self/oom_score_adj", "w") as stream:
            stream.write(str(_OOM_SCORE))
    except OSError:
        pass  # a sandbox without /proc: the kernel judges by size alone, which mostly comes to the same


def set_signals() -> None:
    """Ctrl-C belongs to the host; crashes and SIGUSR2 print every thread's traceback to the log."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    if hasattr(signal, "SIGUSR2"):
        faulthandler.register(signal.SIGUSR2, all_threads=True)
