"""The tree of prompts' beginnings."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from hostler import PrefixNode, PrefixTree


@dataclass
class Bytes:
    """Keys and values of ten bytes a token."""

    n_tokens: int
    checkpoint_bytes: int = 0

    @property
    def n_bytes(self) -> int:
        return 10 * self.n_tokens + self.checkpoint_bytes

    def split(self, n_tokens: int) -> tuple[Bytes, Bytes]:
        return Bytes(n_tokens), Bytes(self.n_tokens - n_tokens, self.checkpoint_bytes)

    def has_checkpoint(self) -> bool:
        return self.checkpoint_bytes > 0

    def drop_checkpoint(self) -> None:
        self.checkpoint_bytes = 0


@dataclass(eq=False)
class Holder:
    n_tokens: int = 0


@dataclass
class Pins:
    evicted: list[int] = field(default_factory=list)

    def __call__(self, node: PrefixNode) -> None:
        self.evicted.append(node.end)


def tokens(text: str) -> np.ndarray:
    return np.array([ord(letter) for letter in text], np.int32)


def make_tree(budget_bytes: int = 10_000, pins: Pins | None = None) -> PrefixTree:
    return PrefixTree(tokens(""), budget_bytes, on_evicted_pin=pins or Pins())


def keep(tree: PrefixTree, text: str, checkpoint_bytes: int = 0) -> PrefixNode:
    """Keep all nodes up to a text's end, the last with a checkpoint, and use them."""
    leaf = tree.reach(tokens(text))
    path = leaf.path()
    for node in path:
        if node.kept is None:
            kept = Bytes(len(node.tokens), checkpoint_bytes if node is leaf else 0)
            assert tree.make_room(kept.n_bytes, path)
            tree.keep(node, kept)
    tree.use(path, 0)
    return leaf


def kept_texts(tree: PrefixTree) -> set[str]:
    return {
        "".join(chr(token) for one in node.path() for token in one.tokens) for node in tree.nodes() if node.kept is not None
    }


def test_tree_finds_the_longest_beginning_and_says_how_much_of_it() -> None:
    tree = make_tree()
    keep(tree, "the cat sat")
    keep(tree, "the cow ran")

    texts = ("the cat", "the cow ran off", "a dog", "the dog", "")
    found = {text: (len(path), n) for text in texts for path, n in [tree.find(tokens(text))]}

    assert found == {"the cat": (2, 7), "the cow ran off": (2, 11), "a dog": (0, 0), "the dog": (1, 4), "": (0, 0)}


def test_fork_in_the_middle_splits_what_is_kept_and_counts_the_same_bytes() -> None:
    tree = make_tree()
    leaf = keep(tree, "the cat sat", checkpoint_bytes=7)
    before = tree.n_bytes

    tree.reach(tokens("the cow"))

    assert tree.n_bytes == before
    assert leaf.end == 11, "who points at the end points at it still"
    assert (leaf.kept.n_tokens, leaf.kept.checkpoint_bytes) == (6, 7)
    assert leaf.parent is not None
    assert (leaf.parent.kept.n_tokens, leaf.parent.kept.checkpoint_bytes) == (5, 0)


def test_holder_is_found_with_as_much_as_it_holds() -> None:
    tree = make_tree()
    holder, other = Holder(9), Holder(11)
    tree.hold(holder, tokens("the cat sat down"))
    tree.hold(other, tokens("the cow ran"))

    path, n = tree.find(tokens("the cat sat up"))

    assert n == 12
    assert tree.holders(path, n) == {holder: 9, other: 5}


def test_nodes_go_with_their_last_holder() -> None:
    tree = make_tree()
    holder, other = Holder(7), Holder(7)
    tree.hold(holder, tokens("the cat"))
    tree.hold(other, tokens("the cow"))

    tree.hold(holder, tokens("a dog"))

    assert {node.end for node in tree.nodes()} == {5, 7}
    tree.let_go(holder)
    tree.let_go(other)
    assert list(tree.nodes()) == []


def test_least_recently_used_leaf_goes_first_and_parents_after_their_children() -> None:
    tree = make_tree(budget_bytes=330)
    keep(tree, "0123456789")
    keep(tree, "0123456789aaaaa")
    keep(tree, "0123456789bbbbb")
    keep(tree, "xxxxxxxxxx")

    keep(tree, "yyyyy")
    assert kept_texts(tree) == {"0123456789", "0123456789bbbbb", "xxxxxxxxxx", "yyyyy"}
    keep(tree, "z" * 15)
    assert kept_texts(tree) == {"xxxxxxxxxx", "yyyyy", "z" * 15}


def test_what_is_needed_right_now_is_not_evicted() -> None:
    tree = make_tree(budget_bytes=200)
    needed = keep(tree, "0123456789")
    keep(tree, "aaaaaaaaaa")

    assert tree.make_room(100, [needed])
    assert kept_texts(tree) == {"0123456789"}
    assert not tree.make_room(150, [needed])
    assert kept_texts(tree) == {"0123456789"}, "nothing is evicted in vain"


def test_pinned_prefix_goes_last_the_oldest_first_and_is_told() -> None:
    pins = Pins()
    tree = make_tree(budget_bytes=300, pins=pins)
    for text in ("p" * 10, "q" * 9):
        tree.pin(keep(tree, text).path())
    for letter in "abcd":
        keep(tree, letter * 10)
    assert {"p" * 10, "q" * 9} < kept_texts(tree)
    assert pins.evicted == []

    assert tree.make_room(205)

    assert kept_texts(tree) == {"q" * 9}
    assert pins.evicted == [10]


def test_pinned_prefix_never_goes_for_what_is_not_pinned_and_nothing_else_goes_in_vain() -> None:
    pins = Pins()
    tree = make_tree(budget_bytes=300, pins=pins)
    tree.pin(keep(tree, "p" * 10).path())
    keep(tree, "a" * 10)

    assert not tree.make_room(205, for_pinned=False)
    assert kept_texts(tree) == {"p" * 10, "a" * 10}

    assert tree.make_room(200, for_pinned=False)
    assert kept_texts(tree) == {"p" * 10}
    assert pins.evicted == []


def test_checkpoint_within_a_path_goes_before_the_rows_of_leaves_used_later() -> None:
    tree = make_tree(budget_bytes=400)
    inner = keep(tree, "0123456789", checkpoint_bytes=100)
    tree.use_checkpoint(inner)
    keep(tree, "0123456789aaaaa", checkpoint_bytes=50)

    assert tree.make_room(150)

    assert not inner.kept.has_checkpoint()
    assert kept_texts(tree) == {"0123456789", "0123456789aaaaa"}


@pytest.mark.parametrize("n_bytes", [0, 100, 101])
def test_budget_of_nothing_keeps_nothing(n_bytes: int) -> None:
    tree = make_tree(budget_bytes=100)

    assert tree.make_room(n_bytes) is (n_bytes <= 100)
    assert tree.n_bytes == 0


def test_saved_part_of_a_path_ends_at_its_first_gap() -> None:
    tree = make_tree()
    keep(tree, "0123")
    leaf = tree.reach(tokens("0123456789"))
    below = tree.reach(tokens("0123456789ab"))
    below.stored = "a file"

    assert [node.end for node in tree.saved(below.path())] == [4]
    leaf.stored = "another"
    assert [node.end for node in tree.saved(below.path())] == [4, 10, 12]


def test_with_many_nodes_a_few_more_go_at_once_but_no_pinned_one() -> None:
    pins = Pins()
    tree = make_tree(budget_bytes=40_000, pins=pins)
    for number in range(400):
        leaf = keep(tree, chr(1000 + number) * 10)
        if number < 10:
            tree.pin(leaf.path())

    assert tree.make_room(100)
    n_kept = len(kept_texts(tree))
    assert 400 - n_kept > 10, "the next ones need not look again"
    assert 400 - n_kept < 20
    assert pins.evicted == []
