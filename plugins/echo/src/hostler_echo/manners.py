"""Bad manners on request: what the engine does wrong, when, and how it is asked to.

Runs in a worker, on the engine's thread. A request comes from the model file (`manners`), from the settings of a run
(any name below), or from a prompt that begins with `[[echo: NAME NAME=VALUE ...]]`; a later one wins. The host reads what a
model file says of them, so ctypes (6 ms) is imported by who needs it.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import threading
import time

import msgspec

from hostler import ModelLoadFailed, Progress

DIRECTIVE = re.compile(rb"\s*\[\[echo:(.*?)\]\][ \n]?", re.DOTALL)
N_LOAD_STEPS = 20

_leaked: list[bytearray] = []


class Manners(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Everything it can do wrong; by default nothing. Signals are numbers or names such as `SIGSEGV`."""

    # -- while loading
    load_s: float = 0.0
    """Take so many seconds, reporting progress."""
    load_hang: bool = False
    """Stop reporting progress and never finish."""
    load_refuse: str = ""
    """Refuse the model with this text."""
    load_raise: str = ""
    """Raise a RuntimeError, as a bug in an engine does."""
    load_die: int | str = 0
    """Die by this signal."""
    load_exit: int | None = None
    """Exit with this code."""
    load_print: str = ""
    """Print this to standard output, past Python, too."""
    load_oom: bool = False
    """Ask for more memory than there is: MemoryError."""

    # -- while answering, before the token number `at` of an answer
    at: int = 0
    """0: before the first token; -1: with the first chunk of the prompt."""
    hang: bool | str = False
    """Stand still for good; `gil`: while holding Python's global lock, so that no other thread runs either."""
    die: int | str = 0
    """Die by this signal."""
    exit: int | None = None
    """Exit with this code."""
    raise_: str = msgspec.field(default="", name="raise")
    """Raise a RuntimeError out of `step`, which is the end of the worker."""
    fail: str = ""
    """End this one sequence with an error of this text."""
    oom: bool = False
    """Ask for more memory than there is: MemoryError."""
    leak_bytes: int = 0
    """Take so much memory and never give it back."""
    print: str = ""
    """Print this to standard output, past Python, too."""

    # -- all the time
    delay_s: float = 0.0
    """Let each step that works on this answer take so many seconds longer."""
    flood: bool = False
    """Repeat the text until max_tokens."""
    ignore_sigterm: bool = False
    """Do not die of SIGTERM."""
    close_hang: bool = False
    """Never return from `close`."""

    @property
    def is_good(self) -> bool:
        """Nothing has to be done while answering, apart from what to say."""
        quiet = not (self.hang or self.die or self.raise_ or self.fail or self.oom or self.leak_bytes or self.print)
        return quiet and self.exit is None and self.delay_s <= 0


def manner_names() -> tuple[str, ...]:
    """All names, as users write them."""
    return tuple(field.encode_name for field in msgspec.structs.fields(Manners))


def merge(manners: Manners, wanted: dict[str, object], origin: str) -> Manners:
    """Manners with some replaced, as a user wrote them.

    Raises:
        ModelLoadFailed: A name or a value is wrong; the text says which.
    """
    try:
        return msgspec.convert({**msgspec.to_builtins(manners), **wanted}, Manners, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(manner_names())
        raise ModelLoadFailed(f"{origin} asks echo for manners it does not have: {error}; it knows {known}") from error


def read_directive(text: bytes) -> tuple[dict[str, object], bytes]:
    """Split a `[[echo: ...]]` off the beginning of a text."""
    match = DIRECTIVE.match(text)
    if match is None:
        return {}, text
    wanted: dict[str, object] = {}
    for word in shlex.split(match.group(1).decode("utf-8", "replace")):
        name, has_value, value = word.partition("=")
        wanted[name] = value if has_value else True
    return wanted, text[match.end() :]


# -- doing it -------------------------------------------------------------------------------------------------------


def misbehave_at_load(manners: Manners, path: str, progress: Progress) -> None:
    """Show the manners of a load.

    Raises:
        ModelLoadFailed: It was asked to refuse, or `progress` said no.
    """
    if manners.ignore_sigterm and os.name == "posix":
        # The engine's thread need not be the main one, the only one that signal.signal() takes; libc is not so strict.
        import ctypes

        ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(int(signal.SIG_IGN)))
    if manners.load_print:
        print_garbage(manners.load_print)
    for number in range(N_LOAD_STEPS if manners.load_s > 0 else 1):
        if not progress(number / N_LOAD_STEPS):
            raise ModelLoadFailed(f"{path}: the load was called off")
        time.sleep(manners.load_s / N_LOAD_STEPS)
    if manners.load_hang:
        stand_still()
    if manners.load_die:
        die(manners.load_die)
    if manners.load_exit is not None:
        os._exit(manners.load_exit)
    if manners.load_oom:
        run_out_of_memory()
    if manners.load_raise:
        raise RuntimeError(manners.load_raise)
    if manners.load_refuse:
        raise ModelLoadFailed(manners.load_refuse)
    if not progress(1.0):
        raise ModelLoadFailed(f"{path}: the load was called off")


def misbehave_in_step(manners: Manners) -> None:
    """Show the manners of an answer, save `fail`, `delay_s` and `flood`, which are the engine's to do."""
    if manners.print:
        print_garbage(manners.print)
    if manners.leak_bytes:
        _leaked.append(bytearray(b"\x01") * manners.leak_bytes)  # a copy, so every page is touched
    if manners.hang == "gil":
        stand_still_with_gil()
    elif manners.hang and manners.hang != "false":
        stand_still()
    if manners.die:
        die(manners.die)
    if manners.exit is not None:
        os._exit(manners.exit)
    if manners.oom:
        run_out_of_memory()
    if manners.raise_:
        raise RuntimeError(manners.raise_)


def print_garbage(text: str) -> None:
    """Write to standard output through Python and past it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    os.write(1, text.encode() + b"\n")


def stand_still() -> None:
    """Never return, other threads go on."""
    threading.Event().wait()


def stand_still_with_gil() -> None:
    """Never return, no other Python thread goes on: a PyDLL call keeps the lock."""
    import ctypes

    while True:
        if os.name == "posix":
            ctypes.PyDLL(None).sleep(3600)
        else:
            ctypes.PyDLL("kernel32").Sleep(3_600_000)


def die(wanted: int | str) -> None:
    """Die by a signal, as native code does.

    Raises:
        ModelLoadFailed: There is no such signal.
    """
    try:
        number = int(wanted) if str(wanted).isdecimal() else signal.Signals[str(wanted).upper()]
    except KeyError as error:
        raise ModelLoadFailed(f"echo was asked to die by {wanted!r}, which is no signal") from error
    if os.name == "posix":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        import ctypes

        ctypes.CDLL(None).signal(number, None)  # SIG_DFL, whatever handler Python or a library has set
    os.kill(os.getpid(), number)
    stand_still()  # the signal may be delivered on another thread, a moment later


def run_out_of_memory() -> None:
    """Ask for an impossible amount, which raises MemoryError."""
    _leaked.append(bytearray(2**62))
