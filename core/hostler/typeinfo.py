"""What msgspec knows of structs, built before threads need it.

Floor 0; any thread. msgspec reads a struct's annotations when it first decodes or converts to it. It does so without a lock
(0.22): a second thread that needs the same struct meanwhile finds it half read, and the process dies of it. So whoever lets
several threads loose on structs calls `build` first.
"""

from __future__ import annotations

import threading

import msgspec

_lock = threading.Lock()  # one builder at a time; protects _built
_built: set[type] = set()


def build() -> None:
    """Read the annotations of every struct that is defined by now; those that were read cost next to nothing."""
    with _lock:
        pending: list[type] = [msgspec.Struct]
        while pending:
            kind = pending.pop()
            pending += kind.__subclasses__()
            if kind not in _built:
                _built.add(kind)
                try:
                    msgspec.json.Decoder(kind)
                except (NameError, TypeError):
                    pass  # one that nobody can decode: it holds what is no data, or is known to type checkers only
