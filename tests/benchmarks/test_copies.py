"""Texts to copy, and how much of an answer is a copy."""

from __future__ import annotations

import math

import pytest
from answers import Reply
from copies import N_SENTENCES, SENTENCES, copied, evaluate, make_text


def test_a_text_is_whole_sentences_and_new_in_each_round() -> None:
    texts = [make_text(1, str(number), 0) for number in range(20)]

    assert len(set(texts)) == 20
    assert make_text(1, "0", 0) == texts[0]
    assert sum(sentence in texts[0] for sentence in SENTENCES) == N_SENTENCES


@pytest.mark.parametrize(("answer", "share"), [("a b c d", 1.0), ("b c", 1.0), ("x b c y", 0.5), ("d c b a", 0.25), ("", 0.0)])
def test_copied_is_the_share_of_the_answers_words_that_stand_in_the_text_in_order(answer: str, share: float) -> None:
    assert copied("a b c d", answer) == share


def test_drafts_are_summed_where_the_server_tells_them() -> None:
    def reply(timings: dict[str, float] | None) -> Reply:
        return Reply(0.0, 2.0, 200, [1.0, 2.0], text="a b", completion_tokens=3, timings=timings)

    told = evaluate(["a b", "c"], [reply({"draft_n": 8, "draft_accepted_n": 6}), reply({"draft_n": 2})])
    untold = evaluate(["a b"], [reply(None)])

    assert (told["drafted"], told["draft_accepted"], told["copied"]) == (10, 6, 0.5)
    assert "drafted" not in untold
    assert math.isnan(untold["worker_decode_tok_s"])
