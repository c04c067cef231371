"""One line a request: who asked what, how much came back, how fast, and how it ended.

Floor 5; called by the waitress thread that answered, once at the end. Generations are worth a line at `info`, everything
else at `debug`; the numbers travel as extra fields of the record, for `--log-json` and for tests.
"""

from __future__ import annotations

import logging
import time

from hostler.domain import Timings, Usage

log = logging.getLogger("hostler.request")


class GenerationRecord:
    """Collects what the line of one generation says; used by one thread."""

    def __init__(self, request_id: str, generation_id: str, accepted_at: float) -> None:
        """Start.

        Args:
            request_id: The `x-request-id`.
            accepted_at: Monotonic seconds when the request came in.
        """
        self.request_id = request_id
        self.generation_id = generation_id
        self.model = ""
        self.accepted_at = accepted_at
        self.first_text_at: float | None = None
        #: Counted on the way, for the line of a request that does not come to its end.
        self.n_prompt = 0
        self.n_output = 0
        self.is_stream = False
        self._is_written = False

    def text_came(self) -> None:
        """The first text is here; later calls change nothing."""
        if self.first_text_at is None:
            self.first_text_at = time.monotonic()

    def write(self, reason: str, usage: Usage | None = None, timings: Timings | None = None) -> None:
        """Write the line; only the first call counts.

        Args:
            reason: How it ended: a finish reason, `client_gone`, or an error's code.
        """
        if self._is_written:
            return
        self._is_written = True
        now = time.monotonic()
        ttft_s = None if self.first_text_at is None else self.first_text_at - self.accepted_at
        usage = usage or Usage(self.n_prompt, self.n_output)
        tok_s = tokens_per_second(timings)
        log.info(
            "%s %s %d+%d tokens (%d cached), TTFT %s, %s, %s",
            self.generation_id,
            self.model,
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            "-" if ttft_s is None else f"{ttft_s:.3f} s",
            "-" if tok_s is None else f"{tok_s:.1f} tok/s",
            reason,
            extra={
                "request_id": self.request_id,
                "generation_id": self.generation_id,
                "model": self.model,
                "is_stream": self.is_stream,
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
                "ttft_s": ttft_s,
                "tok_s": tok_s,
                "duration_s": now - self.accepted_at,
                "end_reason": reason,
            },
        )


def tokens_per_second(timings: Timings | None) -> float | None:
    """Decode speed by the worker's clock; the first token belongs to the prefill. None where there is nothing to divide."""
    if timings is None or timings.predicted_n < 2 or timings.predicted_ms <= 0:
        return None
    return (timings.predicted_n - 1) / timings.predicted_ms * 1000


def log_request(request_id: str, method: str, path: str, status: str, accepted_at: float, error_code: str | None) -> None:
    """The line of a request that generated nothing."""
    duration_s = time.monotonic() - accepted_at
    log.debug(
        "%s %r %s in %.1f ms%s",  # %r: a path may hold line ends
        method,
        path,
        status,
        duration_s * 1000,
        f", {error_code}" if error_code else "",
        extra={
            "request_id": request_id,
            "method": method,
            "path": path,
            "status": status,
            "duration_s": duration_s,
            "error_code": error_code,
        },
    )
