"""Guesses, what they are expected to bring, and who makes how many; no model."""

from __future__ import annotations

import numpy as np
import pytest

from hostler_llamacpp.drafting import LENGTHS, MAX_DRAFT, Ngrams, StepCosts, choose

TEXT = list(range(100, 160))


def ngrams(prompt: list[int], answer: list[int]) -> Ngrams:
    found = Ngrams(np.array(prompt, np.int32))
    for token in answer:
        found.note(token)
    return found


class Sure:
    """Guesses that are right with one and the same chance."""

    def __init__(self, chance: float) -> None:
        self.chance = chance

    def expected(self, n_most: int) -> list[float]:
        return [sum(self.chance**power for power in range(n + 1)) for n in range(n_most + 1)]


def costs(one_s: float, row_s: float, *, n_slots: int = 8, fixed_s: float = 0.0) -> StepCosts:
    """A machine on which a step of n rows takes `fixed_s` + n x `row_s`, a plain one of one token `one_s`."""
    known = StepCosts(n_slots)
    known.start(one_s, row_s)
    for _ in range(100):
        for length in (1, 4, 16, 32):
            known.learn(1, 1, length, fixed_s + (length + 1) * row_s)
    for n in range(1, n_slots + 1):
        for _ in range(30):
            known.learn_plain(n, one_s if n == 1 else fixed_s + n * row_s)
    return known


def test_what_stood_behind_the_last_tokens_is_guessed() -> None:
    found = ngrams([*TEXT, 1, 2], TEXT[5:9])

    assert found.has_guess
    assert found.draft(4) == TEXT[9:13]
    assert found.n_written == 4


def test_the_latest_place_counts_and_two_equal_tokens_are_no_find() -> None:
    once_more = ngrams([1, 2, 3, 10, 1, 2, 3, 20, 9], [1, 2, 3])

    assert once_more.draft(2) == [20, 9]
    assert not ngrams([*TEXT, 1, 2], [7, *TEXT[5:7]]).has_guess


def test_a_copy_is_followed_where_it_was_found_and_left_at_its_first_difference() -> None:
    # From [1, 2, 3] on the first place is followed, though its next tokens have stood elsewhere since.
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 0, 3, 4, 5, 99]

    assert ngrams(prompt, [1, 2, 3, 4, 5, 6]).draft(2) == [7, 8]
    assert not ngrams(prompt, [1, 2, 3, 4, 5, 6, 50]).has_guess


def test_guesses_beyond_the_end_go_round() -> None:
    found = ngrams([50], [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3])

    assert found.draft(10) == [4, 1, 2, 3, 4, 1, 2, 3, 4, 1]


@pytest.mark.parametrize("n_prompt", [1, 2, 3, 4])
def test_prompts_shorter_than_a_run_of_tokens_are_taken(n_prompt: int) -> None:
    prompt = [1, 2, 3, 4][:n_prompt]

    found = ngrams(prompt, [5, 1, 2, 3, 5, 6, 7, 1, 2, 3])

    assert found.draft(2) == [5, 6]


def test_index_of_a_prompt_equals_that_of_the_same_tokens_noted_one_by_one() -> None:
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, 4, 400)]
    at_once, one_by_one = Ngrams(np.array(tokens[:-1], np.int32)), Ngrams(np.array(tokens[:1], np.int32))
    at_once.note(tokens[-1])
    for token in tokens[1:]:
        one_by_one.note(token)

    assert at_once._index == one_by_one._index
    assert at_once._key == one_by_one._key


def test_large_token_ids_do_not_collide() -> None:
    big = [262_143, 262_142, 262_141]

    assert ngrams([*big, 5, 1, 2], big).draft(1) == [5]
    assert not ngrams([*big, 5, 1, 2], [262_143, 262_142, 262_140]).has_guess


def test_expectations_rise_with_each_right_guess_and_fall_with_a_wrong_one() -> None:
    found = ngrams([*TEXT, 1], TEXT[:6])
    before = found.expected(8)[-1]
    for token in TEXT[6:40]:
        found.note(token)
    after = found.expected(8)[-1]

    assert before < after < 9.0
    found.note(1)
    for token in TEXT[:6]:
        found.note(token)
    assert found.expected(0) == [1.0]
    assert found.expected(8)[-1] < 9.0


def test_what_the_prompt_foretells_is_trusted_more_than_what_the_answer_repeats() -> None:
    quoting = ngrams([1, 2, 3, *TEXT], [9, 1, 2, 3, *TEXT[:2]])
    repeating = ngrams([0], [1, 2, 3, *TEXT[:10], 9, 1, 2, 3, *TEXT[:2]])

    assert quoting.n_agreed == repeating.n_agreed
    assert quoting.expected(8)[-1] > repeating.expected(8)[-1]


def test_an_answer_that_repeats_itself_badly_does_not_spoil_a_quotation() -> None:
    fresh = ngrams([1, 2, 3, *TEXT], [9, 1, 2, 3, *TEXT[:2]])
    spoilt = ngrams([1, 2, 3, *TEXT], [number for turn in range(20) for number in (50, 51, 52, 70 + turn)])
    for token in (9, 1, 2, 3, *TEXT[:2]):
        spoilt.note(token)

    assert spoilt.expected(8) == fresh.expected(8)


def test_a_gain_within_what_is_not_known_is_none() -> None:
    even = costs(1.0, 0.5, fixed_s=0.5)

    assert choose([(Sure(0.5), 100)], 1, even, 63) == ([], 0)  # 1.5 tokens in 1.5 times the time
    assert choose([(Sure(0.6), 100)], 1, even, 63)[0] == [0]


@pytest.mark.parametrize("chance", [0.3, 0.6, 0.8, 0.9, 0.97, 0.99])
@pytest.mark.parametrize("row_s", [0.05, 0.2, 0.4])
def test_the_length_chosen_is_the_best_of_all_lengths(chance: float, row_s: float) -> None:
    known = costs(1.0, row_s, fixed_s=1.0 - row_s / 2)
    speeds = {n: Sure(chance).expected(n)[-1] / known.step_s(1, 1, n) for n in LENGTHS}
    best = max(speeds, key=speeds.__getitem__)

    assert choose([(Sure(chance), 100)], 1, known, 63)[1] == (best if speeds[best] * known.plain_s(1) > 1.0203 else 0)


def test_sure_guesses_are_made_and_long_where_rows_are_cheap() -> None:
    assert choose([(Sure(0.99), 100)], 1, costs(1.0, 0.01), 63) == ([0], MAX_DRAFT)
    places, length = choose([(Sure(0.99), 100)], 1, costs(7.0, 2.9, fixed_s=8.0), 63)
    assert (places, 8 <= length <= 32) == ([0], True)


def test_nothing_is_drafted_where_it_does_not_pay() -> None:
    assert choose([(Sure(0.5), 100)], 1, costs(7.0, 2.9, fixed_s=8.0), 63) == ([], 0)
    assert choose([(Sure(0.99), 100)], 1, costs(1.0, 1.1), 63) == ([], 0)
    assert choose([(Sure(0.99), 100)], 1, StepCosts(8), 63) == ([], 0)  # nothing is known of the costs


def test_a_sequence_that_copies_does_not_slow_down_many_that_do_not() -> None:
    slow_rows = costs(7.0, 2.9, fixed_s=8.0)

    assert choose([(Sure(0.99), 100)], 1, slow_rows, 63)[1] > 0
    assert choose([(Sure(0.99), 100)], 8, slow_rows, 63) == ([], 0)


def test_one_of_two_drafts_where_the_other_hardly_waits_for_it() -> None:
    places, length = choose([(Sure(0.99), 100)], 2, costs(1.0, 0.05, fixed_s=0.9), 63)

    assert places == [0]
    assert length > 0


def test_who_has_no_guess_never_waits_longer_than_was_promised() -> None:
    known = costs(1.0, 0.05, fixed_s=0.9)
    sure, plain_s = [(Sure(0.99), 100)], known.plain_s(2)
    _, free = choose(sure, 2, known, 63)
    places, bounded = choose(sure, 2, known, 63, max_ratio=2.5)

    assert known.step_s(2, 1, free) > 2.5 * plain_s
    assert (places, known.step_s(2, 1, bounded) <= 2.5 * plain_s) == ([0], True)
    assert choose([*sure, *sure], 2, known, 63, max_ratio=1.0)[1] > 0, "all gain, so nobody waits for others"


def test_bad_guesses_of_a_neighbour_are_made_only_where_one_pass_for_all_is_cheaper() -> None:
    """llama.cpp evaluates sequences with equally many rows in one pass, others in two."""
    sources = [(Sure(0.01), 100), (Sure(0.99), 100)]

    assert choose(sources, 2, costs(1.0, 0.005, fixed_s=0.9), 63)[0] == [1, 0]
    assert choose(sources, 2, costs(1.0, 0.05, fixed_s=0.1), 63)[0] in ([1], [])


def test_all_guesses_together_fit_the_room_and_each_fits_its_sequence() -> None:
    cheap = costs(1.0, 0.01)
    for n_rows in (1, 5, 31, 63):
        places, length = choose([(Sure(0.99), 100)] * 8, 8, cheap, n_rows)
        assert len(places) * length <= n_rows
    assert choose([(Sure(0.99), 2)], 1, costs(1.0, 0.3), 63)[1] <= 2


def test_prompts_in_the_step_count_as_neighbours_and_their_time_makes_rows_cheap() -> None:
    known = costs(7.0, 2.9, fixed_s=8.0)
    alone = choose([(Sure(0.9), 100)], 1, known, 63)[1]

    beside_much = choose([(Sure(0.9), 100)], 1, known, 63, n_waiting=1, prompt_s=500.0)[1]

    assert beside_much >= max(alone, 4)


def test_costs_follow_what_steps_take() -> None:
    known = costs(7.0, 2.9, fixed_s=8.0)

    assert known.pass_s(17) == pytest.approx(8 + 17 * 2.9, rel=0.05)
    assert known.step_s(4, 4, 3) == known.pass_s(16)
    assert known.step_s(4, 1, 8) == pytest.approx(known.plain_s(4) + known.pass_s(8))
    for _ in range(200):
        known.learn(1, 1, 16, 17.0)
    assert known.pass_s(17) == pytest.approx(17.0, rel=0.1)


def test_one_disturbed_step_changes_little() -> None:
    known = costs(7.0, 2.9, fixed_s=8.0)
    before, plain = known.pass_s(9), known.plain_s(1)

    known.learn(1, 1, 8, 5000.0)
    known.learn_plain(1, 5000.0)

    assert known.pass_s(9) < 1.2 * before
    assert known.plain_s(1) < 2 * plain
