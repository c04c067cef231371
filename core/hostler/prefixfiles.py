"""The disk tier of a prefix cache: prefixes on disk as files, written in the background, found again by the next worker.

Floor 2, in the worker. An engine decides what a payload is and when it is worth keeping; here it is bytes. The folder and its
lock are in prefixfolder.py, the files' layout and checksums in prefixlayout.py.

Threads: `open`, `put`, `read`, `used` and `close` belong to the engine thread; only `open`, `read` and, for as long as it is
told, `close` wait for the disk. The thread `prefix-files` writes and removes. `_lock` protects every field that both use, and
is never held over a call to the disk.

Nothing here is an error for a request: what cannot be written is not kept, and what cannot be read is not there.

INVARIANT: an entry's parent is an entry. What loses its parent goes with it.
"""

from __future__ import annotations

import heapq
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from hostler import prefixlayout
from hostler.library.disk import free_bytes as free_bytes_of
from hostler.prefixfolder import FolderRefused, PrefixFolder, explained
from hostler.prefixlayout import DamagedFile, StoredPrefix, prefix_id

__all__ = ["CLOSE_TIMEOUT_S", "PrefixFiles", "StoredPrefix", "prefix_id"]

MIB = 1024 * 1024
CLOSE_TIMEOUT_S = 5.0
"""What an engine gives `close` when its model is stopped: half of what a worker has before it is told again, harder."""
QUEUE_BYTES = 512 * MIB
"""Payloads that may wait to be written; what comes beyond is not kept. They are memory of the engine's until then."""
RESERVE_BYTES = 1024 * MIB
"""Left free on the disk for everybody else, whatever the budget says."""
HALF_LIFE_S = 24 * 3600.0
"""What a prefix is worth halves in so long without a use."""
USES_PERIOD_S = 10.0
"""How often uses are written down."""
PAUSE = 3.0
"""Times as long as a block took to write does the thread rest after it: at most a quarter of a core while tokens are made."""


class _Entry:
    """A prefix that is on the disk, or queued."""

    __slots__ = ("children", "is_checked", "is_stored", "last_used", "n_uses", "payload", "prefix")

    def __init__(self, prefix: StoredPrefix, payload: Sequence[memoryview] = ()) -> None:
        self.prefix = prefix
        self.payload = payload
        """Until it is stored."""
        self.is_stored = not payload
        self.is_checked = False
        """Its checksum was found right, so it is not computed again."""
        self.n_uses = prefix.n_uses
        self.last_used = prefix.last_used
        self.children: set[str] = set()

    @property
    def file_bytes(self) -> int:
        return prefixlayout.file_bytes(self.prefix)

    def score(self, now: float) -> float:
        """What a byte of it is worth: the lowest go first."""
        age = max(0.0, now - self.last_used)
        return self.prefix.worth * (1 + self.n_uses) / self.file_bytes * math.exp2(-age / HALF_LIFE_S)


class PrefixFiles:
    """The files of one model, engine and choice of settings."""

    def __init__(
        self,
        folder: Path,
        identity: str,
        budget_bytes: int,
        *,
        warn: Callable[[str], None] | None = None,
        free_bytes: Callable[[Path], int] = free_bytes_of,
        clock: Callable[[], float] = time.time,
        pause: float = PAUSE,
    ) -> None:
        """Nothing is read or made yet.

        Args:
            folder: The model's own: `EngineSettings.cache_folder`.
            identity: Everything that a payload's meaning hangs on: model digest, engine and library version, settings. Another
                one sees nothing of these files; they count in its budget, and are the first to go.
            budget_bytes: Of all files in the folder; 0: the tier is off.
            warn: Gets one sentence when the tier is switched off or cut down; None: it goes to the worker's log.
            free_bytes, clock, pause: Replaced in tests.
        """
        self._folder = PrefixFolder(folder, identity)
        self._budget_bytes = budget_bytes
        self._warn = warn or _print
        self._free_bytes = free_bytes
        self._clock = clock
        self._pause = pause
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._has_work = threading.Condition(self._lock)
        self._is_closing = threading.Event()
        self._is_abandoned = False
        """The time of `close` is over: stop at the next block."""
        self._is_writing = False
        self._is_warned = False
        self._entries: dict[str, _Entry] = {}
        self._queue: deque[_Entry] = deque()
        self._queued_bytes = 0
        self._doomed: list[Path] = []
        """Files of entries that are no more."""
        self._used: set[str] = set()
        """Ids whose uses are not written down yet."""
        self._stored_bytes = 0

    # -- engine thread ----------------------------------------------------------------------------------------------

    def open(self) -> list[StoredPrefix]:
        """Take the folder and list what lies there, parents before children. What is torn, damaged, foreign or has lost its
        parent is removed. Gives nothing, and keeps nothing from then on, where the folder cannot be used."""
        if self._budget_bytes <= 0:
            return []
        try:
            self._folder.take()
            found = self._folder.read(self._clock())
        except (FolderRefused, OSError) as error:
            self._folder.let_go()
            self._refuse(error)
            return []
        self._entries = {prefix.id: _Entry(prefix) for prefix in found}
        for prefix in found:
            if prefix.parent:
                self._entries[prefix.parent].children.add(prefix.id)
        self._stored_bytes = sum(entry.file_bytes for entry in self._entries.values())
        self._is_writing = True
        self._make_room(0, score=None)  # the budget may be smaller than it was
        self._remove_doomed()
        self._thread = threading.Thread(target=self._run, name="prefix-files", daemon=True)
        self._thread.start()
        return [prefix for prefix in found if prefix.id in self._entries]

    def put(
        self, prefix_id: str, parent_id: str, n_before: int, tokens: bytes, payload: Sequence[memoryview], worth: float
    ) -> bool:
        """Have a prefix written in the background.

        Args:
            prefix_id: `prefix_id(parent_id, tokens)`.
            parent_id: A prefix that was put or found here; empty: this is a beginning.
            n_before: Tokens before its own.
            tokens: Its own tokens, int32 each, little-endian.
            payload: Contiguous pieces, which must not change any more; they are let go once they are written.
            worth: More than another's per byte: stays longer. Uses are counted here.

        Returns:
            Whether it was taken, or is there already. Not taken: the tier is off, the queue is full, the parent is unknown.

        Raises:
            ValueError: The id or `n_before` does not go with the rest: it would not be found again.
        """
        if prefix_id != prefixlayout.prefix_id(parent_id, tokens):
            raise ValueError(f"{prefix_id!r} is not the id of {len(tokens) // 4} tokens behind {parent_id!r}")
        n_bytes = sum(piece.nbytes for piece in payload)
        worth = min(worth, 1e18) if worth > 1e-9 else 1e-9
        prefix = StoredPrefix(prefix_id, parent_id, n_before, tokens, n_bytes, worth, 0, self._clock())
        with self._has_work:
            if prefix_id in self._entries:
                return True
            parent = self._entries.get(parent_id)
            n_expected = parent.prefix.n_after if parent is not None else 0
            if not self._is_writing or self._is_closing.is_set() or (parent is None and parent_id):
                return False
            if n_before != n_expected:
                raise ValueError(f"n_before is {n_before}, and what comes before has {n_expected} tokens")
            if self._queued_bytes + n_bytes > QUEUE_BYTES:
                return False
            entry = _Entry(prefix, tuple(payload) or (memoryview(b""),))
            self._entries[prefix_id] = entry
            if parent is not None:
                parent.children.add(prefix_id)
            self._queue.append(entry)
            self._queued_bytes += n_bytes
            self._has_work.notify()
        return True

    def read(self, prefix_id: str) -> memoryview | None:
        """The payload of a prefix, mapped from the disk and checked once; from memory while it is queued. None: it is not
        there, or was damaged and is removed now with all that goes on from it."""
        with self._lock:
            entry = self._entries.get(prefix_id)
            if entry is None:
                return None
            if not entry.is_stored:
                return memoryview(b"".join(entry.payload))
        try:
            payload = prefixlayout.map_payload(self._path(entry), entry.prefix.n_bytes, is_checked=entry.is_checked)
        except (DamagedFile, OSError, ValueError):  # ValueError: it shrank between two calls
            with self._has_work:
                self._forget(entry)
                self._has_work.notify()
            return None
        entry.is_checked = True
        return payload

    def has(self, prefix_id: str) -> bool:
        """Whether it is there, written or queued: it may be gone at any time after."""
        with self._lock:
            return prefix_id in self._entries

    def used(self, prefix_id: str) -> None:
        """Count a use. Each prefix of a chain is counted on its own."""
        with self._has_work:
            entry = self._entries.get(prefix_id)
            if entry is not None:
                entry.n_uses += 1
                entry.last_used = self._clock()
                if not self._used:
                    self._has_work.notify()
                self._used.add(prefix_id)

    def close(self, timeout_s: float) -> None:
        """Write what is queued, for so long at most, and let go of the folder. Idempotent."""
        with self._has_work:
            self._is_closing.set()
            self._has_work.notify()
        if self._thread is not None:
            self._thread.join(timeout_s)
            self._is_abandoned = True  # it lets go of the folder when it comes back from the disk

    @property
    def is_on(self) -> bool:
        """Whether prefixes are kept."""
        return self._is_writing

    @property
    def stored_bytes(self) -> int:
        """Of this identity's files."""
        return self._stored_bytes

    @property
    def n_waiting(self) -> int:
        """How many prefixes are queued."""
        return len(self._queue)

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        noted_at = time.monotonic()
        while True:
            with self._has_work:
                while not (self._queue or self._doomed or self._is_closing.is_set()):
                    wait_s = max(0.0, noted_at + USES_PERIOD_S - time.monotonic()) if self._used else None
                    if wait_s == 0.0:
                        break
                    self._has_work.wait(wait_s)
                entry = self._queue.popleft() if self._queue else None
                if entry is not None:
                    self._queued_bytes -= entry.prefix.n_bytes
            self._remove_doomed()
            if entry is not None:
                self._store(entry)
                continue
            self._note_uses()
            noted_at = time.monotonic()
            if self._is_closing.is_set() and not self._queue:
                self._is_writing = False
                self._folder.let_go()
                return

    def _store(self, entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(entry.prefix.id) is not entry or self._is_abandoned:
                return  # its parent was lost meanwhile
        try:
            is_written = (
                self._has_parent(entry)
                and self._make_room(entry.file_bytes, entry.score(self._clock()))
                and prefixlayout.write(self._path(entry), entry.prefix, self._folder.hash, entry.payload, self._rest())
            )
        except OSError as error:
            self._stop_writing(error)
            is_written = False
        with self._lock:
            entry.payload = ()
            if is_written:
                entry.is_stored = True
                self._stored_bytes += entry.file_bytes
            if self._entries.get(entry.prefix.id) is entry:
                if not is_written:
                    self._forget(entry)
            elif is_written:  # forgotten while it was written
                self._stored_bytes -= entry.file_bytes
                self._doomed.append(self._path(entry))

    def _has_parent(self, entry: _Entry) -> bool:
        """Whether the file that it goes on from is still there: somebody may have cleared the folder."""
        parent = entry.prefix.parent
        if not parent or self._folder.file(parent).exists():
            return True
        with self._lock:
            if parent in self._entries:
                self._forget(self._entries[parent])
        return False

    def _rest(self) -> Callable[[], bool]:
        """What a write does after each block: leave the processor to the engine, unless all are waiting for us."""
        began = time.monotonic()

        def rest() -> bool:
            nonlocal began
            self._is_closing.wait(self._pause * (time.monotonic() - began))
            began = time.monotonic()
            return not self._is_abandoned

        return rest

    def _make_room(self, n_bytes: int, score: float | None) -> bool:
        """Remove files until so many bytes more fit, those of other identities first, then the least worth leaves.

        Args:
            score: Only what is worth no more is removed for it; None: there is nothing to compare with.

        Returns:
            Whether they fit now.
        """
        free = self._free_bytes(self._folder.path) - RESERVE_BYTES
        if n_bytes and free < 0:
            free = -self._free_up(-free, None)  # others need it more
        taken = self._stored_bytes + self._folder.others_bytes
        too_many = self._free_up(max(taken + n_bytes - self._budget_bytes, n_bytes - free if n_bytes else 0), score)
        if too_many > 0 and free < n_bytes:
            n_free = self._free_bytes(self._folder.path) // MIB
            what = f"lies on a disk with {n_free:,} MiB free, and {RESERVE_BYTES // MIB:,} MiB are left to others"
            self._refuse(FolderRefused(what, "free some, or choose another with cache_folder"))
        return too_many <= 0

    def _free_up(self, n_bytes: int, score: float | None) -> int:
        """Free so many bytes; gives how many are still wanted."""
        while n_bytes > 0 and (size := self._folder.remove_other()):
            n_bytes -= size
        return self._remove_leaves(n_bytes, score) if n_bytes > 0 else n_bytes

    def _remove_leaves(self, n_bytes: int, score: float | None) -> int:
        """Remove the least worth entries that nothing goes on from, and then their parents. Gives what is still wanted."""
        with self._lock:
            now = self._clock()
            n_children = {id: len(entry.children) for id, entry in self._entries.items()}
            leaves = [(self._entries[id].score(now), id) for id, n in n_children.items() if not n]
            leaves = [(its_score, id) for its_score, id in leaves if self._entries[id].is_stored]
            heapq.heapify(leaves)
            going: list[_Entry] = []
            while leaves and n_bytes > 0:
                its_score, id = heapq.heappop(leaves)
                if score is not None and its_score > score:
                    break
                entry = self._entries[id]
                going.append(entry)
                n_bytes -= entry.file_bytes
                parent = entry.prefix.parent
                if parent:
                    n_children[parent] -= 1
                    if not n_children[parent]:
                        heapq.heappush(leaves, (self._entries[parent].score(now), parent))
            if n_bytes > 0 and score is not None:
                return n_bytes  # nothing goes for something that does not fit after all
            for entry in going:
                self._forget(entry)
        self._remove_doomed()
        return n_bytes

    def _remove_doomed(self) -> None:
        with self._lock:
            doomed, self._doomed = self._doomed, []
        for path in doomed:
            prefixlayout.remove(path)

    def _note_uses(self) -> None:
        with self._lock:
            entries = [self._entries[id] for id in self._used if id in self._entries and self._entries[id].is_stored]
            self._used.clear()
        for entry in entries:
            try:
                prefixlayout.write_use(self._path(entry), entry.n_uses, entry.last_used)
            except OSError:
                pass  # a use less is known

    def _stop_writing(self, error: OSError) -> None:
        with self._lock:
            self._is_writing = False
            for entry in [entry for entry in self._entries.values() if not entry.is_stored]:
                self._forget(entry)
            self._queue.clear()
            self._queued_bytes = 0
        self._refuse(error)

    # -- both -------------------------------------------------------------------------------------------------------

    def _forget(self, entry: _Entry) -> None:
        """Drop an entry and all that goes on from it; call while holding `_lock`."""
        parent = self._entries.get(entry.prefix.parent)
        if parent is not None:
            parent.children.discard(entry.prefix.id)
        going = [entry]
        while going:
            one = going.pop()
            if self._entries.pop(one.prefix.id, None) is None:
                continue
            going += [self._entries[id] for id in one.children if id in self._entries]
            if one.is_stored:
                self._stored_bytes -= one.file_bytes
                self._doomed.append(self._path(one))

    def _path(self, entry: _Entry) -> Path:
        return self._folder.file(entry.prefix.id)

    def _refuse(self, error: FolderRefused | OSError) -> None:
        if not self._is_warned:
            self._is_warned = True
            why = explained(error) if isinstance(error, OSError) else error
            self._warn(f"No prefix is kept on disk: {self._folder.path} {why.what}; {why.advice}. Requests go on without")


def _print(message: str) -> None:
    print(message, file=sys.stderr, flush=True)  # noqa: T201 - the worker's log
