"""How prompts are cut into chunks."""

from __future__ import annotations

import pytest

from hostler_llamacpp.pacing import ALONE_STEP_S, MIN_ALONE_TOKENS, MIN_CHUNK_TOKENS, PREFILL_SHARE, Pace


@pytest.fixture
def pace() -> Pace:
    """A machine where a prompt token takes 2 ms and a decode step of 4 takes 20 ms."""
    pace = Pace(n_batch=512, n_slots=16)
    pace.learn(4, 0, 0.020)
    pace.learn(0, 500, 1.0)
    return pace


def test_chunk_beside_running_answers_is_what_their_step_allows(pace: Pace) -> None:
    assert pace.chunk_tokens(4) == int(PREFILL_SHARE * 0.020 / 0.002)


def test_chunk_alone_is_a_whole_batch_if_that_is_short_enough(pace: Pace) -> None:
    assert pace.chunk_tokens(0) == min(512, int(ALONE_STEP_S / 0.002))


def test_chunk_alone_shrinks_on_a_slow_machine() -> None:
    pace = Pace(n_batch=512, n_slots=4)
    pace.learn(0, 128, 12.8)

    assert pace.chunk_tokens(0) == MIN_ALONE_TOKENS


def test_chunk_never_falls_below_its_floor_or_rises_above_the_batch() -> None:
    pace = Pace(n_batch=64, n_slots=4)
    pace.learn(1, 0, 0.001)
    pace.learn(0, 64, 64.0)
    assert pace.chunk_tokens(1) == MIN_CHUNK_TOKENS

    for _ in range(50):
        pace.learn(0, 64, 0.0001)
    assert pace.chunk_tokens(1) == 64


def test_cost_of_a_prompt_token_is_learnt_from_mixed_steps_without_their_decode(pace: Pace) -> None:
    for _ in range(50):
        pace.learn(4, 40, 0.020 + 40 * 0.003)

    assert pace.chunk_tokens(4) == pytest.approx(PREFILL_SHARE * 0.020 / 0.003, abs=1)


def test_unknown_decode_costs_are_taken_from_the_nearest_known(pace: Pace) -> None:
    assert pace.chunk_tokens(5) == pace.chunk_tokens(4)


def test_before_anything_is_known_chunks_are_small() -> None:
    assert 0 < Pace(n_batch=512, n_slots=4).chunk_tokens(3) <= 64
