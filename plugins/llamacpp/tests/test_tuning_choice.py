"""The rule of recommendation, and the front."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hostler_llamacpp.tuning.choice import LEAST_GAIN, LEAST_SPEED, Measured, front, recommend, request_s

from .tuning_home import measured

ORIGINAL = measured("original", 500, 150, 0.0, 0.0)


def test_fastest_within_the_loss_is_recommended() -> None:
    near = measured("near", 1000, 155, 0.005, 0.005)
    nearer = measured("nearer", 900, 150, 0.001, 0.001)
    lossy = measured("lossy", 1900, 200, 0.08, 0.09)

    assert recommend([ORIGINAL, near, nearer, lossy], 0.01) is near
    assert recommend([ORIGINAL, near, nearer, lossy], 0.1) is lossy


def test_request_weighs_prefill_and_decode_by_their_time() -> None:
    assert request_s(512, 128) == 2.0
    reads_fast = measured("reads fast", 2000, 150, 0.0, 0.0)
    writes_fast = measured("writes fast", 500, 200, 0.0, 0.0)

    assert recommend([ORIGINAL, reads_fast, writes_fast], 0.01) is reads_fast


def test_what_reads_fast_but_writes_slower_than_allowed_is_not_recommended() -> None:
    lame = measured("lame", 5000, 150 * LEAST_SPEED - 1, 0.0, 0.0)

    assert recommend([ORIGINAL, lame], 0.01) is ORIGINAL


def test_gain_within_the_noise_leaves_the_original() -> None:
    share = 1 - LEAST_GAIN / 2
    little = measured("little", 500 / share, 150 / share, 0.0, 0.0)

    assert recommend([ORIGINAL, little], 0.01) is ORIGINAL


def test_of_two_equally_fast_ones_the_closer_is_recommended() -> None:
    one, other = measured("one", 900, 180, 0.002, 0.02), measured("other", 900, 180, 0.002, 0.01)

    assert recommend([ORIGINAL, one, other], 0.01) is other


def test_front_leaves_out_what_is_beaten_in_both() -> None:
    fast, beaten = measured("fast", 1900, 200, 0.08, 0.09), measured("beaten", 1800, 190, 0.05, 0.17)

    assert [one.name for one in front([ORIGINAL, beaten, fast])] == ["original", "fast"]


speeds = st.floats(1, 5000)
variants = st.lists(
    st.builds(measured, st.just("x"), speeds, speeds, st.floats(-0.1, 0.5), st.floats(0, 1)), min_size=1, max_size=12
)


@given(variants)
def test_nothing_is_faster_and_closer_than_a_member_of_the_front(found: list[Measured]) -> None:
    chosen = front(found)

    assert chosen
    for member in chosen:
        assert not any(one.request_s < member.request_s and one.loss.kl < member.loss.kl for one in found)
    for one in found:
        assert any(member.request_s <= one.request_s and member.loss.kl <= one.loss.kl for member in chosen)


@given(variants, st.floats(0, 0.3))
def test_recommended_keeps_the_rule(found: list[Measured], max_loss: float) -> None:
    best = recommend([ORIGINAL, *found], max_loss)

    if best is not ORIGINAL:
        assert best.loss.change <= max_loss
        assert best.prefill.median >= LEAST_SPEED * ORIGINAL.prefill.median
        assert best.decode.median >= LEAST_SPEED * ORIGINAL.decode.median
        assert best.request_s < ORIGINAL.request_s
