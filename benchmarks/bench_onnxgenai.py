"""The onnxgenai engine against onnxruntime-genai's own ways to generate, in one process, on the same model and threads.

    python benchmarks/bench_onnxgenai.py --model-path FOLDER

Subjects take turns within a round, and the order turns with the round. The engine is stepped as a worker's loop does it,
through the sink of the conformance kit (text assembly included); the library is driven as its examples do.

- `single`: one prompt, greedy, to `loop`, the library's `generate_next_token`. `decode_tok_s` runs from the first token to the
  last, `ttft` from the call to the first token.
- `streams`: N prompts at once, to `static`, the library's Engine, which batches statically. `new_tok_s` is all new tokens over
  the time from the first call to the last token, prefill included.
- `late`: a request that comes while N - 1 others decode; `ttft` to the same request's TTFT `alone`.

Prompts are random token ids, new ones each round, the same for all subjects; no end token is recognised, so all answers are of
one length. Threads spin as each side has it by default.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
from common import Context, Row, add_run_arguments, compare, print_table, write_results

from hostler import EngineSettings, ModelFiles, SamplingParams, TokenLogprob
from hostler.testing import Driver, RecordingSequence
from hostler_onnxgenai.engine import OnnxGenaiEngine

BENCHMARK = "onnxgenai"
BARS = {"single": ("decode_tok_s", 0.97), "streams": ("new_tok_s", 1.2), "late": ("ttft", 1.5)}


class TimedSequence(RecordingSequence):
    """A request that notes when each token came."""

    def __init__(self, tokens: list[int], n_new: int, n_ctx: int) -> None:
        params = SamplingParams(temperature=0.0, seed=1, max_tokens=n_new, ignore_eos=True)
        super().__init__(tokens, params, n_ctx=n_ctx, cache_prompt=False)
        self.times: list[float] = []

    def push(self, token_id: int, piece: bytes, logprob: TokenLogprob | None = None) -> bool:
        """See SequenceSink."""
        self.times.append(time.perf_counter())
        return super().push(token_id, piece, logprob)


class Ours:
    """The engine of hostler."""

    def __init__(self, path: Path, n_slots: int, n_ctx: int, n_threads: int, backend: str) -> None:
        self.engine = OnnxGenaiEngine()
        settings = EngineSettings(ctx_len=n_ctx, n_parallel=n_slots, cpu_threads=n_threads, extra={"backend": backend})
        self.info = self.engine.load(ModelFiles(str(path), "onnxgenai"), settings, lambda _: True)

    def sequence(self, prompt: list[int], n_new: int) -> TimedSequence:
        return TimedSequence(prompt, n_new, self.info.n_ctx)

    def driver(self) -> Driver:
        return Driver(self.engine, n_slots=self.info.n_slots)

    def single(self, prompt: list[int], n_new: int) -> dict[str, float]:
        """One stream."""
        sequence = self.sequence(prompt, n_new)
        driver = self.driver()
        started = time.perf_counter()
        driver.add(sequence)
        driver.run()
        return stream_times(started, sequence.times, n_new)

    def streams(self, prompts: list[list[int]], n_new: int) -> dict[str, float]:
        """Several at once."""
        sequences = [self.sequence(prompt, n_new) for prompt in prompts]
        driver = self.driver()
        started = time.perf_counter()
        driver.run(sequences)
        elapsed = time.perf_counter() - started
        assert all(len(sequence.token_ids) == n_new for sequence in sequences)
        return {
            "new_tok_s": len(prompts) * n_new / elapsed,
            "ttft_worst": 1e3 * max(sequence.times[0] - started for sequence in sequences),
        }

    def late(self, prompts: list[list[int]], late: list[int]) -> dict[str, float]:
        """One that comes while others decode."""
        running = [self.sequence(prompt, 400) for prompt in prompts]
        driver = self.driver()
        for sequence in running:
            driver.add(sequence)
        driver.step_until(lambda: all(len(sequence.token_ids) >= 10 for sequence in running))
        coming = self.sequence(late, 4)
        started = time.perf_counter()
        driver.add(coming)
        driver.step_until(lambda: bool(coming.times))
        gaps = [b - a for sequence in running for a, b in zip(sequence.times[5:], sequence.times[6:], strict=False)]
        driver.cancel_all()
        return {"ttft": 1e3 * (coming.times[0] - started), "itl_worst": 1e3 * max(gaps, default=float("nan"))}


class Library:
    """onnxruntime-genai, driven as its own examples do."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int) -> None:
        import onnxruntime_genai as og

        self.og = og
        self.n_ctx = n_ctx
        config = og.Config(str(path))
        n_vocab = json.loads((path / "genai_config.json").read_text())["model"]["vocab_size"]
        options = {"intra_op_num_threads": n_threads}
        # An id that no model of this size chooses, so that every answer has its whole length.
        changes = {"model": {"decoder": {"session_options": options}, "eos_token_id": n_vocab - 1}}
        config.overlay(json.dumps(changes))
        self.model = og.Model(config)
        params = og.GeneratorParams(self.model)
        params.set_search_options(max_length=n_ctx, do_sample=False)
        self.generator = og.Generator(self.model, params)

    def single(self, prompt: list[int], n_new: int) -> dict[str, float]:
        """The generate loop."""
        generator = self.generator
        generator.rewind_to(0)
        times = []
        started = time.perf_counter()
        generator.append_tokens(np.array(prompt, np.int32))
        for _ in range(n_new):
            generator.generate_next_token()
            generator.get_next_tokens()
            times.append(time.perf_counter())
        return stream_times(started, times, n_new)

    def streams(self, prompts: list[list[int]], n_new: int) -> dict[str, float]:
        """The static Engine."""
        og = self.og
        engine = og.Engine(self.model)
        events = engine.create_event_buffer(64)
        options = og.RequestOptions()
        options.set_max_session_tokens(min(self.n_ctx, max(map(len, prompts)) + n_new + 8))
        requests = []
        first: dict[int, float] = {}
        n_tokens = 0
        started = time.perf_counter()
        for prompt in prompts:
            request = engine.create_request(options=options)
            turn = og.TurnOptions(request)
            turn.set_max_generated_tokens(n_new)
            turn.set_do_sample(False)
            request.begin_turn(np.array(prompt, np.int32), turn)
            requests.append(request)
        while engine.has_pending_requests():
            for event in engine.run(events):
                if event.flags.value & 1:
                    n_tokens += 1
                    first.setdefault(id(event.request), time.perf_counter())
        elapsed = time.perf_counter() - started
        for request in requests:
            request.close()
        assert n_tokens == len(prompts) * n_new, f"{n_tokens} tokens came"
        return {"new_tok_s": n_tokens / elapsed, "ttft_worst": 1e3 * (max(first.values()) - started)}


def stream_times(started: float, times: list[float], n_new: int) -> dict[str, float]:
    """What one stream's tokens tell."""
    assert len(times) == n_new, f"{len(times)} tokens came"
    return {
        "decode_tok_s": (n_new - 1) / (times[-1] - times[0]),
        "ttft": 1e3 * (times[0] - started),
        "whole": 1e3 * (times[-1] - started),
    }


Measure = Callable[[], dict[str, float]]


REST_S = 0.05
"""Between two subjects: the library's threads spin on for a while, and would take a core from whoever comes next."""


def take_turns(n_rounds: int, subjects: Callable[[int], dict[str, Measure]]) -> dict[str, list[dict[str, float]]]:
    """Measure all subjects in every round; the first round is not counted."""
    rounds: dict[str, list[dict[str, float]]] = {}
    for number in range(n_rounds + 1):
        measures = subjects(number)
        for name in list(measures) if number % 2 else list(measures)[::-1]:
            time.sleep(REST_S)
            result = measures[name]()
            if number:
                rounds.setdefault(name, []).append(result)
    return {name: rounds[name] for name in subjects(0)}


def main(argv: list[str] | None = None) -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_arguments(parser, n_rounds=7, n_threads=os.cpu_count(), model="model folder with a genai_config.json")
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 2, 4, 8])
    parser.add_argument("--prompt", type=int, default=60, help="tokens of each prompt (60)")
    parser.add_argument("--new", type=int, default=64, help="new tokens of each answer (64)")
    parser.add_argument("--ctx", type=int, default=1024, help="tokens per slot (1024)")
    parser.add_argument("--generators", action="store_true", help="also measure the engine over the library's Generators")
    arguments = parser.parse_args(argv)
    path: Path = arguments.model_path
    n_slots = max([8, *arguments.streams])
    ours = {"hostler": Ours(path, n_slots, arguments.ctx, arguments.threads, "session")}
    if arguments.generators:
        ours["generators"] = Ours(path, n_slots, arguments.ctx, arguments.threads, "generators")
    library = Library(path, arguments.ctx, arguments.threads)
    n_vocab = ours["hostler"].info.n_vocab
    drawn = random.Random(20_261_126)
    context = Context()
    rows: list[Row] = []
    settings = f"prompt={arguments.prompt} new={arguments.new} ctx_len={arguments.ctx} threads={arguments.threads}"

    def prompts(n: int) -> list[list[int]]:
        return [[drawn.randrange(n_vocab // 2) for _ in range(arguments.prompt)] for _ in range(n)]

    def note(workload: str, rounds: dict[str, list[dict[str, float]]], units: dict[str, str], baseline: str) -> None:
        rows.extend(compare(BENCHMARK, workload, rounds, units, baseline, path.name, settings))

    def single(_number: int) -> dict[str, Measure]:
        [prompt] = prompts(1)
        measures: dict[str, Measure] = {"loop": lambda: library.single(prompt, 2 * arguments.new)}
        return measures | {name: lambda one=one: one.single(prompt, 2 * arguments.new) for name, one in ours.items()}

    note("single", take_turns(arguments.rounds, single), {"decode_tok_s": "tok/s", "ttft": "ms", "whole": "ms"}, "loop")
    for n in arguments.streams:

        def streams(_number: int, n: int = n) -> dict[str, Measure]:
            batch = prompts(n)
            measures: dict[str, Measure] = {"static": lambda: library.streams(batch, arguments.new)}
            return measures | {name: lambda one=one: one.streams(batch, arguments.new) for name, one in ours.items()}

        note(f"streams{n}", take_turns(arguments.rounds, streams), {"new_tok_s": "tok/s", "ttft_worst": "ms"}, "static")
    for n in arguments.streams:
        if n < 2:
            continue

        def late(_number: int, n: int = n) -> dict[str, Measure]:
            *running, coming = prompts(n)
            measures: dict[str, Measure] = {}
            for name, one in ours.items():
                measures[name if len(ours) == 1 else f"{name}_late"] = lambda one=one: one.late(running, coming)
                measures["alone" if name == "hostler" else f"{name}_alone"] = lambda one=one: one.late([], coming)
            return measures

        note(f"late{n}", take_turns(arguments.rounds, late), {"ttft": "ms", "itl_worst": "ms"}, "alone")
    print_table(rows)
    for row in rows:
        metric, bar = next((bar for name, bar in BARS.items() if row.workload.startswith(name)), ("", 0.0))
        is_barred = row.subject.startswith("hostler") and row.metric == metric and row.ratio == row.ratio
        if is_barred and (row.workload in ("single", "streams8") or metric == "ttft"):
            is_kept = row.ratio <= bar if metric == "ttft" else row.ratio >= bar
            sign = "<=" if metric == "ttft" else ">="
            print(f"{'kept' if is_kept else 'MISSED'}: {row.workload} {metric} {row.ratio:.3f} {sign} {bar} x {row.baseline}")
    write_results(arguments, rows, context)
    return 0


if __name__ == "__main__":
    sys.exit(main())
