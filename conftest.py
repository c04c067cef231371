"""Fixtures that the tests of hostler and of the plugins in this tree share live in tests/support."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Started in the background of a script: children would inherit it, and tests of Ctrl-C could not be.
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["support.fixtures", "support.modules", "support.postgresql", "support.weights"]
