"""What engines with continuous batching decide alike: chunks, turns, caches, holes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hostler.batching import (
    AGING_TOKENS,
    ALONE_STEP_S,
    ANSWER_STEP_S,
    ANSWER_STEPS,
    BATCH_SHARE,
    MAX_ITL_RATIO,
    MIN_ALONE_TOKENS,
    MIN_CHUNK_TOKENS,
    MIN_COPIED_TOKENS,
    MIN_DROP,
    MIN_PROMPT_S,
    MIN_REST,
    PATIENCE_S,
    Cache,
    Pace,
    Packing,
    Turn,
    choose_cache,
    common_prefix,
    share_out,
)

# -- how many prompt tokens ---------------------------------------------------------------------------------------------


@pytest.fixture
def pace() -> Pace:
    """A machine where a prompt token takes 2 ms and a decode step of 4 takes 20 ms."""
    pace = Pace(n_batch=512, n_slots=16)
    pace.learn(4, 0, 0.020)
    pace.learn(0, 500, 1.0)
    return pace


def test_chunk_beside_running_answers_is_what_their_step_allows(pace: Pace) -> None:
    assert pace.chunk_tokens(4) == int((MAX_ITL_RATIO - 1) * 0.020 / 0.002)


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

    assert pace.chunk_tokens(4) == pytest.approx((MAX_ITL_RATIO - 1) * 0.020 / 0.003, abs=1)


def test_unknown_decode_costs_are_taken_from_the_nearest_known(pace: Pace) -> None:
    assert pace.chunk_tokens(5) == pace.chunk_tokens(4)


def test_before_anything_is_known_chunks_are_small() -> None:
    assert 0 < Pace(n_batch=512, n_slots=4).chunk_tokens(3) <= 64


def test_an_engine_with_cheap_chunks_may_ask_for_shorter_steps() -> None:
    pace = Pace(n_batch=512, n_slots=4, alone_step_s=0.1, min_alone_tokens=32, min_prompt_s=0.03)
    pace.learn(0, 100, 0.1)
    pace.learn(1, 0, 0.004)

    assert pace.chunk_tokens(0) == 100
    assert pace.chunk_tokens(1) == 30, "the ratio alone would allow 6 tokens; nobody notices 30 ms"


# -- which answers have to flow -----------------------------------------------------------------------------------------


class Prompt(Turn):
    """A sequence of which only the number of missing tokens is known."""

    def __init__(self, n: int, priority: int = 1) -> None:
        super().__init__(priority)
        self.n = n

    def n_missing(self) -> int:
        return self.n


def answer(priority: int = 1, *, age_s: float = 60.0) -> Prompt:
    """One whose prompt was complete so long ago."""
    running = Prompt(1, priority)
    share_out([running], 1, lambda _: True)
    running.begun_s -= age_s
    return running


def test_an_answer_that_runs_flows_beside_a_prompt_that_comes(pace: Pace) -> None:
    running = [answer() for _ in range(4)]

    assert pace.room_s([Prompt(1000)], running) == (pytest.approx((MAX_ITL_RATIO - 1) * 0.020), False)


def test_an_answer_that_began_beside_waiting_prompts_is_held_up_for_them_but_not_for_ever(pace: Pace) -> None:
    waiting = [Prompt(1000), Prompt(500)]
    running = [answer(age_s=0) for _ in range(4)]

    n_steps = 0
    while pace.room_s(waiting, running)[1]:
        pace.learn(4, 400, 0.9)
        n_steps += 1

    assert n_steps == int(PATIENCE_S / 0.9) + 1
    assert not pace.room_s(waiting, [*running, answer(age_s=0)])[1], "the others' patience is spent"


def test_one_prompt_that_comes_alone_holds_up_nobody_but_the_last_of_many_still_does(pace: Pace) -> None:
    many = [Prompt(1000) for _ in range(3)]
    alone, of_many = answer(age_s=0), answer(age_s=0)

    assert not pace.room_s(many[:1], [alone])[1]
    assert pace.room_s(many, [of_many])[1]
    assert pace.room_s(many[:1], [of_many])[1], "one of the many is left, and is owed as much as the others"
    assert pace.room_s(many[:1], [of_many, answer(age_s=0)])[1], "so it is by the last but one, which began just now"


def test_one_answer_that_has_to_flow_is_enough(pace: Pace) -> None:
    waiting = [Prompt(1000), Prompt(500)]

    assert pace.room_s(waiting, [answer(age_s=0), answer(age_s=0)])[1]
    assert not pace.room_s(waiting, [answer(age_s=0), answer(age_s=0), answer()])[1]


def test_batch_answers_give_way_to_other_prompts_and_batch_prompts_to_other_answers(pace: Pace) -> None:
    batch_answer, other_answer = answer(2), answer(1)
    batch, normal = Prompt(1000, 2), Prompt(1000, 1)
    share = (MAX_ITL_RATIO - 1) * 0.020

    assert pace.room_s([normal], [batch_answer])[1]
    assert pace.room_s([batch], [batch_answer, batch_answer, batch_answer, batch_answer]) == (pytest.approx(share), False)
    assert pace.room_s([batch], [batch_answer, other_answer, batch_answer, batch_answer])[0] == pytest.approx(
        BATCH_SHARE * share
    )
    assert pace.room_s([batch, normal], [other_answer] * 4)[0] == pytest.approx(share), "the normal one goes first"


def test_answers_that_need_not_flow_sit_out_long_steps_only(pace: Pace) -> None:
    assert pace.is_long(200)
    assert not pace.is_long(40)


def test_a_slow_decode_takes_from_the_prompts_of_its_step_and_a_quick_one_leaves_more(pace: Pace) -> None:
    assert pace.rest_s(0.030, 4, 0.020) == pytest.approx(0.030)
    assert pace.rest_s(0.030, 4, 0.035) == pytest.approx(0.015)
    assert pace.rest_s(0.030, 4, 0.015) == pytest.approx(0.035)
    assert pace.rest_s(0.030, 4, 0.500) == pytest.approx(0.030 * MIN_REST), "a prompt is never quite forgotten"
    assert pace.rest_s(0.030, 4, 0.0) == pytest.approx(0.030 / (1 - MIN_REST))


def test_decodes_that_are_held_up_for_seconds_do_not_make_the_steps_longer_but_a_slower_machine_does(pace: Pace) -> None:
    usual_s = pace.prompt_s(4)
    for _ in range(40):
        pace.learn(4, 0, 0.050)

    assert pace.prompt_s(4) <= 1.25 * usual_s
    for _ in range(200):
        pace.learn(4, 0, 0.050)
    assert pace.prompt_s(4) == pytest.approx(2.5 * usual_s, rel=0.01)

    for _ in range(16):
        pace.learn(4, 0, 0.020)
    assert pace.prompt_s(4) < MIN_DROP * usual_s, "what becomes much quicker is believed at once"
    for _ in range(100):
        pace.learn(4, 0, 0.020)
    assert pace.prompt_s(4) == pytest.approx(usual_s, rel=0.01)


def test_what_a_decode_takes_is_neither_what_the_quick_ones_take_nor_the_slow_ones(pace: Pace) -> None:
    usual_s = pace.prompt_s(4)
    for _ in range(300):
        for elapsed_s in (0.020, 0.015, 0.020, 0.040, 0.020):
            pace.learn(4, 0, elapsed_s)

    assert pace.prompt_s(4) == pytest.approx(usual_s, rel=0.02)


def test_the_ratio_is_a_setting() -> None:
    pace = Pace(n_batch=512, n_slots=4, max_itl_ratio=2.0)
    pace.learn(4, 0, 0.020)
    pace.learn(0, 500, 1.0)

    assert pace.chunk_tokens(4) == 10
    assert pace.room_s([Prompt(100)], [answer() for _ in range(4)])[0] == pytest.approx(0.020)


def test_beside_quick_answers_a_prompt_gets_more_than_the_ratio_says() -> None:
    pace = Pace(n_batch=512, n_slots=4, max_itl_ratio=2.0)
    pace.learn(4, 0, 0.003)

    assert pace.prompt_s(4) == MIN_PROMPT_S


# -- whose prompt -------------------------------------------------------------------------------------------------------


def shared(n_tokens: int, *lengths: int) -> list[tuple[int, int]]:
    prompts = [Prompt(n) for n in lengths]
    return [(prompts.index(prompt), n) for prompt, n in share_out(prompts, n_tokens, lambda _: True)]


def test_the_shortest_prompt_goes_first_and_of_equals_the_earlier() -> None:
    assert shared(100, 60, 80) == [(0, 60), (1, 40)]
    assert shared(100, 1000, 600, 30) == [(2, 30), (1, 70)]
    assert shared(50, 60, 60) == [(0, 50)]


def test_a_higher_priority_goes_before_a_shorter_prompt() -> None:
    prompts = [Prompt(10, 2), Prompt(20, 1), Prompt(1000, 0)]

    assert share_out(prompts, 1025, lambda _: True) == [(prompts[2], 1000), (prompts[1], 20), (prompts[0], 5)]


def test_a_long_prompt_that_has_waited_for_its_own_length_is_overtaken_by_nobody_who_comes_then() -> None:
    long = Prompt(1000)
    n_others = 0
    while True:
        short = Prompt(100)
        ((chosen, n),) = share_out([long, short], 100, lambda _: True)
        if chosen is long:
            break
        n_others += n

    assert n_others == 900, "a new one of 100 went first until the long one had waited for 900"


def test_a_batch_prompt_is_raised_by_what_it_waits_for() -> None:
    batch = Prompt(100, 2)
    n_others = 0
    while True:
        (chosen, n), *_ = share_out([batch, Prompt(1000, 0)], 512, lambda _: True)
        if chosen is batch:
            break
        n_others += n

    assert 2 * AGING_TOKENS - 512 <= n_others <= 2 * AGING_TOKENS + 512


def test_a_step_that_is_long_enough_ends_with_a_complete_prompt() -> None:
    def shared(*lengths: int) -> list[tuple[int, int]]:
        prompts = [Prompt(n) for n in lengths]
        return [(prompts.index(prompt), n) for prompt, n in share_out(prompts, 500, lambda _: True, n_enough=50)]

    assert shared(70, 70, 70) == [(0, 70)]
    assert shared(30, 10, 70) == [(1, 10), (0, 30), (2, 70)], "two short ones are no step yet"
    assert shared(600) == [(0, 500)], "no answer begins behind it"


def test_enough_is_what_an_answer_waits_for_and_follows_the_machine(pace: Pace) -> None:
    assert pace.n_enough([Prompt(70)] * 2) == int(ANSWER_STEP_S / 0.002)
    assert pace.n_enough([Prompt(90)] * 16) == 90 * 16 // ANSWER_STEPS
    assert Pace(512, 4).n_enough([Prompt(70)]) < 512, "nothing is known yet"


def test_no_crumbs_are_left_or_begun_where_an_engine_says_so() -> None:
    def shared(n_tokens: int, *lengths: int) -> list[tuple[int, int]]:
        prompts = [Prompt(n) for n in lengths]
        chunks = share_out(prompts, n_tokens, lambda _: True, min_tokens=16, stretch=1.25)
        return [(prompts.index(prompt), n) for prompt, n in chunks]

    assert shared(50, 60, 60) == [(0, 60)], "10 more complete it"
    assert shared(100, 60, 60) == [(0, 60), (1, 60)], "a fifth more completes both"
    assert shared(70, 60, 70) == [(0, 60)], "10 of the second would be a run of their own"
    assert shared(70, 60, 10) == [(1, 10), (0, 60)]
    assert shared(62, 10, 52, 90) == [(0, 10), (1, 52)]
    assert shared(80, 60, 70) == [(0, 60), (1, 20)]
    assert shared(10, 60) == [(0, 10)], "the first gets what there is"


@pytest.mark.parametrize("n_tokens", range(410, 513))
def test_a_prompt_as_long_as_a_batch_is_completed_where_a_step_may_be_stretched_so_far(n_tokens: int) -> None:
    prompt = Prompt(512)

    assert share_out([prompt], n_tokens, lambda _: True, stretch=512 / n_tokens) == [(prompt, 512)]


def test_a_prompt_that_is_better_left_for_later_gives_its_tokens_away() -> None:
    prompts = [Prompt(1000), Prompt(30)]

    chunks = share_out(prompts, 100, lambda prompt: prompt is prompts[0])

    assert chunks == [(prompts[0], 100)]


def test_a_prompt_whose_beginning_is_known_once_it_has_a_place_takes_only_the_rest() -> None:
    prompts = [Prompt(80), Prompt(80)]

    def place(prompt: Prompt) -> bool:
        prompt.n = 10
        return True

    assert share_out(prompts, 64, place) == [(prompts[0], 10), (prompts[1], 10)]


# -- which cache --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other", "n"), [([], [1], 0), ([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([5], [6], 0), ([7], [7], 1)]
)
def test_common_prefix_is_counted(one: list[int], other: list[int], n: int) -> None:
    assert common_prefix(np.array(one, np.int32), np.array(other, np.int32)) == n


def cache(number: int, tokens: str, *, is_active: bool = False, last_used: int = 0) -> Cache:
    made = Cache(number, np.zeros(1000, np.int32))
    made.extend(np.frombuffer(tokens.encode(), np.uint8))
    made.is_active, made.last_used = is_active, last_used
    return made


def chosen(caches: list[Cache], prompt: str, *, can_copy: bool = True) -> tuple[int, int | None, int]:
    tokens = np.frombuffer(prompt.encode(), np.uint8)
    taken, source, n = choose_cache(
        caches,
        lambda one: min(common_prefix(one.tokens, tokens), len(tokens) - 1),
        lambda one: (int(one.n_tokens > 0), one.last_used),
        lambda _, n: can_copy,
    )
    return taken.number, None if source is None else source.number, n


def test_a_conversation_goes_on_where_it_lies() -> None:
    assert chosen([cache(0, ""), cache(1, "x" * 90 + "old")], "x" * 90 + "new question") == (1, None, 90)


def test_one_that_only_begins_alike_is_copied_and_left_in_peace() -> None:
    system = "s" * 100
    caches = [cache(0, ""), cache(1, system + "a long conversation of another user" * 10)]

    assert chosen(caches, system + "hello") == (0, 1, 100)
    assert chosen(caches, system + "hello", can_copy=False) == (0, None, 0)


def test_a_running_ones_beginning_is_copied() -> None:
    assert chosen([cache(0, "p" * 50, is_active=True), cache(1, "")], "p" * 50) == (1, 0, 49)


def test_a_short_common_beginning_is_not_worth_a_copy() -> None:
    short = "b" * (MIN_COPIED_TOKENS - 1)

    assert chosen([cache(0, short + "x" * 200, is_active=True), cache(1, "")], short + "other") == (1, None, 0)


def test_the_cache_of_the_lowest_rank_is_given_up() -> None:
    assert chosen([cache(0, "a", last_used=3), cache(1, "b", last_used=2), cache(2, "c", is_active=True)], "zz")[0] == 1


def test_a_cache_notes_what_lies_in_it() -> None:
    one, other = cache(0, "abc"), cache(1, "")
    one.append(ord("d"))
    other.take_over(one, 2)

    assert bytes(one.tokens.astype(np.uint8)) == b"abcd"
    assert bytes(other.tokens.astype(np.uint8)) == b"ab"


# -- holes --------------------------------------------------------------------------------------------------------------


def made(*lengths: int) -> list[Cache]:
    caches = [Cache(number, ()) for number in range(len(lengths))]
    for cache, n_tokens in zip(caches, lengths, strict=True):
        cache.n_tokens = n_tokens
    return caches


def swapped(packing: Packing, caches: list[Cache], *running: int) -> list[tuple[int, int]]:
    plan = packing.plan(caches, lambda cache: cache.number in running)
    return [(one.number, other.number) for one, other in plan]


def test_no_swap_while_running_caches_are_neighbours() -> None:
    packing = Packing(hole_bytes=10**9, token_bytes=1, scratch_bytes=10**9)
    caches = made(10, 10, 10, 10)

    assert swapped(packing, caches) == []
    assert swapped(packing, caches, 2) == []
    assert swapped(packing, caches, 1, 2, 3) == []


def test_a_step_without_holes_forgets_what_they_have_cost() -> None:
    packing = Packing(hole_bytes=10**6, token_bytes=100, scratch_bytes=10**9)
    caches = [Cache(number, [0] * 10**4) for number in range(3)]
    for cache in caches:
        cache.n_tokens = 3000
    n_steps = next(n for n in itertools.count(1) if packing.plan(caches, lambda cache: cache.number != 1))
    assert n_steps > 1

    for _ in range(2 * n_steps):
        assert not packing.plan(caches, lambda cache: cache.number != 1)
        packing.no_holes()


def test_hole_is_closed_at_once_when_a_pass_costs_more_than_the_swap() -> None:
    packing = Packing(hole_bytes=10**6, token_bytes=100, scratch_bytes=10**9)

    assert swapped(packing, made(1000, 0, 10, 10), 0, 2, 3) == [(3, 1)]


def test_cheapest_swap_moves_the_shortest_caches() -> None:
    packing = Packing(hole_bytes=10**9, token_bytes=1, scratch_bytes=10**9)

    assert swapped(packing, made(1000, 5, 7, 900), 0, 2) == [(2, 1)]
    assert swapped(packing, made(5, 5, 800, 900), 0, 2, 3) == [(0, 1)]


def test_expensive_swap_waits_until_the_holes_have_cost_as_much() -> None:
    packing = Packing(hole_bytes=1000, token_bytes=1, scratch_bytes=10**9)
    caches = made(500, 0, 500)  # 500 tokens moved: 2000 bytes of traffic

    assert swapped(packing, caches, 0, 2) == []
    assert swapped(packing, caches, 0, 2) == [(2, 1)]


def test_swap_that_needs_too_much_scratch_memory_is_never_made() -> None:
    packing = Packing(hole_bytes=10**12, token_bytes=1000, scratch_bytes=10**5)

    assert [swapped(packing, made(500, 0, 500), 0, 2) for _ in range(5)] == [[]] * 5


def test_each_idle_cache_between_running_ones_costs_where_an_engine_says_so() -> None:
    each = Packing(hole_bytes=1000, token_bytes=1, scratch_bytes=10**9, is_hole_per_cache=True)
    gap = Packing(hole_bytes=1000, token_bytes=1, scratch_bytes=10**9)
    caches = made(500, 0, 0, 500)

    assert swapped(each, caches, 0, 3)
    assert not swapped(gap, caches, 0, 3)
