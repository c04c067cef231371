"""Where log lines go and how they look: one line each, as text or as JSON.

Floor 0; set up once, by the main thread of `hostler serve`. Everything else in hostler only says
`logging.getLogger("hostler....")`. One line per request comes from the logger `hostler.request`, with its numbers as
extra fields; a worker's own output does not come here, it goes to HOME/logs.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import msgspec

from hostler.config import Settings

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00.123 INFO hostler.request text`, local time."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)s %(name)s %(message)s", "%Y-%m-%d %H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, then whatever `extra` the line carried."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record; values that JSON does not know become text."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: value for name, value in record.__dict__.items() if name not in _STANDARD})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


def set_up(settings: Settings) -> None:
    """Send every log line of this process to stderr, as `log_level` and `log_json` say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_json else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())
    if settings.log_level != "debug":
        # Which clients left stands in the request's own line.
        logging.getLogger("waitress").setLevel(logging.WARNING)
    for chatty in ("httpx", "httpcore", "urllib3", "filelock", "huggingface_hub"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
