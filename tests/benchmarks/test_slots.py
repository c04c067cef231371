"""Decode of all slots at once: the window in which all of them run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from answers import Reply
from slots import evaluate, make_requests, read_batched_bench


def stream(began_s: float, n: int, gap_s: float) -> Reply:
    """One token an arrival."""
    arrival_s = [began_s + gap_s * index for index in range(n)]
    return Reply(0.0, arrival_s[-1], 200, arrival_s, completion_tokens=n, is_counted=True)


def test_only_tokens_given_while_all_streams_run_count() -> None:
    late, early = stream(1.0, 11, 0.1), stream(0.0, 16, 0.1)  # together from 1.0 to 1.5

    result = evaluate([late, early])

    assert result["decode_tok_s"] == pytest.approx(10 / 0.5)


def test_streams_that_never_ran_all_together_tell_nothing() -> None:
    assert evaluate([stream(0.0, 5, 0.1), stream(1.0, 5, 0.1)]) == {"errors": 0.0}


def test_a_failed_stream_leaves_no_rate() -> None:
    assert evaluate([stream(0.0, 5, 0.1), Reply(0.0, error="refused")]) == {"errors": 1.0}


def test_a_request_begins_with_its_slots_context_and_ends_with_words_of_its_round() -> None:
    server: Any = SimpleNamespace(model="m")

    def prompts(round_name: str) -> list[str]:
        return [one.body["messages"][0]["content"] for one in make_requests(server, 4, 100, 8, 1, round_name)]

    contexts, first, second = prompts(""), prompts("0"), prompts("1")

    assert len(set(contexts)) == 4
    for context, one, other in zip(contexts, first, second, strict=True):
        assert one.startswith(context)
        assert other.startswith(context)
    assert len(set(first) | set(second)) == 8


def test_the_peers_rate_is_read_from_its_line_of_json() -> None:
    assert read_batched_bench('main: n_kv_max = 1024\n{"pp": 128, "speed_tg": 226.0997, "speed": 415.3}\n\n') == 226.0997
