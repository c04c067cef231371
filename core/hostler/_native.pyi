"""
hostler's native core: token rings, mapped weight files, GGUF headers. Use hostler.ring, hostler.modelcache and hostler.library.gguf instead.
"""

from collections.abc import Sequence


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
