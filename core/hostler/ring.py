"""The token ring's Python face: how output tokens get from a worker process to the host thread that streams them.

Floor 1, used on both sides. The host makes one segment per worker and passes its handle on; the worker attaches it:

    segment = RingSegment.create(n_rings=8, ring_bytes=65536, n_wakes=136)            # host
    Popen([..., segment.handle_for_child()], pass_fds=segment.pass_fds)
    segment = RingSegment.attach(handle)                                              # worker

Each ring has one writer, the worker's loop thread, and one reader, the host thread that streams the request. That
thread sleeps in native code with the GIL released, on a wake word of its own, however many rings it reads:

    reader = segment.reader(ring)
    reader.open(generation, wake_index)                 # before the sequence is submitted
    while segment.wait(wake_index, [ring], timeout_s=5.0):
        for kind, payload in reader.drain(): ...        # a wait that returned True may still drain nothing

    writer = segment.writer(ring)                       # worker
    if not writer.push(kind, generation, payload): ...  # full: this sequence pauses, nobody else does
    segment.beat()                                      # once a loop, so that the host can tell a hang

`segment.wake(wake_index)` makes a wait return True at once: call it after setting the flag that the thread should see
(cancelled, worker dead). It must not know what frames mean (`worker/wire.py` does). Layout, memory order and what a
killed peer leaves behind: docs/ring-format.md and cpp/include/hostler/token_ring.h.
"""

from __future__ import annotations

from hostler._native import RingClosed, RingCorrupt, RingReader, RingSegment, RingWriter

__all__ = ["RingClosed", "RingCorrupt", "RingReader", "RingSegment", "RingWriter"]
