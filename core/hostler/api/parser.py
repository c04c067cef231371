"""Reads a request up to the limit of its route, before the app sees it.

Floor 5; waitress's loop runs it. Only the limit of the body is its business; what it refuses, `errortask.py` answers.
"""

from __future__ import annotations

import copy
from typing import Any

from waitress.parser import HTTPRequestParser

from hostler.api.bodylimits import BodyLimit, BodyLimits


class LimitedParser(HTTPRequestParser):  # type: ignore[misc]  # waitress ships no types
    """A request that is being received."""

    adj: Any
    limits: BodyLimits
    """Set by a subclass; the adjustments' own limit must be that of `limits.json` plus one, waitress refuses from it on."""
    body_limit: BodyLimit | None = None
    """This request's, once its headers are read."""

    def parse_header(self, header_plus: bytes) -> None:
        """Choose the limit; the body comes after the headers, and counts against it."""
        super().parse_header(header_plus)
        self.body_limit = self.limits.of(self.command, self.path)
        if self.body_limit is not self.limits.json:
            self.adj = copy.copy(self.adj)
            self.adj.max_request_body_size = self.body_limit.n_bytes + 1

    def received(self, data: bytes) -> int:
        """Take what has come."""
        n_taken: int = super().received(data)
        if self.error is not None:
            # A client that asks whether to send its body is told no, instead of yes and then no.
            self.expect_continue = False
        return n_taken
