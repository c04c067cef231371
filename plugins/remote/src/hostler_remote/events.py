"""Server-sent events: bytes as they come -> the payload of each event. Pure; one reader an answer.

Source: WHATWG HTML, "Server-sent events", parsing; of its fields only `data` matters here. A blank line ends an event; a last
event that the end of the stream cut off counts, because some servers forget the blank line after `[DONE]`.
"""

from __future__ import annotations

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""A chunk holds a token or some, with their log probabilities. What is longer is no answer."""
LINE_BYTES = 64
"""What a line costs beside its text, so that empty ones count, too."""


class TooLong(ValueError):
    """An event that nobody means."""


class EventReader:
    """See the module."""

    def __init__(self, max_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._parts: list[bytes] = []
        """The beginning of a line, as it came."""
        self._n_parts = 0
        """Its bytes."""
        self._data: list[bytes] = []
        """`data` lines of an event that is not over."""
        self._n_data = 0
        """Their bytes."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes, give the payloads of the events that are complete now.

        Raises:
            TooLong: An event has more than `max_bytes`.
        """
        found: list[bytes] = []
        lines = data.split(b"\n")
        if len(lines) > 1:
            if self._parts:
                self._parts.append(lines[0])
                lines[0] = b"".join(self._parts)
                self._parts, self._n_parts = [], 0
            found = self._events(lines[:-1])
        if lines[-1]:
            self._parts.append(lines[-1])
            self._n_parts += len(lines[-1])
        if self._n_parts + self._n_data > self._max_bytes:
            raise TooLong(f"an event of more than {self._max_bytes} bytes")
        return found

    def finish(self) -> list[bytes]:
        """The stream is over: what is left counts."""
        rest, self._parts = b"".join(self._parts), []
        return self._events([rest, b""])

    def _events(self, lines: list[bytes]) -> list[bytes]:
        found = []
        for line in lines:
            if line.startswith(b"data:"):
                self._data.append(line[5:].strip(b" \r"))
                self._n_data += LINE_BYTES + len(line)
            elif line in (b"", b"\r") and self._data:
                found.append(self._data[0] if len(self._data) == 1 else b"\n".join(self._data))
                self._data, self._n_data = [], 0
        return found
