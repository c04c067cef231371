"""Groups of weights, and mixes of them."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hostler_llamacpp.tuning.mixes import Option, groups_of, plan

SHARES = (0.25, 0.5, 0.75, 1.0)


def test_weights_of_one_kind_in_neighbouring_layers_are_a_group() -> None:
    sizes = {f"blk.{layer}.{kind}.weight": 10 for layer in range(12) for kind in ("attn_q", "ffn_up")} | {"output.weight": 7}

    groups = groups_of(sizes, n_bands=6)

    assert len(groups) == 13
    assert groups[0].name == "attn_q 0-1"
    assert groups[0].weights == ("blk.0.attn_q.weight", "blk.1.attn_q.weight")
    assert (groups[-1].name, groups[-1].n_elements) == ("output.weight", 7)


def test_every_weight_is_in_one_group() -> None:
    sizes = {f"blk.{layer}.ffn_down.weight": 1 for layer in range(7)} | {"enc.blk.3.attn_v.weight": 1, "cls.weight": 1}

    names = [weight for group in groups_of(sizes) for weight in group.weights]

    assert sorted(names) == sorted(sizes)


def test_cheapest_group_becomes_coarse_first() -> None:
    options = [Option("dear", "Q4_0", 0.1, 1.0), Option("cheap", "Q4_0", 0.01, 1.0), Option("middle", "Q4_0", 0.05, 2.0)]

    mixes = plan(options, SHARES)

    assert [sorted(mix.types) for mix in mixes] == [["cheap"], ["cheap", "middle"], ["cheap", "dear", "middle"]]
    assert mixes[-1].kl == 0.16


def test_group_takes_the_closer_type_first_and_the_faster_one_when_that_is_next() -> None:
    options = [Option("a", "IQ4_NL", 0.01, 1.0), Option("a", "Q4_0", 0.05, 1.5), Option("b", "IQ4_NL", 0.04, 1.0)]

    mixes = plan(options, (0.1, 0.5, 1.0))

    assert [mix.types for mix in mixes] == [
        {"a": "IQ4_NL"},
        {"a": "IQ4_NL", "b": "IQ4_NL"},
        {"a": "Q4_0", "b": "IQ4_NL"},
    ]


def test_type_that_another_one_beats_in_both_is_never_taken() -> None:
    options = [Option("a", "worse", 0.05, 1.0), Option("a", "better", 0.01, 2.0)]

    assert [mix.types for mix in plan(options, SHARES)] == [{"a": "better"}]


def test_type_that_saves_nothing_makes_no_mix() -> None:
    assert plan([Option("a", "Q4_0", 0.05, 0.0), Option("b", "Q4_0", 0.01, -1.0)], SHARES) == []


@given(
    st.lists(
        st.builds(Option, st.sampled_from("abcdef"), st.sampled_from(["x", "y"]), st.floats(-0.01, 1), st.floats(-1, 5)),
        unique_by=lambda option: (option.group, option.type),
    )
)
def test_mixes_grow_and_their_sums_are_their_options(options: list[Option]) -> None:
    by_key = {(option.group, option.type): option for option in options}

    mixes = plan(options, SHARES)

    for mix in mixes:
        chosen = [by_key[group, kind] for group, kind in mix.types.items()]
        assert abs(mix.saved_s - sum(one.saved_s for one in chosen)) < 1e-9
        assert abs(mix.kl - sum(one.kl for one in chosen)) < 1e-9
    for before, after in pairwise(mixes):
        assert before.saved_s < after.saved_s
        assert set(before.types) <= set(after.types)
