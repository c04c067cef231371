"""A radix tree of prompts' beginnings: where the keys and values of each lie.

Floor 2; pure Python for engine plugins, which import it from `hostler`. Engine thread only. It knows token ids, who holds
them and how many bytes they take, nothing of what keys and values look like or how they are moved.

A node stands for a run of tokens behind its parent's. Their keys and values may lie in three kinds of places:

- in KV caches of the engine (`holders`): each holds all that leads to the node, too;
- in host memory (`kept`), within a budget; what leads there is kept or stored as well;
- on disk (`stored`), by whatever the engine writes there.

A node that nobody needs any more goes by itself. Eviction takes what was unused for longest, leaves first; pinned prefixes
go last, and only where the budget would be exceeded otherwise.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Protocol

from hostler.batching import common_prefix


class Holder(Protocol):
    """A KV cache of the engine."""

    n_tokens: int
    """How many tokens lie in it; it may hold fewer than its path has."""


class Kept(Protocol):
    """Keys and values of a node's tokens in host memory."""

    n_bytes: int

    def split(self, n_tokens: int) -> tuple[Kept, Kept]:
        """Two of it, the first with so many tokens; together no more bytes."""

    def has_checkpoint(self) -> bool:
        """Whether something belongs to it that is good at its end alone, such as a recurrent state."""

    def drop_checkpoint(self) -> None:
        """Give that up."""


class PrefixNode:
    """A run of tokens that follow on their parent's."""

    __slots__ = (
        "checkpoint_used", "children", "holders", "kept", "last_used", "n_uses", "parent", "pinned_at", "start", "stored",
        "tokens",
    )  # fmt: skip

    def __init__(self, parent: PrefixNode | None, tokens: Any, start: int) -> None:
        self.parent = parent
        """None: the root, or no part of the tree any more."""
        self.tokens = tokens
        """An array of whole numbers, such as numpy's; never empty, save the root's."""
        self.start = start
        """Tokens before it."""
        self.children: dict[int, PrefixNode] = {}
        """By first token."""
        self.holders: set[Any] = set()
        self.kept: Any = None
        self.stored: Any = None
        self.last_used = 0
        """INVARIANT: never later than its parent's."""
        self.checkpoint_used = 0
        self.n_uses = 0
        """How many prompts began with it after the first."""
        self.pinned_at = 0
        """When it was pinned last; 0: it is not."""

    @property
    def end(self) -> int:
        """Tokens up to its end."""
        return self.start + len(self.tokens)

    @property
    def is_saved(self) -> bool:
        """It outlives the caches that hold it."""
        return self.kept is not None or self.stored is not None

    def path(self) -> list[PrefixNode]:
        """From the root's child to this node; empty for the root."""
        nodes: list[PrefixNode] = []
        node = self
        while node.parent is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


MANY_NODES = 256
"""With more a look at all of them takes a millisecond."""

_Offer = tuple[bool, int, int, int, bool, PrefixNode]
"""Is pinned, when used, minus the end (the deeper one first), a tie-breaker, whether all of it goes, the node."""


class PrefixTree:
    """All beginnings that are known."""

    def __init__(
        self, nothing: Any, budget_bytes: int, *, on_evicted_pin: Callable[[PrefixNode], None] = lambda _node: None
    ) -> None:
        """Start with nothing known.

        Args:
            nothing: An array without tokens, of the kind that tokens will come in.
            budget_bytes: What may be kept in host memory.
            on_evicted_pin: Called before a pinned prefix leaves host memory because nothing else could.
        """
        self.root = PrefixNode(None, nothing, 0)
        self.budget_bytes = budget_bytes
        self.n_bytes = 0
        """INVARIANT: what all `kept` take together; at most the budget."""
        self._clock = 0
        self._leaf_of: dict[Any, PrefixNode] = {}
        """Holder -> the last node of its path."""
        self._on_evicted_pin = on_evicted_pin

    # -- looking --------------------------------------------------------------------------------------------------------

    def find(self, tokens: Any) -> tuple[list[PrefixNode], int]:
        """The longest known beginning.

        Returns:
            Its nodes, of which the last may only begin with what is looked for, and how many tokens it has.
        """
        path: list[PrefixNode] = []
        node, n = self.root, 0
        while n < len(tokens):
            child = node.children.get(int(tokens[n]))
            if child is None:
                break
            n_common = common_prefix(child.tokens, tokens[n:])
            path.append(child)
            n += n_common
            if n_common < len(child.tokens):
                break
            node = child
        return path, n

    @staticmethod
    def holders(path: list[PrefixNode], n_tokens: int) -> dict[Any, int]:
        """Who holds how many tokens of a beginning that was found."""
        found: dict[Any, int] = {}
        for node in reversed(path):
            for holder in node.holders:
                if holder not in found:
                    found[holder] = min(holder.n_tokens, node.end, n_tokens)
        return found

    @staticmethod
    def saved(path: list[PrefixNode]) -> list[PrefixNode]:
        """The nodes of a path, from the beginning, that are kept or stored without a gap."""
        nodes: list[PrefixNode] = []
        for node in path:
            if not node.is_saved:
                break
            nodes.append(node)
        return nodes

    def nodes(self) -> Iterator[PrefixNode]:
        """All, parents before their children."""
        pending = list(self.root.children.values())
        while pending:
            node = pending.pop()
            yield node
            pending.extend(node.children.values())

    # -- growing --------------------------------------------------------------------------------------------------------

    def reach(self, tokens: Any) -> PrefixNode:
        """The node that ends where these tokens do; made where there is none. Drop it with `prune` when it stays unused."""
        path, n = self.find(tokens)
        node = path[-1] if path else self.root
        if n < node.end:
            node = self.split(node, n - node.start)
        if n == len(tokens):
            return node
        child = PrefixNode(node, tokens[n:].copy(), n)
        child.last_used = node.last_used
        node.children[int(tokens[n])] = child
        return child

    def split(self, node: PrefixNode, n_tokens: int) -> PrefixNode:
        """Make a node of its first tokens.

        Args:
            n_tokens: At least 1, fewer than the node has.

        Returns:
            The new node; the old one is its child now.
        """
        parent = node.parent
        assert parent is not None
        upper = PrefixNode(parent, node.tokens[:n_tokens], node.start)
        upper.holders = set(node.holders)
        upper.stored = node.stored
        upper.last_used, upper.n_uses, upper.pinned_at = node.last_used, node.n_uses, node.pinned_at
        if node.kept is not None:
            self.n_bytes -= node.kept.n_bytes
            upper.kept, node.kept = node.kept.split(n_tokens)
            self.n_bytes += upper.kept.n_bytes + node.kept.n_bytes
        parent.children[int(upper.tokens[0])] = upper
        node.parent, node.tokens, node.start = upper, node.tokens[n_tokens:], node.start + n_tokens
        upper.children[int(node.tokens[0])] = node
        return upper

    def use(self, path: list[PrefixNode], n_known: int) -> None:
        """Note that a prompt begins with these nodes' tokens.

        Args:
            n_known: So many of the tokens were known before it came.
        """
        self._clock += 1
        for node in path:
            node.last_used = self._clock
            node.n_uses += node.end <= n_known

    def use_checkpoint(self, node: PrefixNode) -> None:
        """Note that a node's checkpoint was made or served."""
        self._clock += 1
        node.checkpoint_used = self._clock

    def pin(self, path: list[PrefixNode]) -> None:
        """Have these nodes evicted last."""
        self._clock += 1
        for node in path:
            node.pinned_at = self._clock

    # -- holders --------------------------------------------------------------------------------------------------------

    def hold(self, holder: Any, tokens: Any) -> PrefixNode:
        """Note what a KV cache holds or is about to, instead of what it held before.

        Returns:
            The node where it ends.
        """
        leaf = self.reach(tokens)
        before = self._leaf_of.get(holder)
        if before is leaf:
            return leaf
        path = leaf.path()
        for node in path:
            node.holders.add(holder)
        if before is not None:
            self._leave(holder, before, {id(node) for node in path})
        if path:
            self._leaf_of[holder] = leaf
        else:
            self._leaf_of.pop(holder, None)
        return leaf

    def let_go(self, holder: Any) -> None:
        """Note that a KV cache was emptied."""
        leaf = self._leaf_of.pop(holder, None)
        if leaf is not None:
            self._leave(holder, leaf, ())

    def _leave(self, holder: Any, leaf: PrefixNode, stays: Collection[int]) -> None:
        for node in leaf.path():
            if id(node) not in stays:
                node.holders.discard(holder)
        self.prune(leaf)

    def prune(self, node: PrefixNode) -> None:
        """Drop a node, and what leads to it, as far as nobody needs it."""
        while node.parent is not None and not (node.children or node.holders or node.is_saved):
            parent = node.parent
            del parent.children[int(node.tokens[0])]
            node.parent = None
            node = parent

    # -- host memory ----------------------------------------------------------------------------------------------------

    def keep(self, node: PrefixNode, kept: Any) -> None:
        """Put keys and values into host memory, in place of the node's own, if any; room for them was made before."""
        self.n_bytes += kept.n_bytes - (node.kept.n_bytes if node.kept is not None else 0)
        node.kept = kept

    def drop(self, node: PrefixNode) -> None:
        """Take a node's keys and values out of host memory."""
        if node.kept is not None:
            self.n_bytes -= node.kept.n_bytes
            node.kept = None
        self.prune(node)

    def make_room(self, n_bytes: int, stays: Sequence[PrefixNode] = (), *, for_pinned: bool = True) -> bool:
        """Evict until so many bytes fit; whether they do.

        Args:
            stays: Nodes that are needed right now, save their checkpoints; of the last that, too.
            for_pinned: The bytes are for something pinned, so older pins may go for it; nothing else displaces a pin.
        """
        if self.n_bytes + n_bytes <= self.budget_bytes:
            return True
        n_staying = sum(node.kept.n_bytes for node in stays if node.kept is not None and not node.kept.has_checkpoint())
        protected = set(map(id, stays))
        if not for_pinned:
            pins = (node for node in self.nodes() if node.pinned_at and id(node) not in protected)
            n_staying += sum(node.kept.n_bytes for node in pins if node.kept is not None)
        if n_bytes + n_staying > self.budget_bytes:
            return False  # nothing is evicted in vain
        heap: list[_Offer] = []
        for node in self.nodes():
            if node.kept is None:
                continue
            if id(node) not in protected:
                self._offer(heap, node)
            elif node is not stays[-1] and node.kept.has_checkpoint():
                self._offer_checkpoint(heap, node)
        # PERF: with many nodes a few more go at once, so that not each prompt looks at all of them.
        spare = self.budget_bytes // 32 if len(heap) > MANY_NODES else 0
        while heap and self.n_bytes + n_bytes > self.budget_bytes - spare:
            is_pinned, *_, is_whole, node = heapq.heappop(heap)
            if is_pinned and (not for_pinned or self.n_bytes + n_bytes <= self.budget_bytes):
                break
            if is_whole:
                if node.pinned_at:
                    self._on_evicted_pin(node)
                parent = node.parent
                self.drop(node)
                while parent is not None and parent.kept is not None and id(parent) not in protected:
                    above = parent.parent
                    if not self._is_leaf(parent):
                        break
                    if parent.kept.n_bytes:
                        self._offer(heap, parent)
                        break
                    self.drop(parent)  # it only led to what went
                    parent = above
            elif node.kept is not None and (id(node) in protected or not self._is_leaf(node)):
                self.n_bytes -= node.kept.n_bytes
                node.kept.drop_checkpoint()
                self.n_bytes += node.kept.n_bytes
        return self.n_bytes + n_bytes <= self.budget_bytes

    def _offer(self, heap: list[_Offer], node: PrefixNode) -> None:
        """Put up for eviction: a leaf as a whole, another node's checkpoint."""
        if self._is_leaf(node):
            heapq.heappush(heap, (node.pinned_at > 0, node.pinned_at or node.last_used, -node.end, id(node), True, node))
        elif node.kept.has_checkpoint():
            self._offer_checkpoint(heap, node)

    @staticmethod
    def _offer_checkpoint(heap: list[_Offer], node: PrefixNode) -> None:
        used = node.pinned_at or node.checkpoint_used
        heapq.heappush(heap, (node.pinned_at > 0, used, -node.end, id(node), False, node))

    @staticmethod
    def _is_leaf(node: PrefixNode) -> bool:
        return all(child.kept is None for child in node.children.values())
