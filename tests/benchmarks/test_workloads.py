"""Prompts that never repeat, and what a round's metrics say."""

from __future__ import annotations

import math
from typing import Any

import pytest
from answers import Reply
from workloads import UNITS, WORKLOADS, summarise


def prompts(name: str, round_name: str, seed: int = 0) -> list[str]:
    """Every request's own message in one round."""
    requests = WORKLOADS[name].make_requests("m", round_name, seed)
    return [request.body["messages"][-1]["content"] for client in requests for request in client]


def reply(sent_s: float, arrival_s: list[float], completion_tokens: int, **fields: Any) -> Reply:
    """A finished stream."""
    return Reply(
        sent_s,
        arrival_s[-1],
        200,
        arrival_s,
        prompt_tokens=100,
        completion_tokens=completion_tokens,
        is_counted=True,
        **fields,
    )


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_no_prompt_comes_twice_in_a_run_nor_begins_like_another(name: str) -> None:
    """A repeat would be answered out of a prompt cache."""
    drawn = [prompt for round_name in ("warm-up a", "warm-up b", "0", "1", "2") for prompt in prompts(name, round_name)]

    beginnings = [tuple(prompt.split()[:6]) for prompt in drawn]

    assert len(set(beginnings)) == len(drawn)


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_all_servers_get_the_same_prompts_in_one_round_of_a_seed_and_others_with_another(name: str) -> None:
    assert prompts(name, "1", seed=7) == prompts(name, "1", seed=7)
    assert prompts(name, "1", seed=7) != prompts(name, "1", seed=8)


def test_shared_system_prompt_is_one_a_round_and_new_in_the_next() -> None:
    systems = [
        {
            request.body["messages"][0]["content"]
            for client in WORKLOADS["shared16"].make_requests("m", name)
            for request in client
        }
        for name in ("0", "1")
    ]

    assert [len(system) for system in systems] == [1, 1]
    assert systems[0] != systems[1]


def test_streamed_workloads_ask_for_usage_and_plain_ones_do_not() -> None:
    for workload in WORKLOADS.values():
        body = workload.make_requests("m", "0")[0][0].body

        assert body["stream"] is workload.is_streamed
        assert ("stream_options" in body) is workload.is_streamed


def test_summary_of_two_streams_is_by_the_clients_clock() -> None:
    one = reply(0.0, [1.0, 1.1, 1.3], 3)
    other = reply(0.5, [2.0, 2.5], 5)  # several tokens came in one read

    result = summarise([[one], [other]])

    assert result["window_s"] == 2.5
    assert result["new_tok_s"] == pytest.approx(8 / 2.5)
    assert result["total_tok_s"] == pytest.approx(208 / 2.5)
    assert result["ttft_p50"] == pytest.approx(1250)
    assert result["itl_p50"] == pytest.approx(200)  # of 100, 200 and 500 ms
    assert result["decode_tok_s"] == pytest.approx((2 / 0.3 + 4 / 0.5) / 2)
    assert result["tokens_per_arrival"] == pytest.approx(8 / 5)
    assert result["errors"] == 0


def test_failed_requests_count_as_errors_and_in_no_rate() -> None:
    good, bad = reply(0.0, [1.0, 2.0], 2), reply(0.0, [9.0], 50, error="cut")

    result = summarise([[good, bad]])

    assert (result["errors"], result["new_tokens"], result["ttft_p99"]) == (1, 2, 1000)


def test_summary_of_nothing_but_errors_has_no_rates() -> None:
    assert summarise([[Reply(0.0, error="refused")]]) == {"errors": 1, "uncounted": 0}


def test_workers_clock_counts_the_first_token_to_the_prompt() -> None:
    timings = {"prompt_n": 100, "prompt_ms": 200.0, "predicted_n": 11, "predicted_ms": 100.0}

    result = summarise([[reply(0.0, [1.0, 2.0], 11, timings=timings)]])

    assert result["worker_prefill_tok_s"] == pytest.approx(500)
    assert result["worker_decode_tok_s"] == pytest.approx(100)


def test_workers_clock_is_missing_where_the_server_tells_none() -> None:
    assert math.isnan(summarise([[reply(0.0, [1.0, 2.0], 11)]])["worker_decode_tok_s"])


def test_every_metric_has_a_unit() -> None:
    timings = {"prompt_n": 1, "prompt_ms": 1.0, "predicted_n": 2, "predicted_ms": 1.0}

    metrics = set(summarise([[reply(0.0, [1.0, 2.0], 2, timings=timings)]]))

    assert metrics - {"new_tokens", "window_s"} <= set(UNITS)
