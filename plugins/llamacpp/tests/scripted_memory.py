"""A stand-in for llama.cpp's streams, which remembers token ids where llama.cpp has keys and values, and for the files of
prefixes. States have llama.cpp's layout, so that what takes them apart is tested, too."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np

from hostler import StoredPrefix, prefix_id
from hostler_llamacpp.states import Layout

N_LAYERS = 2
MAGIC = 0x1234


class ScriptedMemory:
    """Streams of token ids.

    INVARIANT: like llama.cpp it hands over nothing that is not in a stream, and never complains of a wrong continuation.
    """

    def __init__(self, n_streams: int, *, window: int = 0, is_recurrent: bool = False) -> None:
        """Start empty.

        Args:
            window: One layer forgets positions older than this many, and a few more; 0: none does.
            is_recurrent: Only the state behind the last token is there.
        """
        self._n_streams = n_streams
        self._window = window
        self._is_recurrent = is_recurrent
        self.tokens: list[list[int]] = [[] for _ in range(n_streams)]
        """Of each stream, from its first position."""
        self._starts = [0] * n_streams
        self._oldest = [0] * n_streams
        """The first position that the forgetting layer still has."""

    def evaluate(self, number: int, tokens: Sequence[int]) -> None:
        """What llama_decode would do."""
        assert not self._starts[number], "tokens were evaluated behind nothing"
        self.tokens[number].extend(tokens)
        if self._window:
            self._oldest[number] = max(self._oldest[number], len(self.tokens[number]) - self._window - 5)

    def cut(self, number: int, start: int, end: int) -> bool:
        tokens, first = self.tokens[number], self._starts[number]
        if start <= 0 and end < 0:
            self.tokens[number], self._starts[number], self._oldest[number] = [], 0, 0
            return True
        if self._is_recurrent:
            return start >= len(tokens)
        if start <= 0:
            assert not self._window, "the beginning of a stream with windows was cut off"
            self.tokens[number], self._starts[number] = tokens[end - first :], end
        else:
            assert end < 0
            self.tokens[number] = tokens[: start - first]
        return True

    def positions(self, number: int) -> tuple[int, int]:
        last = self._starts[number] + len(self.tokens[number]) - 1
        if last < self._starts[number]:
            return -1, -1
        if self._is_recurrent:
            return last, last
        return (self._oldest[number] if self._window else self._starts[number]), last

    def size(self, number: int) -> int:
        return len(self.save(number))

    def save(self, number: int, room: np.ndarray | None = None) -> np.ndarray:
        data = self._state(number)
        if room is None or len(room) < len(data):
            return data
        room[: len(data)] = data
        return room[: len(data)]

    def _state(self, number: int) -> np.ndarray:
        tokens, start = self.tokens[number], self._starts[number]
        n = len(tokens)
        if self._is_recurrent:
            data = struct.pack(f"<iii{n}i", MAGIC, number, n, *tokens)
            return np.frombuffer(bytearray(data), np.uint8)
        counts = [0] * self._n_streams
        counts[number] = n
        data = struct.pack(f"<iii{number + 1}i", MAGIC, number, self._n_streams, *counts[: number + 1])
        if n:
            data += b"".join(struct.pack("<iii", start + i, 1, number) for i in range(n))
            data += struct.pack("<ii", 0, N_LAYERS)
            for part in range(2 * N_LAYERS):
                data += struct.pack("<iQ", 7, 8) + b"".join(struct.pack("<ii", token, part) for token in tokens)
        data += struct.pack(f"<{self._n_streams - number - 1}i", *counts[number + 1 :])
        if self._window:
            oldest = max(self._oldest[number], n - self._window)
            data += struct.pack(f"<ii{n - oldest}i", oldest, n, *tokens[oldest:])
        return np.frombuffer(bytearray(data), np.uint8)

    def restore(self, number: int, data: np.ndarray) -> bool:
        self.cut(number, -1, -1)
        raw = data.tobytes()
        if self._is_recurrent:
            (n,) = struct.unpack_from("<i", raw, 8)
            self.tokens[number] = list(struct.unpack_from(f"<{n}i", raw, 12))
            return True
        place, n, stream = 12, 0, 0
        while stream < self._n_streams and not n:
            (n,) = struct.unpack_from("<i", raw, place)
            place, stream = place + 4, stream + 1
        assert [struct.unpack_from("<iii", raw, place + 12 * i)[:2] for i in range(n)] == [(i, 1) for i in range(n)]
        place += 12 * n + 8
        parts = []
        for part in range(2 * N_LAYERS):
            assert struct.unpack_from("<iQ", raw, place) == (7, 8)
            rows = [struct.unpack_from("<ii", raw, place + 12 + 8 * i) for i in range(n)]
            assert all(row[1] == part for row in rows)
            parts.append([row[0] for row in rows])
            place += 12 + 8 * n
        assert all(part == parts[0] for part in parts)
        self.tokens[number] = parts[0]
        place += 4 * (self._n_streams - stream)
        if self._window:
            oldest, n_saved = struct.unpack_from("<ii", raw, place)
            assert n_saved == n, "a checkpoint was restored at another position"
            assert list(struct.unpack_from(f"<{n - oldest}i", raw, place + 8)) == parts[0][oldest:], "another prompt's"
            self._oldest[number] = oldest
        else:
            assert place == len(raw)
        return True

    def layout(self) -> Layout:
        """As the engine learns it when it warms up."""
        self.evaluate(0, range(20))
        shorter = self.save(0)
        self.evaluate(0, [20])
        longer = self.save(0)
        self.cut(0, -1, -1)
        return Layout.learn(shorter, longer, (20, 21), has_window=self._window > 0)


class ScriptedFiles:
    """See PrefixFiles: what it promises, without a disk."""

    def __init__(self) -> None:
        self.is_on = True
        self.stored: dict[str, tuple[StoredPrefix, list[memoryview]]] = {}

    def open(self) -> list[StoredPrefix]:
        return [prefix for prefix, _ in self.stored.values()]  # a parent is put before its children

    def put(
        self, name: str, parent: str, n_before: int, tokens: bytes, payload: Sequence[memoryview], worth: float
    ) -> bool:
        assert name == prefix_id(parent, tokens)
        assert worth > 0
        if name in self.stored:
            return True
        if parent and parent not in self.stored:
            return False
        before = self.stored[parent][0] if parent else None
        assert n_before == (before.n_before + len(before.tokens) // 4 if before else 0)
        # As they are: they are written later, and must not change until then.
        self.stored[name] = (StoredPrefix(name, parent, n_before, tokens, sum(part.nbytes for part in payload)), list(payload))
        return True

    def has(self, name: str) -> bool:
        return name in self.stored

    def read(self, name: str) -> memoryview | None:
        found = self.stored.get(name)
        return None if found is None else memoryview(b"".join(found[1]))

    def used(self, name: str) -> None:
        pass

    def close(self, timeout_s: float) -> None:
        pass

    def lose(self, name: str) -> None:
        """A file is gone, and with it what goes on from it."""
        self.stored.pop(name, None)
        for child in [prefix.id for prefix, _ in self.stored.values() if prefix.parent == name]:
            self.lose(child)

    def whole(self, name: str) -> list[int]:
        """All tokens up to a file's end."""
        tokens: list[int] = []
        while name:
            prefix = self.stored[name][0]
            tokens = [*np.frombuffer(prefix.tokens, "<i4").tolist(), *tokens]
            name = prefix.parent
        return tokens
