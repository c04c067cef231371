"""What an ended sequence leaves is saved while others run, and nobody is held up or robbed by it."""

from __future__ import annotations

import numpy as np
import pytest

from hostler_llamacpp.prefixes import Prefixes
from hostler_llamacpp.streams import Stream, Streams

from .scripted_memory import ScriptedFiles, ScriptedMemory

LONG = np.random.default_rng(1).integers(30, 1000, 300).astype(np.int32)
OTHER = np.random.default_rng(2).integers(30, 1000, 300).astype(np.int32)
SHORT = np.arange(20, dtype=np.int32)


class Setup:
    """Streams for which everything is large."""

    def __init__(
        self, n_streams: int = 2, *, window: int = 0, ram_bytes: int = 10_000_000, files: ScriptedFiles | None = None
    ) -> None:
        self.memory = ScriptedMemory(n_streams, window=window)
        self.files = files or ScriptedFiles()
        self.prefixes = Prefixes(self.memory.layout(), ram_bytes=ram_bytes, files=self.files)
        self.streams = Streams(
            *(self.memory, n_streams, 400), n_swa=window, can_roll_back=True, prefixes=self.prefixes, min_salvaged_bytes=0
        )

    def run(self, prompt: np.ndarray) -> Stream:
        stream, n_keep = self.streams.place(prompt, may_reuse=True)
        self.memory.evaluate(stream.number, prompt[n_keep:].tolist())
        stream.extend(prompt[n_keep:])
        return stream

    def advance(self, n_times: int) -> None:
        for _ in range(n_times):
            self.streams._salvage.wait()
            self.streams.advance()

    def stored(self) -> list[list[int]]:
        return [self.files.whole(name) for name in self.files.stored]

    def n_restorable(self, prompt: np.ndarray) -> int:
        path, n = self.prefixes.tree.find(prompt)
        return self.prefixes.restorable(path, n)[1]


def ended_beside_another(n_steps: int) -> Setup:
    """A long one has ended while a short one runs on, so many steps ago."""
    setup = Setup()
    setup.run(SHORT)
    setup.streams.release(setup.run(LONG))
    setup.advance(n_steps)
    return setup


@pytest.mark.parametrize("window", [0, 24])
@pytest.mark.parametrize("ram_bytes", [0, 10_000_000])
def test_beside_a_running_answer_it_is_saved_some_steps_later(window: int, ram_bytes: int) -> None:
    setup = Setup(window=window, ram_bytes=ram_bytes)
    setup.run(SHORT)
    ended = setup.run(LONG)

    setup.streams.release(ended)
    assert not setup.stored()
    setup.advance(3)

    assert LONG.tolist() in setup.stored()
    assert setup.n_restorable(LONG) == len(LONG)


def test_with_the_end_of_the_last_running_answer_it_is_saved_at_once() -> None:
    for n_steps in range(3):
        setup = Setup()
        running, ended = setup.run(SHORT), setup.run(LONG)
        setup.streams.release(ended)
        setup.advance(n_steps)
        assert not setup.stored()

        setup.streams.release(running)

        assert setup.stored() == [LONG.tolist()]


@pytest.mark.parametrize("n_steps", range(4))
def test_a_prompt_that_takes_the_place_meanwhile_loses_nothing_of_it(n_steps: int) -> None:
    setup = ended_beside_another(n_steps)

    taker = setup.run(OTHER)

    assert taker.tokens.tolist() == OTHER.tolist()
    assert setup.n_restorable(LONG) == len(LONG)
    setup.advance(3)
    assert LONG.tolist() in setup.stored()


@pytest.mark.parametrize("n_steps", range(4))
def test_a_prompt_that_goes_on_from_it_meanwhile_finds_it(n_steps: int) -> None:
    setup = ended_beside_another(n_steps)

    stream, n_keep = setup.streams.place(np.concatenate([LONG, OTHER[:50]]), may_reuse=True)

    assert n_keep == len(LONG)
    assert setup.memory.tokens[stream.number] == LONG.tolist()
    setup.advance(3)
    assert stream.tokens.tolist() == LONG.tolist()


@pytest.mark.parametrize("n_steps", range(4))
def test_a_model_that_stops_meanwhile_writes_it(n_steps: int) -> None:
    setup = ended_beside_another(n_steps)

    setup.streams.close(10.0)

    assert LONG.tolist() in setup.stored()


def test_several_are_saved_one_after_the_other() -> None:
    setup = Setup(3)
    setup.run(SHORT)
    for ended in (setup.run(LONG), setup.run(OTHER)):
        setup.streams.release(ended)

    setup.advance(6)

    assert sorted(setup.stored()) == sorted([LONG.tolist(), OTHER.tolist()])


@pytest.mark.parametrize("is_there", [True, False])
def test_what_came_from_a_file_is_copied_to_memory_only_if_the_file_is_gone(*, is_there: bool) -> None:
    before = Setup(1)
    before.streams.release(before.run(LONG))
    setup = Setup(1, files=before.files)
    setup.streams.release(setup.run(np.append(LONG, SHORT)))
    assert setup.prefixes.n_bytes == 0, "as yet it lies in its slot and in the file"
    [name] = setup.files.stored
    if not is_there:
        setup.files.lose(name)

    setup.run(OTHER)

    n_kept = len(SHORT) if is_there else len(LONG) + len(SHORT)
    assert setup.prefixes.n_bytes == n_kept * setup.prefixes.layout.token_bytes
    assert setup.n_restorable(np.append(LONG, SHORT)) == len(LONG) + len(SHORT)


def test_a_fork_of_a_file_is_written_from_its_slot_and_the_file_is_not_read_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Setup(1)
    before.streams.release(before.run(LONG))
    setup = Setup(2, files=before.files)
    setup.run(SHORT)
    fork = np.concatenate([LONG[:100], OTHER[:280]])
    forked = setup.run(fork)
    setup.streams.release(forked)
    monkeypatch.setattr(setup.files, "read", lambda name: pytest.fail(f"{name} was read"))

    setup.run(OTHER)

    assert forked.tokens.tolist() == OTHER.tolist(), "it took the fork's slot"
    assert sorted(map(len, setup.stored())) == [100, len(LONG), len(fork)], "the fork has two files"
