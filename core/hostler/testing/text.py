"""Bytes to text for RecordingSequence: whole UTF-8 characters, cut before a stop string.

Floor 2, tests only. It looks at everything again with each token, so that it stays simple enough to be the yardstick
for the worker's assembler, which must not do so.
"""

from __future__ import annotations


class Text:
    """The text of one answer."""

    def __init__(self, stop: tuple[str, ...] = ()) -> None:
        self.value = ""
        self._stop = tuple(text for text in stop if text)
        self._data = b""
        self._is_finished = False

    def add(self, piece: bytes) -> str | None:
        """Take a token's bytes; the stop string that is complete now, the earliest in the text first, or None."""
        self._data += piece
        text = self._data.decode("utf-8", "replace")
        found = [(text.find(stop), stop) for stop in self._stop if stop in text]
        if found:
            position, stop = min(found, key=lambda item: item[0])
            self.value = text[:position]
            self._is_finished = True
            return stop
        self.value = self._whole().decode("utf-8", "replace")
        return None

    def finish(self) -> None:
        """No more comes: what is left of an unfinished character becomes U+FFFD."""
        if not self._is_finished:
            self._is_finished = True
            self.value = self._data.decode("utf-8", "replace")

    def _whole(self) -> bytes:
        """The bytes without a character that is only begun."""
        for back in range(1, min(4, len(self._data)) + 1):
            byte = self._data[-back]
            if byte >= 0xC0:
                length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
                return self._data[:-back] if length > back else self._data
            if byte < 0x80:
                break
        return self._data
