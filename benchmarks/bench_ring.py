"""The token ring between two processes, beside multiprocessing's Pipe and Queue in the same run.

    python benchmarks/bench_ring.py

Two windows, each over a fresh spawned sender, the three channels in turn within a round:

- throughput: from the first to the last of `--messages` payloads of 16 bytes in the receiver's hands. The sender pushes as
  fast as it can; the receiver takes what is there (`drain`, `recv_bytes`, `get`).
- wake-up: the sender sends its clock's reading about every millisecond, so that the receiver sleeps before each; one value
  is the time from before the sender's call to after the receiver's return, by the system's monotonic clock. A round gives
  its p50 and p99.

The interpreter's own cost is inside both windows: it is what hostler pays, too.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import struct
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import reduction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from common import Context, Row, compare, percentile, print_table, write_csv, write_json

from hostler.ring import RingSegment

CONTEXT = multiprocessing.get_context("spawn")
STAMP = struct.Struct("<QQ")
RING_BYTES = 65_536
GENERATION = 7
DEADLINE_S = 60.0
UNITS = {"messages_per_s": "1/s", "wake_p50_us": "us", "wake_p99_us": "us"}
EXPECTED = {("messages_per_s", "queue"): 20.0, ("messages_per_s", "pipe"): 5.0}
"""At least so many times a baseline's throughput; of its wake-up p50 at most 1.0 of the pipe's."""


class Ring:
    """One ring of a segment; pickled to the sender as the supervisor would pass it: by descriptor or name."""

    def __init__(self, segment: RingSegment | None = None) -> None:
        self.segment = segment or RingSegment.create(n_rings=1, ring_bytes=RING_BYTES, n_wakes=1)
        self.reader = self.segment.reader(0)
        self.writer = self.segment.writer(0)
        if segment is None:
            self.reader.open(GENERATION, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        fds = [reduction.DupFd(fd) for fd in self.segment.pass_fds]
        return _attach_ring, (self.segment.handle_for_child(), fds)

    def send(self, payload: bytes) -> None:
        while not self.writer.push(1, GENERATION, payload):
            time.sleep(0)  # full: let the reader run

    def receive(self) -> Iterator[bytes]:
        while self.segment.wait(0, (0,), DEADLINE_S):
            for _, payload in self.reader.drain():
                yield payload


def _attach_ring(handle: str, fds: list[Any]) -> Ring:
    return Ring(RingSegment.attach(f"fd:{fds[0].detach()}" if fds else handle))


class Pipe:
    """A one-way pipe; bytes go through as they are, without pickling."""

    def __init__(self) -> None:
        self.receiver, self.sender = CONTEXT.Pipe(duplex=False)

    def send(self, payload: bytes) -> None:
        self.sender.send_bytes(payload)

    def receive(self) -> Iterator[bytes]:
        while True:
            yield self.receiver.recv_bytes()


class Queue:
    """A queue; it pickles, and hands over to a feeder thread."""

    def __init__(self) -> None:
        self.queue = CONTEXT.Queue()

    def send(self, payload: bytes) -> None:
        self.queue.put(payload)

    def receive(self) -> Iterator[bytes]:
        while True:
            yield self.queue.get(timeout=DEADLINE_S)


CHANNELS: dict[str, Callable[[], Any]] = {"ring": Ring, "pipe": Pipe, "queue": Queue}


def send_all(channel: Any, go: Connection, n_messages: int) -> None:
    """Sender: as fast as it can."""
    payload = bytes(16)
    send = channel.send
    go.send_bytes(b"ready")
    go.recv_bytes()
    for _ in range(n_messages):
        send(payload)


def send_stamps(channel: Any, go: Connection, n_messages: int) -> None:
    """Sender: one reading of the clock about every millisecond."""
    go.send_bytes(b"ready")
    go.recv_bytes()
    for n in range(n_messages):
        time.sleep(0.001)
        channel.send(STAMP.pack(n, time.monotonic_ns()))


def with_sender(channel: Any, work: Callable[..., None], n_messages: int, receive: Callable[[], Any]) -> Any:
    """Start a sender, wait until it is ready, and receive."""
    go, remote = CONTEXT.Pipe()
    process = CONTEXT.Process(target=work, args=(channel, remote, n_messages), daemon=True)
    process.start()
    try:
        go.recv_bytes()  # the sender's interpreter is up; its start is in no window
        go.send_bytes(b"go")
        return receive()
    finally:
        process.join(DEADLINE_S)
        process.kill()


def throughput(make: Callable[[], Any], n_messages: int) -> float:
    """Messages a second."""
    channel = make()

    def receive() -> float:
        stream = channel.receive()
        next(stream)
        started = time.perf_counter()  # from the first message on: "go" itself travels through a pipe
        for _ in range(n_messages - 1):
            next(stream)
        return (n_messages - 1) / (time.perf_counter() - started)

    return float(with_sender(channel, send_all, n_messages, receive))


def wake_ups(make: Callable[[], Any], n_messages: int) -> list[float]:
    """Microseconds from send to receipt, each with a receiver that slept."""
    channel = make()

    def receive() -> list[float]:
        latencies = []
        stream = channel.receive()
        for n in range(n_messages):
            payload = next(stream)
            received_ns = time.monotonic_ns()
            number, sent_ns = STAMP.unpack(payload)
            if number != n:
                raise RuntimeError(f"message {number} came where {n} was due")
            latencies.append((received_ns - sent_ns) / 1e3)
        return latencies[n_messages // 10 :]  # the first ones pay for cold code

    return list(with_sender(channel, send_stamps, n_messages, receive))


def measure(name: str, n_messages: int, n_wakes: int) -> dict[str, float]:
    """One round of one channel."""
    latencies = wake_ups(CHANNELS[name], n_wakes)
    return {
        "messages_per_s": throughput(CHANNELS[name], n_messages),
        "wake_p50_us": percentile(latencies, 50),
        "wake_p99_us": percentile(latencies, 99),
    }


def verdicts(rows: list[Row]) -> list[str]:
    """What was expected, what came out."""
    ratios = {(row.metric, row.baseline): row.ratio for row in rows if row.subject == "ring"}
    lines = []
    for (metric, baseline), least in EXPECTED.items():
        ratio = ratios.get((metric, baseline), math.nan)
        lines.append(f"{'as expected' if ratio >= least else 'MISSED'}: {metric} {ratio:.1f} x {baseline}'s (>= {least:g})")
    for metric in ("wake_p50_us", "wake_p99_us"):
        ratio = ratios.get((metric, "pipe"), math.nan)
        lines.append(f"{'as expected' if ratio <= 1.0 else 'MISSED'}: {metric} {ratio:.2f} x pipe's (<= 1)")
    return lines


def main() -> int:
    """Run the rounds, print a table, write the rows if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=300_000, help="16-byte messages a throughput window")
    parser.add_argument("--wakes", type=int, default=1000, help="wake-ups a round")
    parser.add_argument("--csv", type=Path, help="write the rows here; - is standard output")
    parser.add_argument("--json", type=Path, help="the same, with every round's value")
    arguments = parser.parse_args()

    names = list(CHANNELS)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(arguments.rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:  # nobody is always first after the other's noise
            rounds[name].append(measure(name, arguments.messages, arguments.wakes))
        print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)

    settings = f"messages={arguments.messages} wakes={arguments.wakes} ring_bytes={RING_BYTES}"
    rows = compare("ring", "16 bytes", rounds, UNITS, "pipe", settings=settings)
    against_queue = {name: rounds[name] for name in ("ring", "queue")}
    rows += [
        row for row in compare("ring", "16 bytes", against_queue, UNITS, "queue", settings=settings) if row.subject == "ring"
    ]
    context = Context()
    print_table(rows)
    print("\n" + "\n".join(verdicts(rows)))
    if arguments.csv is not None:
        write_csv(Path("/dev/stdout") if str(arguments.csv) == "-" else arguments.csv, rows, context)
    if arguments.json is not None:
        write_json(arguments.json, rows, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
