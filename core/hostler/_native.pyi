"""
hostler's native core. Import hostler.ring, hostler.modelcache and hostler.library.gguf instead.
"""

from collections.abc import Callable, Sequence
import os
import pathlib


class RingCorrupt(RuntimeError):
    """
    The shared memory holds what no sound peer writes: end the worker, its segment goes with it.
    """

class RingClosed(RuntimeError):
    """This side has closed the segment."""

class RingWriter:
    """The worker's end of one ring; one thread only."""

    def push(self, kind: int, generation: int, payload: bytes | bytearray | memoryview) -> bool:
        """
        Publish one frame and wake the reader if it sleeps.

        Args:
            kind: What the payload is; 32 bits, the ring does not look at it.
            generation: Low 32 bits of the sequence's id; the reader drops frames of any but the opened one.
            payload: Copied before this returns.

        Returns:
            False when there is no room; then nothing was written.

        Raises:
            ValueError: The frame is longer than the ring and can never fit.
            RingCorrupt: The reader's index cannot be.
            RingClosed: This side has closed the segment.
        """

    @property
    def free_bytes(self) -> int:
        """
        Bytes of frames that fit now; a frame takes 12 + its payload, rounded up to 8.
        """

class RingReader:
    """The host's end of one ring; one thread at a time."""

    def open(self, generation: int, wake_index: int) -> None:
        """
        Take the ring for a new sequence, before the sequence is submitted.

        Leftovers are discarded and frames of other generations dropped from now on.

        Args:
            generation: Low 32 bits of the sequence's id.
            wake_index: The wake word of the thread that will wait.

        Raises:
            IndexError: There is no such wake word.
            RingCorrupt: The writer's index cannot be.
        """

    def drain(self, max_frames: int = 256) -> list[tuple[int, bytes]]:
        """
        Take up to `max_frames` frames of the opened generation, oldest first, without waiting.

        Returns:
            (kind, payload) of each; empty when there is none.

        Raises:
            RingCorrupt: A frame or an index cannot be what a sound worker wrote.
            RingClosed: This side has closed the segment.
        """

    @property
    def has_data(self) -> bool:
        """Whether any bytes wait, of whichever generation."""

    @property
    def n_dropped(self) -> int:
        """Frames of other generations met by this reader so far."""

class RingSegment:
    """One worker's shared memory: its rings, its wake words, its heartbeat."""

    @staticmethod
    def create(n_rings: int, ring_bytes: int, n_wakes: int) -> RingSegment:
        """
        Make a segment (host).

        Args:
            n_rings: One per sequence that may run or wait in the worker.
            ring_bytes: Bytes of frames each ring holds; a power of two from 64 to 2**30.
            n_wakes: One per host thread that may wait on this worker.

        Raises:
            ValueError: A size is out of range.
            OSError: The system gives no such memory.
        """

    @staticmethod
    def attach(handle: str) -> RingSegment:
        """
        Map the segment that `handle_for_child()` named in the host (worker).

        Raises:
            ValueError: The text is no handle.
            OSError: The descriptor was not passed to this process, or the name is gone.
            RingCorrupt: The memory holds no segment of this version.
        """

    def handle_for_child(self) -> str:
        """
        What the worker gives to `attach`: "fd:N" on Linux (pass on `pass_fds`, too), "name:..." elsewhere.
        """

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """
        Descriptors for `subprocess.Popen(pass_fds=...)`; empty where memory goes by name.
        """

    @property
    def n_rings(self) -> int: ...

    @property
    def n_wakes(self) -> int: ...

    @property
    def ring_bytes(self) -> int: ...

    def beat(self) -> None:
        """Count one round of the worker's loop (worker)."""

    @property
    def beats(self) -> int:
        """
        Rounds of the worker's loop so far (host); unchanged for long means that the worker hangs.
        """

    def wake(self, wake_index: int) -> None:
        """
        Make the wait on that word return True: the one going on, else the next one (anyone).
        """

    def wake_all(self) -> None:
        """`wake` every word, for instance when the worker has died."""

    def wait(self, wake_index: int, rings: Sequence[int], timeout_s: float) -> bool:
        """
        Sleep, the GIL released, until there is something to look at. One thread a wake word at a time.

        Args:
            wake_index: This thread's wake word, as the rings' `open` was told.
            rings: The rings whose data counts.
            timeout_s: Seconds; 0 only looks, inf waits until something comes.

        Returns:
            True when one of `rings` has data or `wake` was called on this word since the last wait on it
            returned; False after `timeout_s`. True promises no frame: what came may be of another generation.

        Raises:
            IndexError: There is no such wake word or ring.
            ValueError: `timeout_s` is negative or no number.
            RingClosed: This side has closed the segment.
            KeyboardInterrupt: Ctrl-C, in the main thread.
        """

    def writer(self, ring: int) -> RingWriter:
        """The writing end of a ring (worker)."""

    def reader(self, ring: int) -> RingReader:
        """The reading end of a ring (host)."""

    def close(self) -> None:
        """
        Tell the peer that this side is done; waits return and later calls raise RingClosed. Twice is fine.
        """

    @property
    def is_closed(self) -> bool: ...

    @property
    def is_peer_closed(self) -> bool:
        """Whether the other side has called `close`; a killed peer has not."""

class ModelCacheError(RuntimeError):
    """What keeping files warm may fail with, apart from OSError."""

class CacheBudgetExceeded(ModelCacheError):
    """What should be kept warm is larger than the cache's budget."""

class CacheEntryInUse(ModelCacheError):
    """The file is open or pinned, so it cannot be evicted."""

class CacheClosed(ModelCacheError):
    """The cache was closed."""

class FileChanged(ModelCacheError):
    """The file got shorter while it was read."""

class CacheEntry:
    """One file of the cache, as it was when `entries` was called."""

    @property
    def path(self) -> pathlib.Path:
        """As first opened."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def n_open(self) -> int:
        """Handles that keep it."""

    @property
    def is_pinned(self) -> bool: ...

    @property
    def is_replaced(self) -> bool:
        """Another file has taken its path; it goes when it is not in use."""

class CacheStats:
    """Counters of a cache, as they were when `stats` was called."""

    @property
    def budget_bytes(self) -> int: ...

    @property
    def mapped_bytes(self) -> int:
        """Whole sizes of all files in the cache."""

    @property
    def pinned_bytes(self) -> int: ...

    @property
    def n_entries(self) -> int: ...

    @property
    def n_hits(self) -> int:
        """Opens that found the file mapped."""

    @property
    def n_misses(self) -> int:
        """Opens that mapped it."""

    @property
    def n_evictions(self) -> int:
        """For the budget, by request, or because the file was replaced."""

class MappedFile:
    """One open file of the cache; a context manager. Any thread."""

    @property
    def path(self) -> pathlib.Path: ...

    @property
    def size_bytes(self) -> int:
        """As it was when the file was mapped."""

    def residency(self) -> float | None:
        """
        Fraction of the file's pages in memory; None where the system does not say.
        """

    @property
    def is_closed(self) -> bool: ...

    def close(self) -> None:
        """Let the cache evict the file when it must. Twice is fine."""

    def __enter__(self) -> MappedFile: ...

    def __exit__(self, *args: object) -> None: ...

class ModelCache:
    """Weight files kept warm under a budget; any thread may call any method."""

    def __init__(self, budget_bytes: int) -> None:
        """
        An empty cache.

        Args:
            budget_bytes: Whole sizes of the files it may keep. What is open or pinned may exceed it.
        """

    def open(self, path: str | os.PathLike[str]) -> MappedFile:
        """
        Map a file, or find it mapped; it is not evicted until the handle is closed.

        A file that was replaced on disk, or written to, is another file.

        Raises:
            OSError: It cannot be opened or mapped.
            ValueError: It is empty or no regular file.
        """

    def prefetch(self, path: str | os.PathLike[str], progress: Callable[[int, int], object] | None = None) -> int:
        """
        Bring a file into memory, the GIL released; what is there already is not read again.

        Args:
            path: The file; it stays in the cache afterwards.
            progress: Called every few MiB with (bytes done, bytes in all); raise in it to stop.

        Returns:
            Bytes that had to be read.

        Raises:
            CacheBudgetExceeded: The file is larger than the budget.
            FileChanged: Somebody truncated it meanwhile.
            OSError: It cannot be read.
        """

    def pin(self, path: str | os.PathLike[str]) -> None:
        """
        Keep all of a file in memory until `unpin`; twice is as good as once.

        Raises:
            CacheBudgetExceeded: All pinned files together would be larger than the budget.
            OSError: The system refuses; the message names its limit.
        """

    def unpin(self, path: str | os.PathLike[str]) -> bool:
        """Undo `pin`; False when the file was not pinned."""

    def residency(self, path: str | os.PathLike[str]) -> float | None:
        """
        Fraction of a file's pages in memory, 0 to 1, whoever brought them there; the file need not be cached.

        None where the system does not say: on Windows, and on Linux for a file that this user neither owns nor
        may write.
        """

    def evict(self, path: str | os.PathLike[str]) -> bool:
        """
        Give a file's memory back; False when it is not in the cache.

        Raises:
            CacheEntryInUse: It is open or pinned.
        """

    def trim(self, target_bytes: int) -> int:
        """
        Evict the least recently used until `target_bytes` are mapped or nothing evictable is left.

        Returns:
            Bytes given back.
        """

    @property
    def budget_bytes(self) -> int:
        """Setting it evicts what no longer fits."""

    @budget_bytes.setter
    def budget_bytes(self, arg: int, /) -> None: ...

    def close(self) -> None:
        """
        Let go of everything that is not open, unpin all, and refuse what comes later.

        What is in memory stays there, so that the next start finds it warm. Twice is fine.
        """

    def entries(self) -> list[CacheEntry]:
        """The files in the cache, least recently used first."""

    def stats(self) -> CacheStats: ...

class GgufError(ValueError):
    """
    The file is no GGUF, malformed, truncated, or over a limit; the message says what and at which byte.
    """

class GgufLimits:
    """What a header may take; a file over a limit is refused."""

    def __init__(self) -> None: ...

    @property
    def max_header_bytes(self) -> int: ...

    @max_header_bytes.setter
    def max_header_bytes(self, arg: int, /) -> None: ...

    @property
    def max_metadata(self) -> int:
        """Pairs."""

    @max_metadata.setter
    def max_metadata(self, arg: int, /) -> None: ...

    @property
    def max_tensors(self) -> int: ...

    @max_tensors.setter
    def max_tensors(self, arg: int, /) -> None: ...

    @property
    def max_key_bytes(self) -> int: ...

    @max_key_bytes.setter
    def max_key_bytes(self, arg: int, /) -> None: ...

    @property
    def max_tensor_name_bytes(self) -> int: ...

    @max_tensor_name_bytes.setter
    def max_tensor_name_bytes(self, arg: int, /) -> None: ...

    @property
    def max_string_bytes(self) -> int: ...

    @max_string_bytes.setter
    def max_string_bytes(self, arg: int, /) -> None: ...

    @property
    def max_array_length(self) -> int:
        """Items."""

    @max_array_length.setter
    def max_array_length(self, arg: int, /) -> None: ...

    @property
    def max_listed_array_length(self) -> int:
        """Items; a longer array is summarised unless `list_keys` names it."""

    @max_listed_array_length.setter
    def max_listed_array_length(self, arg: int, /) -> None: ...

    @property
    def max_asked_array_length(self) -> int:
        """Items, also where `list_keys` names it."""

    @max_asked_array_length.setter
    def max_asked_array_length(self, arg: int, /) -> None: ...

    @property
    def max_array_depth(self) -> int: ...

    @max_array_depth.setter
    def max_array_depth(self, arg: int, /) -> None: ...

class TensorTypeUse:
    """All tensors of one type together."""

    @property
    def type(self) -> str:
        """Such as "Q4_1"; "type N" for one that this reader does not know."""

    @property
    def n_tensors(self) -> int: ...

    @property
    def n_elements(self) -> int: ...

    @property
    def n_bytes(self) -> int:
        """0 where the type is unknown."""

class GgufTensor:
    """Where one tensor lies."""

    @property
    def name(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def dims(self) -> list[int]:
        """Innermost first, as in the file."""

    @property
    def offset(self) -> int:
        """Bytes from the beginning of the file."""

    @property
    def n_elements(self) -> int: ...

    @property
    def n_bytes(self) -> int:
        """0 where the type is unknown."""

class GgufHeader:
    """What a GGUF file says of itself."""

    @property
    def version(self) -> int: ...

    @property
    def file_bytes(self) -> int: ...

    @property
    def header_bytes(self) -> int: ...

    @property
    def data_offset(self) -> int: ...

    @property
    def alignment(self) -> int: ...

    @property
    def n_tensors(self) -> int: ...

    @property
    def n_elements(self) -> int:
        """Of all tensors."""

    @property
    def tensor_bytes(self) -> int:
        """Of all tensors whose type is known."""

    @property
    def tensor_types(self) -> list[TensorTypeUse]:
        """Most bytes first."""

    @property
    def tensors(self) -> list[GgufTensor]:
        """Empty unless asked for."""

    def metadata(self) -> dict[str, str | int | float | bool | list[str | int | float | bool] | tuple[str, int]]:
        """
        A new dict of the pairs in the file's order. An array is a list, or (item type, length) if it is long and
        was not asked for.
        """

def read_gguf_header(path: str | os.PathLike[str], *, list_keys: Sequence[str] = (), with_tensors: bool = False, limits: GgufLimits = ...) -> GgufHeader:
    """
    Read and check a GGUF file's header, the GIL released; tensor data is not touched.

    Args:
        path: The file.
        list_keys: Arrays wanted whole, however long.
        with_tensors: Whether to list the tensors, too.
        limits: What the header may take.

    Raises:
        GgufError: It is no GGUF, malformed, truncated, or over a limit.
        ValueError: It is no regular file.
        OSError: It cannot be read.
    """
