"""Fixtures that the tests of hostler and of the plugins in this tree share live in tests/support."""

import gc
import signal

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: children would inherit it, and tests of Ctrl-C could not be.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["support.fixtures", "support.modules", "support.postgresql", "support.weights"]


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was collected, 1.3 million objects, stays to the end: the garbage collector need not go through it each time, which
    takes it a second, and each check of an engine's contract asks for it."""
    del session
    gc.collect()
    gc.freeze()
