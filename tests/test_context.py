"""What goes into a context: exact cuts, with few counts. A token is a character, and each message has one more."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from hostler.context import BYTES_PER_TOKEN, Fitted, Limits, Turn, fit
from hostler.domain import Message
from hostler.errors import ContextLengthExceeded, InvalidRequest
from hostler.worker.wire import PromptSize


class Thread:
    """Turns, oldest first, with what was read of them and what was counted."""

    def __init__(self, *turns: Turn, n_ctx: int = 100) -> None:
        self.turns = turns
        self.n_ctx = n_ctx
        self.n_read = 0
        self.counted: list[tuple[Message, ...]] = []

    def newest_first(self) -> Iterator[Turn]:
        for turn in reversed(self.turns):
            self.n_read += 1
            yield turn

    def count(self, messages: tuple[Message, ...]) -> PromptSize:
        self.counted.append(messages)
        return PromptSize(sum(len(message.content or "") + 1 for message in messages), self.n_ctx)

    def fit(self, system: str = "", **limits: int) -> Fitted:
        limits.setdefault("answer_tokens", 20)
        return fit(system, self.newest_first(), Limits(**limits), self.count)  # type: ignore[arg-type]


def turn(number: int, length: int = 9, role: str | None = None) -> Turn:
    return Turn(f"m{number}", role or ("user" if number % 2 == 0 else "assistant"), "x" * length)


def ids(fitted: Fitted) -> list[str]:
    return [one.id for one in fitted.turns]


def test_a_short_thread_goes_in_whole_with_one_count() -> None:
    thread = Thread(turn(0), turn(1), turn(2))

    fitted = thread.fit("Be brief.")

    assert fitted.messages == (
        Message("system", "Be brief."),
        Message("user", "x" * 9),
        Message("assistant", "x" * 9),
        Message("user", "x" * 9),
    )
    assert ids(fitted) == ["m0", "m1", "m2"]
    assert (fitted.size.n_tokens, fitted.has_more) == (40, False)
    assert len(thread.counted) == 1


def test_the_newest_messages_stay_that_leave_room_for_the_answer() -> None:
    thread = Thread(*(turn(number) for number in range(21)))

    fitted = thread.fit("Be brief.")

    # 100 tokens less 20 for the answer and 10 of the system text: seven turns of 10.
    assert ids(fitted) == ["m14", "m15", "m16", "m17", "m18", "m19", "m20"]
    assert fitted.messages[0] == Message("system", "Be brief.")
    assert (fitted.size.n_tokens, fitted.has_more) == (80, True)


def test_room_for_the_answer_is_a_quarter_of_the_context_at_most() -> None:
    turns = [turn(number) for number in range(21)]

    assert Thread(*turns).fit(answer_tokens=2048).size.n_tokens == 70  # 75 fit, and the oldest kept must be a user's
    assert Thread(*turns).fit(answer_tokens=5).size.n_tokens == 90


def test_what_is_kept_begins_with_a_users_message() -> None:
    thread = Thread(*(turn(number) for number in range(21)))

    assert ids(thread.fit(answer_tokens=15))[0] == "m14"  # m13 would fit, but answers m12


def test_a_thread_that_fits_whole_may_begin_with_an_assistants_message() -> None:
    assert ids(Thread(turn(1), turn(2)).fit()) == ["m1", "m2"]


def test_a_thread_without_any_user_is_cut_anywhere() -> None:
    thread = Thread(*(turn(number, role="assistant") for number in range(20)))

    assert ids(thread.fit()) == [f"m{number}" for number in range(12, 20)]


def test_a_message_that_leaves_less_room_than_wanted_is_taken_when_there_is_nothing_else_to_cut() -> None:
    thread = Thread(turn(0), turn(1), turn(2, length=90))

    fitted = thread.fit()

    assert (ids(fitted), fitted.size.n_tokens, fitted.has_more) == (["m2"], 91, True)


def test_a_message_that_does_not_fit_alone_is_refused_with_both_numbers() -> None:
    with pytest.raises(ContextLengthExceeded) as caught:
        Thread(turn(0), turn(2, length=150)).fit("Be brief.")

    assert "100 tokens" in caught.value.message
    assert "the instructions and the newest message resulted in 161 tokens" in caught.value.message


def test_max_prompt_tokens_cuts_further_and_refuses_what_is_left() -> None:
    thread = Thread(*(turn(number) for number in range(21)))

    assert ids(thread.fit(max_prompt_tokens=35)) == ["m18", "m19", "m20"]
    with pytest.raises(ContextLengthExceeded, match=r"max_prompt_tokens allows 9 tokens.*10 tokens") as caught:
        thread.fit(max_prompt_tokens=9)
    assert caught.value.param == "max_prompt_tokens"


def test_last_messages_keeps_exactly_so_many_though_an_answer_comes_first() -> None:
    thread = Thread(*(turn(number) for number in range(20)))

    fitted = thread.fit(last_messages=3)

    assert (ids(fitted), fitted.has_more) == (["m17", "m18", "m19"], True)
    assert len(thread.counted) == 1
    assert thread.n_read == 4
    assert ids(Thread(turn(0)).fit(last_messages=3)) == ["m0"]


def test_last_messages_cuts_no_further() -> None:
    thread = Thread(*(turn(number) for number in range(20)))

    assert thread.fit(last_messages=9).size.n_tokens == 90
    with pytest.raises(ContextLengthExceeded, match=r"100 tokens.*the newest 10 messages resulted in 100 tokens") as caught:
        thread.fit(last_messages=10)
    assert caught.value.param == "truncation_strategy"


def test_an_empty_thread_is_its_instructions() -> None:
    fitted = Thread().fit("Tell a joke.")

    assert (fitted.messages, fitted.has_more) == ((Message("system", "Tell a joke."),), False)
    assert Thread().fit().messages == (Message("system", ""),)
    with pytest.raises(ContextLengthExceeded, match="the instructions resulted in 201 tokens"):
        Thread().fit("x" * 200)


def test_a_refusal_of_the_template_is_passed_on() -> None:
    def refuse(messages: tuple[Message, ...]) -> PromptSize:
        raise InvalidRequest("roles must alternate", param="messages")

    with pytest.raises(InvalidRequest, match="roles must alternate"):
        fit("", iter([turn(0)]), Limits(10), refuse)


def test_messages_too_long_to_be_counted_are_cut_like_others() -> None:
    thread = Thread(*(turn(number) for number in range(41)))

    def count(messages: tuple[Message, ...]) -> PromptSize:
        if len(messages) > 15:
            raise ContextLengthExceeded("more than 150")
        return thread.count(messages)

    fitted = fit("", thread.newest_first(), Limits(20), count)

    assert ids(fitted) == [f"m{number}" for number in range(34, 41)]


def test_one_message_too_long_to_be_counted_is_refused_in_the_workers_words() -> None:
    def count(messages: tuple[Message, ...]) -> PromptSize:
        raise ContextLengthExceeded("more than 150")

    with pytest.raises(ContextLengthExceeded, match="more than 150"):
        fit("", iter([turn(0)]), Limits(20), count)


def test_a_very_long_thread_is_neither_read_nor_counted_whole() -> None:
    thread = Thread(*(turn(number, length=50) for number in range(100_000)), n_ctx=2048)

    fitted = thread.fit(answer_tokens=512, expected_ctx=2048)

    assert len(fitted.turns) == 30  # 1536 tokens of 51
    assert len(thread.counted) <= 5
    assert thread.n_read <= BYTES_PER_TOKEN * 2048 / 51 + 2


@pytest.mark.parametrize("seed", range(40))
def test_the_cut_is_the_largest_that_fits_whatever_the_lengths(seed: int) -> None:
    dice = random.Random(seed)
    n_ctx = dice.choice([100, 1000, 8000])
    turns = [turn(number, int(dice.paretovariate(0.7) * 5) % (n_ctx // 3)) for number in range(dice.randrange(1, 400))]
    turns.append(turn(1000, 5))
    thread = Thread(*turns, n_ctx=n_ctx)

    fitted = thread.fit("Be brief.", answer_tokens=n_ctx // 8, expected_ctx=dice.choice([n_ctx // 4, n_ctx, 4 * n_ctx]))

    budget = n_ctx - n_ctx // 8

    def n_tokens(kept: list[Turn]) -> int:
        return len("Be brief.") + 1 + sum(len(one.text) + 1 for one in kept)

    starts = [index for index, one in enumerate(turns) if one.role == "user" or index == 0]
    best = next(turns[start:] for start in starts if n_tokens(turns[start:]) <= budget)
    assert list(fitted.turns) == best
    assert fitted.has_more == (len(best) < len(turns))
    assert len(thread.counted) <= 12
