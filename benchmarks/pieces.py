"""The table of `make bench`: each workload with its servers, what it gives and what it must reach.

A piece is a set of subjects measured in turn in each round. Subjects that are servers are started once a run and warmed up;
llama-bench and llama-batched-bench are processes of their own each time.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import arrivals
import chats
import copies
import prefixes
import slots
import soak
import tuned
from bars import Bar
from bench_serving import ask_by_tokens, run_llama_bench
from bench_serving import measure as measure_serving
from lineup import Lineup
from servers import Hostler, Server
from workloads import UNITS as SERVING_UNITS
from workloads import WORKLOADS, Workload

Measure = Callable[[Lineup, str, int], dict[str, float]]
"""(servers, name of the round, seed) -> metrics."""

PEER = "llama-server"
PLAIN = "no speculation"
"""A hostler like the other, with speculation off."""
UNAIDED: dict[str, dict[str, Any]] = {"hostler": {"speculation": "off"}}
"""Where the engine is measured: a small model that is greedy repeats itself, and guessing would hide what a step costs."""


@dataclass(frozen=True)
class Piece:
    """One row of the table."""

    name: str
    about: str
    n_slots: int
    ctx_len: int
    subjects: dict[str, Measure]
    """In the order of the report; `hostler` and the peers."""
    units: dict[str, str]
    bars: tuple[Bar, ...]
    peers: tuple[str, ...] = (PEER,)
    """Subjects that are not run without the peer's folder."""
    warm_up: Callable[[Server, int], object] | None = None
    """(server, seed); for each server after its start."""
    more: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By subject: what its start request has besides."""
    kind: str = ""
    """The type that the weights are written in for it; empty: the file as it is."""
    home: str = ""
    """Name of a home of hostler's that stays; empty: a temporary one."""
    prepare: Callable[[Hostler, bool], object] | None = None
    """(server, is_quick); for hostler before the model starts."""
    n_rounds: int = 3
    is_quick: bool = True
    """Whether `--quick` has it."""


# -- what stood in bench_serving.py before -----------------------------------------------------------------------------


def _serve(name: str, workload: Workload, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    return measure_serving(lineup.server(name), workload, round_name, seed, [])


def _serve_alone(name: str, workload: Workload, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    with lineup.alone(name) as server:
        return measure_serving(server, workload, round_name, seed, [])


def _serving(workload: Workload, bars: tuple[Bar, ...]) -> Piece:
    def warm_up(server: Server, seed: int) -> None:
        measure_serving(server, workload, f"warm-up {server.name}", seed, [])

    is_alone = workload.n_clients == 1
    serve = _serve_alone if is_alone else _serve
    subjects = {name: functools.partial(serve, name, workload) for name in ("hostler", PEER)}
    return Piece(
        *(workload.name, workload.about, 16, 1024, subjects, SERVING_UNITS, bars),
        warm_up=warm_up,
        n_rounds=9 if is_alone else 5,
    )


RAW_TESTS = {"pp115": (115, 0), "pp512": (512, 0), "tg128": (0, 128)}


def _ask_raw(lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    result = {"errors": 0.0}
    with lineup.alone("hostler") as server:
        for name, (n_prompt, n_new) in RAW_TESTS.items():
            result[name], error = ask_by_tokens(server, n_prompt, n_new, f"{seed} {name} {round_name}")
            if error:
                result["errors"] += 1
                print(f"  {server.name} {name}: {error}", file=sys.stderr)
    return result


def _run_raw(lineup: Lineup, _round_name: str, _seed: int) -> dict[str, float]:
    binary = lineup.setup.binary("llama-bench")
    return {name: run_llama_bench(binary, lineup.settings, *test) for name, test in RAW_TESTS.items()} | {"errors": 0.0}


def _raw() -> Piece:
    bars = tuple(Bar(name, True, 0.97, "llama-bench") for name in RAW_TESTS)
    units = dict.fromkeys(RAW_TESTS, "tok/s") | {"errors": "requests"}
    subjects = {"hostler": _ask_raw, "llama-bench": _run_raw}

    def warm_up(server: Server, seed: int) -> None:
        for name, test in RAW_TESTS.items():
            ask_by_tokens(server, *test, f"{seed} {name} warm-up")

    about = "one request, prefill and decode by the worker's clock"
    return Piece("raw", about, 16, 1024, subjects, units, bars, ("llama-bench",), warm_up, UNAIDED, n_rounds=15)


# -- slots -------------------------------------------------------------------------------------------------------------

N_TEMPLATE_TOKENS = 34
"""About what the template of SmolLM2 adds to one message of words, and the request's own words behind its context."""


def _slots(n_slots: int, n_context: int) -> Piece:
    n_words, n_new, ctx_len = n_context - N_TEMPLATE_TOKENS, 64, 2048 if n_context > 512 else 512

    def ask(lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
        with lineup.alone("hostler") as server:
            return slots.measure(server, n_slots, n_words, n_new, seed, round_name)

    def run(lineup: Lineup, _round_name: str, _seed: int) -> dict[str, float]:
        return slots.run_batched_bench(lineup.setup.binary("llama-batched-bench"), lineup.settings, n_context, n_new)

    def warm_up(server: Server, seed: int) -> None:
        slots.warm_up(server, n_slots, n_words, seed)

    raw = "llama-batched-bench"
    bars = (Bar("decode_tok_s", True, 0.95, raw),)
    about = f"{n_slots} slots decode behind distinct contexts of {n_context} tokens"
    name, subjects, is_short = f"slots{n_slots}x{n_context}", {"hostler": ask, raw: run}, n_context < 512
    return Piece(
        name,
        about,
        n_slots,
        ctx_len,
        subjects,
        slots.UNITS,
        bars,
        (raw,),
        warm_up,
        UNAIDED,
        n_rounds=7 if is_short else 3,
        is_quick=is_short,
    )


# -- chats, arrivals, prefixes, copies ---------------------------------------------------------------------------------


def _warm_up_a_little(server: Server, seed: int) -> None:
    """Two requests a slot: late imports, buffers, first costs."""
    little = Workload("little", "", 4, 2, 40, 8)
    measure_serving(server, little, f"warm-up {server.name}", seed, [])


def _chat(name: str, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    talks = chats.open_chats(16, seed, "chats", round_name)
    return chats.measure(talks, chats.talk(lineup.server(name), talks, 8))


def _chat_restarted(name: str, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    server, talks = lineup.server(name), chats.open_chats(16, seed, "restart", round_name)
    window_s = chats.talk(server, talks, 4)
    server.restart()
    _warm_up_a_little(server, seed + 1 + int(round_name))
    return chats.measure(talks, window_s + chats.talk(server, talks, 1), n_before=4)


def _arrive(name: str, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    return arrivals.measure(lineup.server(name), round_name, seed)


def _arrive_8k(name: str, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    return arrivals.measure(lineup.server(name), f"8k {round_name}", seed, 1, arrivals.N_WORDS_8K)


_ARRIVALS_BARS = (
    Bar("itl_p99_by_steady", False, 4.0),
    Bar("itl_longest_by_steady", False, 8.0),
    Bar("ttft_by_alone", False, 2.0),
)


def _prefix(lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    return prefixes.measure(lineup.server("hostler"), round_name, seed)


def _copy(name: str, is_copy: bool, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    with lineup.alone(name) as server:
        return copies.measure(server, round_name, seed, is_copy)


def _copies(name: str, about: str, is_copy: bool, bound: float, kind: str = "") -> Piece:
    subjects = {server: functools.partial(_copy, server, is_copy) for server in ("hostler", PLAIN)}
    bars = (Bar("decode_tok_s", True, bound, PLAIN),)
    more = {PLAIN: {"speculation": "off"}}
    return Piece(name, about, 4, 1024, subjects, copies.UNITS, bars, (), _warm_up_a_little, more, kind, n_rounds=7)


def _both(measure: Callable[[str, Lineup, str, int], dict[str, float]]) -> dict[str, Measure]:
    return {name: functools.partial(measure, name) for name in ("hostler", PEER)}


def _tuned(name: str, lineup: Lineup, round_name: str, seed: int) -> dict[str, float]:
    return tuned.measure(lineup.server(name), round_name, seed)


# -- memory ------------------------------------------------------------------------------------------------------------

SOAK_MORE = {"cache_ram_mib": 24}
"""Small, so that it is full long before the first quarter is over."""


def _soak(lineup: Lineup, _round_name: str, seed: int) -> dict[str, float]:
    n_requests = 300 if lineup.setup.is_quick else 2000
    requests = list(soak.make_requests("bench", n_requests, lineup.settings.ctx_len, seed))
    state = soak.Soak()
    for state in soak.run(lineup.server("hostler"), requests):
        print(f"soak {state.n_requests}/{n_requests}: {state.rss[-1]:.1f} MB, {len(state.errors)} errors", file=sys.stderr)
    for error in sorted(set(state.errors)):
        print(f"  {error}", file=sys.stderr)
    return soak.evaluate(state)


PIECES = {
    piece.name: piece
    for piece in (
        _raw(),
        _serving(WORKLOADS["single"], (Bar("new_tok_s", True, 1.0, PEER), Bar("decode_tok_s", True, 1.0, PEER))),
        _slots(4, 128),
        _slots(16, 128),
        _slots(4, 1500),
        _slots(16, 1500),
        _serving(WORKLOADS["distinct16"], (Bar("new_tok_s", True, 1.0, PEER), Bar("ttft_p99", False, 1.0, PEER))),
        _serving(WORKLOADS["shared16"], (Bar("new_tok_s", True, 2.5, PEER), Bar("ttft_p99", False, 0.2, PEER))),
        Piece(
            *("chats", "16 chats of 8 turns at once on 4 slots", 4, 2048, _both(_chat), chats.UNITS),
            (Bar("new_tok_s", True, 1.0, PEER), Bar("ttft_p50", False, 0.9, PEER), Bar("covered", True, 0.97)),
            warm_up=_warm_up_a_little,
            is_quick=False,
        ),
        Piece(
            *("restart", "the same, the host restarted after turn 4: its turn 5", 4, 2048, _both(_chat_restarted)),
            chats.UNITS,
            (Bar("ttft_after", False, 0.2, PEER),),
            warm_up=_warm_up_a_little,
            is_quick=False,
        ),
        Piece(
            *("arrivals", "4 streams while prompts of 3,000 tokens arrive", 8, 4096, _both(_arrive), arrivals.UNITS),
            _ARRIVALS_BARS,
            warm_up=_warm_up_a_little,
            is_quick=False,
        ),
        Piece(
            *("arrivals8k", "4 streams while a prompt of 8,000 tokens arrives", 5, 8192, _both(_arrive_8k), arrivals.UNITS),
            _ARRIVALS_BARS,
            warm_up=_warm_up_a_little,
            is_quick=False,
        ),
        _copies("copy", "answers that repeat the question, speculation on and off", True, 1.4),
        _copies("copy-q4_0", "the same with the weights in a repacked type", True, 1.7, "Q4_0"),
        _copies("nocopy", "answers that repeat nothing, speculation on and off", False, 0.98),
        Piece(
            *("prefix4k", "a beginning of 4,000 tokens: cold, warm, after a restart", 4, 8192, {"hostler": _prefix}),
            prefixes.UNITS,
            (Bar("restarted_by_cold", False, 0.1),),
            (),
            _warm_up_a_little,
        ),
        Piece(
            *("tuned", "after `hostler tune --apply`, beside the file as shipped", 4, 1024, _both(_tuned), tuned.UNITS),
            (
                Bar("pp512", True, 1.8, PEER),
                Bar("tg128", True, 0.95, PEER),
                Bar("perplexity_change", False, 0.01),
            ),
            warm_up=_warm_up_a_little,
            more=UNAIDED,
            home="tuned-home",
            prepare=tuned.tune,
            n_rounds=5,
            is_quick=False,
        ),
        Piece(
            *("soak", "random requests: memory at the end by that at the first quarter", 4, 1024, {"hostler": _soak}),
            soak.UNITS,
            (Bar("growth", False, 1.02),),
            (),
            more={"hostler": SOAK_MORE},
            n_rounds=1,
            is_quick=False,
        ),
    )
}
