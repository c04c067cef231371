"""Thousands of orders of adding, cancelling, evicting and restarting: what must hold after each step."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler_llamacpp.prefixes import Prefixes
from hostler_llamacpp.salvage import MIN_BYTES
from hostler_llamacpp.streams import Stream, Streams

from .scripted_memory import ScriptedFiles, ScriptedMemory

N_STREAMS, N_CTX = 3, 400
PIECES = [np.random.default_rng(seed).integers(30, 1000, 20 + 25 * (seed % 4)).tolist() for seed in range(8)]
"""Prompts are made of these, so that they fork here and there; some are longer than a window."""
KINDS = {"plain": {}, "window": {"window": 24}, "recurrent": {"is_recurrent": True}}
ROOM_BYTES = 4000
"""Some states fit in, others do not."""


class Machine:
    """Streams over a scripted memory, driven as the engine drives them."""

    def __init__(self, kind: str, ram_bytes: int, *, has_disk: bool, min_salvaged_bytes: int = MIN_BYTES) -> None:
        self.kind = kind
        self.ram_bytes = ram_bytes
        self.min_salvaged_bytes = min_salvaged_bytes
        self.files = ScriptedFiles() if has_disk else None
        self.prompts: dict[Stream, np.ndarray] = {}
        self.n_reused = 0
        self.start()

    def start(self) -> None:
        self.memory = ScriptedMemory(N_STREAMS, **KINDS[self.kind])
        prefixes = Prefixes(self.memory.layout(), ram_bytes=self.ram_bytes, files=self.files)
        window = KINDS[self.kind].get("window", 0)
        self.streams = Streams(
            self.memory,
            N_STREAMS,
            N_CTX,
            n_swa=window,
            can_roll_back=self.kind != "recurrent",
            prefixes=prefixes,
            room_bytes=ROOM_BYTES,
            min_salvaged_bytes=self.min_salvaged_bytes,
        )

    # -- what happens -----------------------------------------------------------------------------------------------

    def add(self, a: int, b: int) -> None:
        """A prompt of several pieces, or the end of one."""
        if len(self.prompts) == N_STREAMS:
            return
        chosen = [PIECES[a % 8], PIECES[b % 8], PIECES[(a + b) % 8]][: 1 + b % 3]
        prompt = np.array([token for piece in chosen for token in piece][: N_CTX - 50], np.int32)
        stream, n_keep = self.streams.place(prompt, may_reuse=a % 10 != 9, n_pinned=25 if b % 5 == 4 else 0)
        assert n_keep < len(prompt)
        assert a % 10 != 9 or n_keep == 0
        assert self.memory.tokens[stream.number] == prompt[:n_keep].tolist(), "another prompt's tokens were kept"
        if self.kind == "window" and n_keep:
            assert self.memory.positions(stream.number)[0] <= max(0, n_keep - 24), "the window has a hole"
        self.n_reused += n_keep
        self.prompts[stream] = prompt

    def prefill(self, a: int, b: int) -> None:
        if (stream := self.running(a)) is None:
            return
        n = self.streams.clip(stream, min(1 + b, len(self.prompts[stream]) - stream.n_tokens))
        if n > 0:
            tokens = self.prompts[stream][stream.n_tokens : stream.n_tokens + n]
            self.memory.evaluate(stream.number, tokens.tolist())
            stream.extend(tokens)
            self.streams.take_checkpoint(stream)

    def decode(self, a: int, b: int) -> None:
        stream = self.running(a)
        if stream is not None and len(self.prompts[stream]) <= stream.n_tokens < N_CTX - 10:
            tokens = [1 + (b + i) % 5 for i in range(1 + b % 7)]
            self.memory.evaluate(stream.number, tokens)
            stream.extend(tokens)
            if self.streams.can_truncate and b % 3 == 0:
                self.streams.truncate(stream, stream.n_tokens - 1)

    def end(self, a: int, _b: int) -> None:
        if (stream := self.running(a)) is not None:
            del self.prompts[stream]
            self.streams.release(stream)

    def between_steps(self, _a: int, _b: int) -> None:
        self.streams._salvage.wait()  # or it would be chance what follows
        self.streams.advance()

    def wait(self, a: int, b: int) -> None:
        """A prompt waits for what another one evaluates."""
        stream = self.running(a)
        if stream is not None and stream.n_tokens < len(self.prompts[stream]):
            n = self.streams.coming(self.prompts[stream][: 1 + b]).get(stream, 0)
            assert n == (min(1 + b, len(self.prompts[stream])) if stream.is_shared else 0)
            if n > stream.n_tokens:
                self.streams.may_wait_for(stream, n)

    def swap(self, a: int, b: int) -> None:
        one, other = self.streams.all[a % N_STREAMS], self.streams.all[b % N_STREAMS]
        if one is not other:
            self.streams.swap(one, other)

    def restart(self, a: int, _b: int) -> None:
        for stream in list(self.prompts):
            self.streams.release(stream)
        self.prompts.clear()
        if a % 2:  # else it died
            self.streams.close(10)
        self.start()

    def lose(self, a: int, b: int) -> None:
        if self.files is not None and self.files.stored:
            self.files.lose(sorted(self.files.stored)[(a * 31 + b) % len(self.files.stored)])

    def running(self, a: int) -> Stream | None:
        running = [stream for stream in self.streams.all if stream in self.prompts]
        return running[a % len(running)] if running else None

    # -- what must hold ---------------------------------------------------------------------------------------------

    def check(self) -> None:
        streams, prefixes = self.streams, self.streams.prefixes
        tree = prefixes.tree
        assert [stream.number for stream in streams.all] == list(range(N_STREAMS))
        for stream in streams.all:
            assert stream.is_active == (stream in self.prompts)
            assert stream.is_shared or stream.is_active or not stream.n_tokens, "what is nobody's business was kept"
            assert self.memory.tokens[stream.number] == stream.tokens.tolist()
        nodes = list(tree.nodes())
        owned: set[int] = set()
        for node in nodes:
            assert len(node.tokens)
            assert node.parent is not None
            assert node.parent.children[int(node.tokens[0])] is node
            assert node.start == node.parent.end
            assert node.children or node.holders or node.is_saved, "a node that nobody needs"
            assert node.parent is tree.root or (node.holders <= node.parent.holders)
            assert node.parent is tree.root or node.last_used <= node.parent.last_used
            for holder in node.holders:
                assert holder.is_shared
                n = min(holder.n_tokens, node.end) - node.start
                held = holder.tokens[node.start : node.start + max(n, 0)]
                assert held.tolist() == node.tokens[: max(n, 0)].tolist(), "a stream does not hold what the tree says"
            if node.kept is not None:
                assert all(one.is_saved for one in node.path()), "rows behind a gap"
                for chunk in node.kept.chunks:
                    assert id(chunk.data) not in owned, "rows owned twice"
                    owned.add(id(chunk.data))
                if prefixes.layout.token_bytes:
                    tokens = np.concatenate([chunk.bands[0][0].copy().view(np.int32)[:, 0] for chunk in node.kept.chunks])
                    assert tokens.tolist() == node.tokens.tolist(), "rows of other tokens"
        assert prefixes.n_bytes == sum(node.kept.n_bytes for node in nodes if node.kept is not None)
        assert prefixes.n_bytes <= self.ram_bytes
        if self.files is not None:
            for node in nodes:
                if node.stored is not None and node.stored.id in self.files.stored:
                    whole = self.files.whole(node.stored.id)
                    assert whole[node.start : node.end] == node.tokens.tolist(), "a file of other tokens"


OPERATIONS = (
    *(Machine.add, Machine.prefill, Machine.prefill, Machine.decode, Machine.end, Machine.wait, Machine.swap),
    *(Machine.between_steps, Machine.between_steps),
)


@pytest.mark.parametrize("min_salvaged_bytes", [MIN_BYTES, 0])
@pytest.mark.parametrize("kind", list(KINDS))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    ram_bytes=st.sampled_from([0, 3_000, 8_000, 10_000_000]),
    has_disk=st.booleans(),
    steps=st.lists(st.tuples(st.integers(0, 39), st.integers(0, 99), st.integers(0, 99)), min_size=10, max_size=60),
)
def test_whatever_happens_no_cell_is_lost_or_owned_twice(
    kind: str, min_salvaged_bytes: int, ram_bytes: int, has_disk: bool, steps: list[tuple[int, int, int]]
) -> None:
    machine = Machine(kind, ram_bytes, has_disk=has_disk, min_salvaged_bytes=min_salvaged_bytes)

    for what, a, b in steps:
        if what < 38:
            OPERATIONS[what % len(OPERATIONS)](machine, a, b)
        else:
            (machine.restart if what == 38 else machine.lose)(a, b)
        machine.check()

    for stream in list(machine.prompts):
        machine.streams.release(stream)
    for stream in machine.streams.all:
        stream.is_shared = False
        machine.streams.release(stream)
    tree = machine.streams.prefixes.tree
    for node in list(tree.nodes()):
        node.stored = None
    for node in [*tree.nodes()][::-1]:
        tree.drop(node)
    assert (tree.n_bytes, list(tree.nodes())) == (0, []), "something leaked"


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_machine_above_reuses_a_lot(kind: str) -> None:
    """Or it would prove nothing."""
    machine = Machine(kind, 10_000_000, has_disk=True)
    random = np.random.default_rng(1)
    for _ in range(800):
        a, b = (int(value) for value in random.integers(0, 100, 2))
        OPERATIONS[int(random.integers(len(OPERATIONS)))](machine, a, b)
        machine.check()

    assert machine.n_reused > 1000
