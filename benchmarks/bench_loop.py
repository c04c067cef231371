"""What the worker's loop itself costs per token, beside the engine's evaluation.

    python benchmarks/bench_loop.py --model-path M.gguf

One process, one thread: the real loop, the real llama.cpp engine (plugins/llamacpp), real rings, no HTTP and no reader. The
window is what lies between two evaluations: from the end of one `llama_decode` that takes one token of every stream to the
start of the next such one. So it holds sampling, text assembly, the ring writes, the loop's turn, the choice of the next
step and the filling of its batch; `loop_us_per_token` is the thread's processor time in it per token, `loop_share` its share
of the whole. `greedy` has temperature 0, `sampled` a model's default parameters. Rounds go through all numbers of streams in
turn, after one that is not counted.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

from common import Context, add_run_arguments, compare, print_table, write_results

from hostler import EngineSettings, ModelFiles, SamplingParams
from hostler.ring import RingSegment
from hostler.text import StopStrings
from hostler.worker.loop import Arrived, Inbox, Loop, StopAsked
from hostler.worker.preparation import Prepared
from hostler.worker.wire import SequenceClosed, Submit
from hostler_llamacpp.binding import Batch
from hostler_llamacpp.engine import LlamaCppEngine

BENCHMARK = "loop"
UNITS = {"loop_us_per_token": "us", "loop_share": "", "tok_s": "tok/s"}
RING_BYTES = 1 << 20
"""Holds a whole answer: nobody reads before the end."""
N_PROMPT = 24
FIRST_TOKEN_ID, LAST_TOKEN_ID = 1000, 20000


class Windows:
    """Times what lies between evaluations; stands in `Batch.decode` for as long as the program runs."""

    def __init__(self) -> None:
        self._decode = Batch.decode
        self.n_streams = 0
        self.clear()
        windows = self

        def decode(batch: Batch, context: int) -> int:
            return windows.evaluate(batch, context)

        Batch.decode = decode  # type: ignore[method-assign]

    def clear(self) -> None:
        """Start over."""
        self.outside_s = self.inside_s = 0.0
        self.n_steps = 0
        self._cpu_s = self._wall_s = 0.0
        self._was_plain = False

    def evaluate(self, batch: Batch, context: int) -> int:
        """One call of llama_decode."""
        is_plain = batch.n_tokens == self.n_streams
        cpu_s, wall_s = time.thread_time(), time.perf_counter()
        if is_plain and self._was_plain:
            self.outside_s += cpu_s - self._cpu_s
            self.inside_s += wall_s - self._wall_s
            self.n_steps += 1
        code = self._decode(batch, context)
        self._was_plain = is_plain
        self._wall_s, self._cpu_s = wall_s, time.thread_time()
        return code

    def metrics(self) -> dict[str, float]:
        """Of all windows since the last `clear`; a step's wall time runs from one evaluation's start to the next one's."""
        n_tokens = self.n_steps * self.n_streams
        return {
            "loop_us_per_token": 1e6 * self.outside_s / n_tokens,
            "loop_share": self.outside_s / self.inside_s,
            "tok_s": n_tokens / self.inside_s,
        }


class Bench:
    """One loaded model."""

    def __init__(self, path: Path, n_slots: int, n_threads: int, speculation: str) -> None:
        self.engine = LlamaCppEngine()
        settings = EngineSettings(
            ctx_len=1024, n_parallel=n_slots, cpu_threads=n_threads, caching_enabled=False, speculation=speculation
        )
        self.info = self.engine.load(ModelFiles(str(path), str(path.parent)), settings, lambda _: True)
        self.windows = Windows()
        self._n_sequences = 0

    def measure(self, n_streams: int, params: SamplingParams) -> dict[str, float]:
        """So many streams at once, each with as many new tokens as `params` say."""
        segment, inbox, n_open = RingSegment.create(n_streams, RING_BYTES, n_streams), Inbox(), n_streams
        readers = []

        def send(message: object) -> None:
            nonlocal n_open
            if isinstance(message, SequenceClosed):
                n_open -= 1
                if not n_open:
                    inbox.put(StopAsked())

        self.windows.n_streams = n_streams
        self.windows.clear()
        loop = Loop(self.engine, self.info, segment, inbox, send, stall_timeout_s=60.0)
        for ring in range(n_streams):
            self._n_sequences += 1
            draw = random.Random(self._n_sequences)
            reader = segment.reader(ring)
            reader.open(self._n_sequences, ring)
            readers.append(reader)
            prompt = [draw.randint(FIRST_TOKEN_ID, LAST_TOKEN_ID) for _ in range(N_PROMPT)]
            inbox.put(Arrived(Submit(self._n_sequences, ring, params, prompt=tuple(prompt))))
            inbox.put(Prepared(self._n_sequences, prompt, params, StopStrings(params.stop), False))
        loop.run()
        segment.close()
        return self.windows.metrics()


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, n_rounds=5, n_threads=2, model="GGUF file")
    parser.add_argument("--streams", type=int, action="append", default=[], help="repeatable; default: 1, 4, 16")
    parser.add_argument("--tokens", type=int, default=100, help="per stream and round (100)")
    parser.add_argument("--speculation", default="auto", help="as the model's setting (auto)")
    arguments = parser.parse_args(argv)
    streams = arguments.streams or [1, 4, 16]
    kinds = {
        "greedy": SamplingParams(temperature=0, ignore_eos=True, max_tokens=arguments.tokens, seed=1),
        "sampled": SamplingParams(ignore_eos=True, max_tokens=arguments.tokens, seed=1),
    }
    context = Context()
    bench = Bench(arguments.model_path, max(streams), arguments.threads, arguments.speculation)
    rounds: dict[tuple[str, int], list[dict[str, float]]] = {(kind, n): [] for kind in kinds for n in streams}
    for number in range(-1, arguments.rounds):
        for (kind, n_streams), results in rounds.items():
            result = bench.measure(n_streams, kinds[kind])
            if number >= 0:
                results.append(result)
    rows = []
    for (kind, n_streams), results in rounds.items():
        settings = f"streams={n_streams} tokens={arguments.tokens} threads={arguments.threads}"
        subject = {f"{n_streams} streams": results}
        rows += compare(BENCHMARK, kind, subject, UNITS, "", arguments.model_path.name, settings)
    print_table(rows)
    write_results(arguments, rows, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
