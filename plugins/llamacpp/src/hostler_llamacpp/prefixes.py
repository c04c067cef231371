"""What outlives the streams: prefixes in host memory and on disk, and the tree that knows where each lies.

Worker process, engine thread only. It knows the tree, rows and budgets; which stream is taken or lost is decided in
streams.py.

Two kinds of models:

- where every layer keeps every position (`Layout.is_exact_anywhere`), rows are kept by token, and a prefix of any length can
  be restored;
- where layers forget (sliding windows, recurrent and hybrid models), a prefix can be gone on from only where a checkpoint was
  taken, so one is kept at the end of some nodes beside the rows of those layers that forget nothing, if there are any.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hostler import PrefixFiles, PrefixNode, PrefixTree, prefix_id
from hostler_llamacpp.states import Layout, Rows, State, TakenRows, payload_of, rows_in

MIN_KEPT_TOKENS = 16
"""Fewer new ones are not worth a checkpoint or a file: they are evaluated again."""
MIN_STORED_TOKENS = 256
"""So many new tokens are worth a file at once; fewer only where the prefix was used again, is pinned, or the model stops."""


@dataclass(frozen=True)
class Run:
    """A file of rows; the nodes of its tokens share it."""

    id: str
    start: int
    n_tokens: int

    @property
    def end(self) -> int:
        """Tokens up to its end."""
        return self.start + self.n_tokens


def unknown_layout() -> Layout:
    """One that keeps nothing."""
    return Layout((), 0, b"", b"")


class Prefixes:
    """All prefixes of one model that are known, and what is kept of them."""

    def __init__(self, layout: Layout, *, ram_bytes: int, files: PrefixFiles | None = None) -> None:
        """Read what the files' headers say; nothing is in host memory yet.

        Args:
            layout: What states look like.
            ram_bytes: Host memory for them; 0: none.
            files: Not opened yet; None: no disk tier.
        """
        self.layout = layout
        self.is_exact_anywhere = layout.is_exact_anywhere
        self.tree = PrefixTree(np.empty(0, np.int32), ram_bytes, on_evicted_pin=_warn_of_pin)
        self._files = files
        self.has_room = ram_bytes > 0
        if files is not None:
            self._find_files(files)
            self.has_room = self.has_room or files.is_on

    @property
    def n_bytes(self) -> int:
        """In host memory."""
        return self.tree.n_bytes

    def _find_files(self, files: PrefixFiles) -> None:
        whole: dict[str, np.ndarray] = {"": np.empty(0, np.int32)}
        for stored in files.open():
            own = np.frombuffer(stored.tokens, "<i4").astype(np.int32)
            tokens = whole[stored.id] = np.concatenate([whole[stored.parent], own])
            run = Run(stored.id, stored.n_before, len(own))
            for node in self.tree.reach(tokens).path():
                if node.start >= run.start and node.stored is None:
                    node.stored = run
                    node.n_uses = stored.n_uses

    # -- finding --------------------------------------------------------------------------------------------------------

    def restorable(self, path: Sequence[PrefixNode], n_tokens: int) -> tuple[list[PrefixNode], int]:
        """What of a known beginning can be restored.

        Args:
            path: As PrefixTree.find gives it.
            n_tokens: At most so many.

        Returns:
            The nodes it is made of, and how many tokens; 0: nothing.
        """
        nodes = [node for node in self.tree.saved(list(path)) if node.start < n_tokens]
        if self.is_exact_anywhere:
            return nodes, min(n_tokens, nodes[-1].end) if nodes else 0
        while nodes and not (nodes[-1].end <= n_tokens and _has_checkpoint(nodes[-1])):
            nodes.pop()
        return nodes, nodes[-1].end if nodes else 0

    @staticmethod
    def is_in_memory(nodes: Iterable[PrefixNode]) -> bool:
        """Whether restoring them needs no file."""
        return all(node.kept is not None for node in nodes)

    def blob(self, nodes: Sequence[PrefixNode], n_tokens: int, room: np.ndarray | None = None) -> np.ndarray | None:
        """What to restore for a beginning that `restorable` found; None where a file of it was lost or damaged.

        Args:
            room: As for StreamMemory.save.
        """
        if not self.layout.token_bytes:
            nodes = nodes[-1:]
        sources: list[tuple[Rows, int, int]] = []
        read: dict[str, Rows] = {}
        checkpoint: np.ndarray | None = None
        for node in nodes:
            end = min(n_tokens, node.end)
            is_checkpointed = node is nodes[-1] and not self.is_exact_anywhere
            if node.kept is not None and not (is_checkpointed and not node.kept.has_checkpoint()):
                rows, offset = node.kept, node.start
            else:
                run = node.stored
                if run is None or (run.id not in read and not self._read_into(read, run)):
                    self._forget_lost(node)
                    return None
                rows, offset = read[run.id], run.start
            sources.append((rows, node.start - offset, end - offset))
            if is_checkpointed:
                checkpoint = rows.checkpoint
        if not self.is_exact_anywhere:
            if checkpoint is None:
                return None
            self.tree.use_checkpoint(nodes[-1])
        pieces: Iterator[Sequence[np.ndarray]] = (piece for rows, start, end in sources for piece in rows.pieces(start, end))
        return self.layout.put_together(pieces, n_tokens, checkpoint, room)

    def _read_into(self, read: dict[str, Rows], run: Run) -> bool:
        payload = self._files.read(run.id) if self._files is not None else None
        rows = None if payload is None else rows_in(payload, self.layout, run.n_tokens)
        if rows is None:
            return False
        read[run.id] = rows
        return True

    def note_use(self, path: Sequence[PrefixNode], n_known: int) -> None:
        """A prompt with this path came, of which so many tokens were known."""
        self.tree.use(list(path), n_known)
        if self._files is not None:
            for run in {node.stored for node in path if node.stored is not None and node.end <= n_known}:
                self._files.used(run.id)

    def _forget_lost(self, node: PrefixNode) -> None:
        """A node's file is gone, and with it those that go on from it; what is kept behind a gap is of no use."""
        lost = node.stored
        below = [node]
        for one in below:
            below.extend(one.children.values())
        for one in self._nodes_of(lost):
            one.stored = None
        for one in reversed(below):
            one.stored = None
        for one in reversed(below):
            if one.kept is not None and not all(before.is_saved for before in one.path()):
                self.tree.drop(one)
            else:
                self.tree.prune(one)

    def _nodes_of(self, run: Run | None) -> list[PrefixNode]:
        return [] if run is None else [node for node in self.tree.nodes() if node.stored is run]

    # -- saving ---------------------------------------------------------------------------------------------------------

    def n_saved(self, path: Sequence[PrefixNode]) -> int:
        """How many tokens of a path need no saving any more: they are in host memory, or in whole files, which the system
        has in memory, too, as long as there is room."""
        nodes = self._whole(self.tree.saved(list(path)))
        while not self.is_exact_anywhere and nodes and not _has_checkpoint(nodes[-1]):
            nodes.pop()
        return nodes[-1].end if nodes else 0

    def _whole(self, nodes: list[PrefixNode]) -> list[PrefixNode]:
        """Those at the beginning that are kept, or lie in files that are there and that the path has all of: of others a part
        would have to be read to write a fork."""
        n_whole, of = 0, None
        for place, node in enumerate(nodes, 1):
            run = node.stored
            if of is None and node.kept is not None:
                n_whole = place
                continue
            if run is None or of not in (None, run) or self._files is None or not self._files.has(run.id):
                break
            of = run if node.end < run.end else None
            if of is None:
                n_whole = place
        return nodes[:n_whole]

    @property
    def min_lost_tokens(self) -> int:
        """So many tokens are saved before they are lost."""
        return 1 if self.is_exact_anywhere and self.has_ram else MIN_KEPT_TOKENS

    @property
    def has_ram(self) -> bool:
        """There is a budget in host memory."""
        return self.tree.budget_bytes > 0

    def is_worth_storing(self, path: Sequence[PrefixNode], *, at_end: bool = False) -> bool:
        """Whether a path is to be written to disk now.

        Args:
            at_end: The model stops, there is no later.
        """
        if not self.has_files:
            return False
        fresh = [node for node in path if node.stored is None]
        n_fresh = sum(len(node.tokens) for node in fresh)
        if n_fresh >= (MIN_KEPT_TOKENS if at_end else MIN_STORED_TOKENS):
            return True
        return any((node.n_uses or node.pinned_at) and node.end >= MIN_KEPT_TOKENS for node in fresh)

    def save(self, state: State | TakenRows, leaf: PrefixNode, *, stores: bool, stays: Sequence[PrefixNode] = ()) -> None:
        """Keep what a stream holds, as far as it is not kept yet and there is room, and write it to disk where that is wanted.

        Args:
            state: The stream's, with all rows from its start to the leaf's end.
            leaf: Where the stream's tokens end.
            stores: Write it to disk.
            stays: Nodes that must not be evicted for it.
        """
        path = leaf.path()
        checkpoint = None if self.is_exact_anywhere else state.checkpoint
        for node in path:
            mark = checkpoint if node is leaf else None
            is_kept = node.kept is not None and (mark is None or node.kept.has_checkpoint())
            if not is_kept and node.start >= state.start:
                self._keep(node, [*path, *stays], state, mark)
            if not node.is_saved:
                break  # no room; what is behind would be of no use
        if stores:
            self.store(leaf, state)
        self.tree.prune(leaf)

    def _keep(
        self, node: PrefixNode, stays: Sequence[PrefixNode], state: State | TakenRows, checkpoint: np.ndarray | None
    ) -> None:
        """Copy a node's rows to host memory; as many as there is room for."""
        if not self.has_ram:
            return
        n_more = 0 if checkpoint is None else checkpoint.nbytes
        n_bytes = len(node.tokens) * self.layout.token_bytes + n_more - (node.kept.n_bytes if node.kept is not None else 0)
        if not self.tree.make_room(n_bytes, stays, for_pinned=node.pinned_at > 0):
            if self.is_exact_anywhere:
                self._keep_beginning(node, stays, state)
            return
        rows = state.rows(node.start, node.end) if node.kept is None else Rows(node.kept.chunks)
        if checkpoint is not None:
            rows.checkpoint = checkpoint.copy()
            self.tree.use_checkpoint(node)
        self.tree.keep(node, rows)

    def _keep_beginning(self, node: PrefixNode, stays: Sequence[PrefixNode], state: State | TakenRows) -> None:
        n_staying = sum(one.kept.n_bytes for one in set(stays) if one.kept is not None)
        n_fitting = (self.tree.budget_bytes - n_staying) // self.layout.token_bytes
        if node.kept is None and MIN_KEPT_TOKENS <= n_fitting < len(node.tokens):
            upper = self.tree.split(node, n_fitting)
            n_bytes = n_fitting * self.layout.token_bytes
            if self.tree.make_room(n_bytes, [upper, *stays], for_pinned=upper.pinned_at > 0):
                self.tree.keep(upper, state.rows(upper.start, upper.end))

    # -- disk -----------------------------------------------------------------------------------------------------------

    def store_kept(self, leaf: PrefixNode) -> None:
        """Write to disk what is kept of a path."""
        nodes = self.tree.saved(leaf.path())
        if nodes and self.is_worth_storing(nodes):
            self.store(nodes[-1], None)

    def store(self, leaf: PrefixNode, state: State | TakenRows | None) -> None:
        """Write a path to disk, as far as it can be gone on from.

        Args:
            state: A stream's that holds the path; None: only what is kept.
        """
        path = leaf.path()
        while path and not (self.is_exact_anywhere or _has_checkpoint(path[-1]) or (state is not None and path[-1] is leaf)):
            path.pop()
        parent_id, start = "", 0
        waiting: list[PrefixNode] = []
        for node in path:
            waiting.append(node)
            run = node.stored
            if run is not None and run.end == node.end:
                parent_id, start, waiting = run.id, node.end, []
                continue
            is_end = node is path[-1]
            is_checkpointed = node.kept is not None and node.kept.has_checkpoint()
            if not is_end and not (len(node.children) > 1 if self.is_exact_anywhere else is_checkpointed):
                continue
            several = [self._rows_of(one, state) for one in waiting]
            checkpoint = None
            if not self.is_exact_anywhere:
                if is_checkpointed:
                    checkpoint = node.kept.checkpoint
                elif state is not None:
                    checkpoint = state.checkpoint.copy()
                else:
                    return
            if any(rows is None for rows in several):
                return
            tokens = b"".join(one.tokens.astype("<i4").tobytes() for one in waiting)
            payload = payload_of([rows for rows in several if rows is not None], checkpoint)
            n_tokens = node.end - start
            name = prefix_id(parent_id, tokens)
            assert self._files is not None
            worth = n_tokens * (1.0 + max(one.n_uses for one in waiting)) * (PINNED_WORTH if node.pinned_at else 1.0)
            if not self._files.put(name, parent_id, start, tokens, payload, worth):
                if parent_id and not self._files.has(parent_id):
                    self._forget_run(path, parent_id)
                return
            run = Run(name, start, n_tokens)
            for one in waiting:
                if one is node or one.stored is None:
                    one.stored = run
            parent_id, start, waiting = name, node.end, []

    def _rows_of(self, node: PrefixNode, state: State | TakenRows | None) -> Rows | None:
        if node.kept is not None:
            return Rows(node.kept.chunks)
        if not self.layout.token_bytes:
            return Rows([])
        if state is not None and node.start >= state.start and node.end <= state.start + state.n_rows:
            return state.rows(node.start, node.end)
        if node.stored is None:
            return None
        read: dict[str, Rows] = {}
        if not self._read_into(read, node.stored):
            self._forget_lost(node)
            return None
        offset = node.stored.start
        return read[node.stored.id].part(node.start - offset, node.end - offset)

    def _forget_run(self, path: Sequence[PrefixNode], run_id: str) -> None:
        """The files no longer know a run: what goes on from it would never be taken."""
        lost = next((node for node in path if node.stored is not None and node.stored.id == run_id), None)
        if lost is not None:
            self._forget_lost(lost)

    @property
    def has_files(self) -> bool:
        """The disk tier is on."""
        return self._files is not None and self._files.is_on

    def store_all(self, until: float) -> None:
        """Write what is kept and was not written yet, the most recently used first, until a moment of the monotonic clock."""
        nodes = [node for node in self.tree.nodes() if node.kept is not None and node.stored is None]
        for node in sorted(nodes, key=lambda node: (node.pinned_at, node.last_used, node.end), reverse=True):
            if time.monotonic() > until:
                return
            if node.stored is None and self.is_worth_storing(node.path(), at_end=True):
                self.store(node, None)

    def close(self, timeout_s: float) -> None:
        """Have the files written that are queued, for so long at most."""
        if self._files is not None:
            self._files.close(timeout_s)


PINNED_WORTH = 16.0
"""Times as much as another of its length and use is a pinned prefix worth on disk."""


def _has_checkpoint(node: PrefixNode) -> bool:
    if node.kept is not None and node.kept.has_checkpoint():
        return True
    return node.stored is not None and bool(node.stored.end == node.end)


def _warn_of_pin(node: PrefixNode) -> None:
    sys.stderr.write(
        f"warning: a pinned prefix of {node.end} tokens left host memory: what is pinned is more than cache_ram_bytes\n"
    )
