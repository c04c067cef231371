"""The token ring as host and worker use it. Its memory order and its edges are tested in C++ (cpp/tests)."""

from __future__ import annotations

import gc
import math
import os
import signal
import struct
import subprocess
import sys
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.ring import RingClosed, RingCorrupt, RingReader, RingSegment, RingWriter

DEADLINE_S = 30.0

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory goes by descriptor on Linux only")


def make_pair(ring_bytes: int = 1024) -> tuple[RingSegment, RingWriter, RingReader]:
    segment = RingSegment.create(n_rings=2, ring_bytes=ring_bytes, n_wakes=2)
    reader = segment.reader(1)
    reader.open(7, 1)
    return segment, segment.writer(1), reader


@contextmanager
def ended(child: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is gone afterwards, also when the test failed."""
    with child:
        try:
            yield child
        finally:
            child.kill()


def spawn(code: str, segment: RingSegment) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """A worker as the supervisor starts one: a new interpreter that gets the handle and the descriptor."""
    command = [sys.executable, "-c", code, segment.handle_for_child()]
    return ended(subprocess.Popen(command, pass_fds=segment.pass_fds))


def test_frames_arrive_in_order_with_their_kinds() -> None:
    _, writer, reader = make_pair()

    pushed = [writer.push(kind, 7, b"frame %d" % kind) for kind in (3, 1, 2**32 - 1)]

    assert pushed == [True, True, True]
    assert reader.has_data
    assert reader.drain() == [(3, b"frame 3"), (1, b"frame 1"), (2**32 - 1, b"frame 4294967295")]
    assert reader.drain() == []
    assert not reader.has_data


@pytest.mark.parametrize("payload", [b"bytes", bytearray(b"bytes"), memoryview(b"xbytes")[1:], b""])
def test_push_takes_any_bytes_like_payload(payload: bytes | bytearray | memoryview) -> None:
    _, writer, reader = make_pair()

    assert writer.push(1, 7, payload)

    assert reader.drain() == [(1, bytes(payload))]


@pytest.mark.parametrize("payload", ["text", 5, None, memoryview(b"abcd")[::2]])
def test_push_refuses_what_is_not_contiguous_bytes(payload: object) -> None:
    _, writer, reader = make_pair()

    with pytest.raises((TypeError, BufferError)):
        writer.push(1, 7, payload)  # type: ignore[arg-type]

    assert not reader.has_data


def test_push_returns_false_when_the_ring_is_full_and_goes_on_after_a_drain() -> None:
    _, writer, reader = make_pair(ring_bytes=64)

    pushed = [writer.push(1, 7, b"0123456789abcdefghij") for _ in range(3)]

    assert pushed == [True, True, False]
    assert writer.free_bytes == 0
    assert len(reader.drain(1)) == 1
    assert writer.push(1, 7, b"room again")
    assert [payload for _, payload in reader.drain()] == [b"0123456789abcdefghij", b"room again"]


def test_push_raises_for_a_frame_that_can_never_fit() -> None:
    _, writer, reader = make_pair(ring_bytes=64)

    with pytest.raises(ValueError, match="53 bytes never fits into a token ring of 64 bytes"):
        writer.push(1, 7, bytes(53))

    assert writer.push(1, 7, bytes(52))
    assert reader.drain() == [(1, bytes(52))]


def test_reader_drops_the_frames_of_other_generations() -> None:
    _, writer, reader = make_pair()
    writer.push(1, 7, b"left over")

    reader.open(8, 0)
    writer.push(1, 7, b"late")
    writer.push(1, 8, b"new")

    assert reader.drain() == [(1, b"new")]
    assert reader.n_dropped == 1


@given(
    st.lists(
        st.one_of(st.binary(max_size=120), st.integers(min_value=1, max_value=9)),
        max_size=200,
    )
)
@settings(deadline=None)
def test_ring_behaves_as_a_bounded_queue(steps: list[bytes | int]) -> None:
    """Bytes are pushed, an integer drains as many frames; the model is a deque and a count of used bytes."""
    _, writer, reader = make_pair(ring_bytes=256)
    expected: deque[bytes] = deque()

    def used() -> int:
        return sum((12 + len(payload) + 7) // 8 * 8 for payload in expected)

    for step in steps:
        if isinstance(step, bytes):
            fits = used() + (12 + len(step) + 7) // 8 * 8 <= 256
            assert writer.push(1, 7, step) is fits
            if fits:
                expected.append(step)
        else:
            drained = [payload for _, payload in reader.drain(step)]
            assert drained == [expected.popleft() for _ in range(min(step, len(expected)))]
        assert writer.free_bytes == 256 - used()


def test_wait_times_out_without_data_and_returns_at_once_with_it() -> None:
    segment, writer, reader = make_pair()

    assert segment.wait(1, [0, 1], 0.0) is False
    assert segment.wait(1, [0, 1], 0.01) is False
    writer.push(1, 7, b"x")
    assert segment.wait(1, (0, 1), math.inf) is True
    assert segment.wait(1, [0], 0.0) is False
    reader.drain()
    assert segment.wait(1, [0, 1], 0.0) is False


def test_wake_counts_also_when_it_comes_before_the_wait_and_only_once() -> None:
    segment, _, _ = make_pair()

    segment.wake(1)
    segment.wake(1)

    assert segment.wait(0, [], 0.0) is False
    assert segment.wait(1, [], DEADLINE_S) is True
    assert segment.wait(1, [], 0.0) is False


def test_waiting_threads_leave_the_interpreter_to_others() -> None:
    """Four threads wait at once, and this one goes on meanwhile: had `wait` kept the GIL, nobody could have called
    `wake` before the first wait's deadline, and that wait would return False."""
    segment = RingSegment.create(n_rings=1, ring_bytes=1024, n_wakes=4)
    everyone_started = threading.Barrier(5)
    results: dict[int, bool] = {}

    def wait(index: int) -> None:
        everyone_started.wait(DEADLINE_S)
        results[index] = segment.wait(index, [0], 5.0)

    threads = [threading.Thread(target=wait, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    everyone_started.wait(DEADLINE_S)
    for index in range(4):
        segment.wake(index)
    for thread in threads:
        thread.join(DEADLINE_S)

    assert results == {0: True, 1: True, 2: True, 3: True}


def test_one_thread_waits_for_any_of_several_rings() -> None:
    segment = RingSegment.create(n_rings=3, ring_bytes=1024, n_wakes=1)
    readers = [segment.reader(ring) for ring in range(3)]
    for reader in readers:
        reader.open(1, 0)
    received: list[int] = []

    def read() -> None:
        while len(received) < 300 and segment.wait(0, [0, 1, 2], DEADLINE_S):
            for ring, reader in enumerate(readers):
                received.extend(ring for _ in reader.drain())

    thread = threading.Thread(target=read)
    thread.start()
    writers = [segment.writer(ring) for ring in range(3)]
    for _ in range(100):
        for writer in writers:
            while not writer.push(1, 1, b"token"):
                pass
    thread.join(DEADLINE_S)

    assert sorted(received) == [0] * 100 + [1] * 100 + [2] * 100


WAITING_CHILD = """
import sys
from hostler.ring import RingSegment
segment = RingSegment.create(n_rings=1, ring_bytes=1024, n_wakes=1)
try:
    print("waiting", flush=True)
    segment.wait(0, [0], 600.0)
except KeyboardInterrupt:
    sys.exit(42)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_wait_in_the_main_thread_is_ended_by_ctrl_c() -> None:
    with ended(subprocess.Popen([sys.executable, "-c", WAITING_CHILD], stdout=subprocess.PIPE)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"waiting\n"
        child.send_signal(signal.SIGINT)

        assert child.wait(DEADLINE_S) == 42


WRITING_CHILD = """
import os, struct, sys, zlib
from hostler.ring import RingSegment
segment = RingSegment.attach(sys.argv[1])
writer = segment.writer(1)
n = 0
while True:
    segment.beat()
    body = struct.pack("<Q", n) + bytes(n % 251)
    if writer.push(n % 65536, 7, body + struct.pack("<I", zlib.crc32(body))):
        n += 1
"""


def test_worker_killed_in_mid_stream_leaves_whole_frames_only() -> None:
    segment, _, reader = make_pair(ring_bytes=8192)
    with spawn(WRITING_CHILD, segment) as child:
        n_read = 0

        def drain() -> None:
            nonlocal n_read
            for kind, payload in reader.drain():
                body, checksum = payload[:-4], struct.unpack("<I", payload[-4:])[0]
                assert kind == n_read % 65536
                assert body == struct.pack("<Q", n_read) + bytes(n_read % 251)
                assert checksum == zlib.crc32(body)
                n_read += 1

        while n_read < 5_000:
            assert segment.wait(1, [1], DEADLINE_S)
            drain()
        child.kill()
        child.wait(DEADLINE_S)
        segment.wake_all()
        assert segment.wait(1, [1], 0.0)
        drain()

        assert not reader.has_data
        assert segment.beats >= n_read
        assert not segment.is_peer_closed


CLOSING_CHILD = """
import sys
from hostler.ring import RingSegment
segment = RingSegment.attach(sys.argv[1])
segment.writer(1).push(4, 7, b"the last frame")
segment.close()
"""


def test_worker_that_closes_is_seen_and_its_frames_stay_readable() -> None:
    segment, _, reader = make_pair()

    with spawn(CLOSING_CHILD, segment) as child:
        assert child.wait(DEADLINE_S) == 0

    assert segment.is_peer_closed
    assert segment.wait(1, [], 0.0) is True
    assert reader.drain() == [(4, b"the last frame")]


def test_host_that_closes_is_seen_by_the_worker() -> None:
    segment, writer, reader = make_pair()
    worker = RingSegment.attach(segment.handle_for_child())

    segment.close()
    segment.close()

    assert worker.is_peer_closed
    assert segment.is_closed
    for call in (
        lambda: writer.push(1, 7, b""),
        reader.drain,
        lambda: segment.wait(0, [], 0.0),
        lambda: reader.has_data,
    ):
        with pytest.raises(RingClosed, match="closed"):
            call()


def test_close_ends_a_wait_that_goes_on() -> None:
    segment, _, _ = make_pair()
    started = threading.Event()
    results: list[bool] = []

    def wait() -> None:
        started.set()
        results.append(segment.wait(1, [1], DEADLINE_S))

    thread = threading.Thread(target=wait)
    thread.start()
    assert started.wait(DEADLINE_S)
    segment.wake(1)
    thread.join(DEADLINE_S)
    segment.close()

    assert results == [True]


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ((0, 1024, 1), "n_rings is 0"),
        ((1, 1024, 0), "n_wakes is 0"),
        ((1, 1000, 1), "power of two"),
        ((1, 2**31, 1), "power of two"),
    ],
)
def test_segment_of_impossible_sizes_is_refused(sizes: tuple[int, int, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        RingSegment.create(*sizes)


def test_indices_out_of_range_are_refused() -> None:
    segment, _, reader = make_pair()

    for call in (
        lambda: segment.writer(2),
        lambda: segment.reader(2),
        lambda: segment.wake(2),
        lambda: segment.wait(2, [], 0.0),
        lambda: segment.wait(0, [2], 0.0),
        lambda: reader.open(1, 2),
    ):
        with pytest.raises(IndexError, match="does not exist"):
            call()


@pytest.mark.parametrize("timeout_s", [-1.0, math.nan])
def test_wait_refuses_a_timeout_that_is_none(timeout_s: float) -> None:
    segment, _, _ = make_pair()

    with pytest.raises(ValueError, match="timeout_s"):
        segment.wait(0, [], timeout_s)


@pytest.mark.parametrize("handle", ["", "fd:", "fd:-1", "fd:5x", "5", "nonsense"])
def test_attach_refuses_text_that_is_no_handle(handle: str) -> None:
    with pytest.raises(ValueError, match="no shared-memory handle"):
        RingSegment.attach(handle)


@linux_only
def test_attach_says_when_the_descriptor_was_not_passed() -> None:
    with pytest.raises(OSError, match="was not passed to this process"):
        RingSegment.attach("fd:987654")


@linux_only
def test_attach_refuses_memory_that_is_no_segment() -> None:
    fd = os.memfd_create("not-a-ring")
    try:
        os.ftruncate(fd, 4096)
        with pytest.raises(RingCorrupt, match="no ring segment"):
            RingSegment.attach(f"fd:{fd}")
    finally:
        os.close(fd)


@linux_only
def test_segment_cannot_be_shrunk_under_its_host() -> None:
    segment, _, _ = make_pair()

    with pytest.raises(PermissionError):
        os.ftruncate(segment.pass_fds[0], 0)


@linux_only
def test_segments_leave_no_descriptor_and_no_mapping_behind() -> None:
    def n_descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    def n_mappings() -> int:
        with open("/proc/self/maps", encoding="ascii") as maps:
            return sum("hostler-ring" in line for line in maps)

    gc.collect()
    before = n_descriptors(), n_mappings()
    for _ in range(20):
        segment, writer, reader = make_pair()
        worker = RingSegment.attach(segment.handle_for_child())
        assert n_mappings() >= 2
        worker.close()
        segment.close()
        del segment, writer, reader, worker
    gc.collect()

    assert (n_descriptors(), n_mappings()) == before


@linux_only
def test_attached_descriptor_does_not_leak_into_the_workers_own_children() -> None:
    segment, _, _ = make_pair()
    os.set_inheritable(segment.pass_fds[0], True)

    RingSegment.attach(segment.handle_for_child())

    assert not os.get_inheritable(segment.pass_fds[0])
