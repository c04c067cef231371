"""Steps an engine as a worker's loop does, and notices when it breaks the contract. Floor 2, tests only, one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from hostler.engine import Engine
from hostler.testing.recording import RecordingSequence


class ContractError(AssertionError):
    """An engine did something that the contract forbids; the text says what."""


class Driver:
    """Owns an engine's active sequences: adds, cancels, steps, and looks at what each step did."""

    def __init__(
        self,
        engine: Engine,
        *,
        n_slots: int,
        max_tokens_per_step: int = 1,
        max_idle_steps: int = 1000,
        wait: Callable[[], None] | None = None,
    ) -> None:
        """Take over an engine that is loaded and has no sequences.

        Args:
            engine: The engine.
            n_slots: As its EngineInfo says; more are never active at once.
            max_tokens_per_step: 1, or more for an engine that speculates.
            max_idle_steps: Steps without any visible progress after which the engine counts as stuck.
            wait: For an engine that takes messages: called after a step that had nothing to do, returns when it may have.
        """
        self.engine = engine
        self.n_steps = 0
        self.active: dict[int, RecordingSequence] = {}
        self._n_slots = n_slots
        self._max_tokens_per_step = max_tokens_per_step
        self._max_idle_steps = max_idle_steps
        self._wait = wait
        self._n_idle_steps = 0

    def add(self, sequence: RecordingSequence) -> None:
        """Give the engine a sequence; there must be a free slot."""
        if len(self.active) >= self._n_slots:
            raise RuntimeError(f"the test added a sequence to an engine whose {self._n_slots} slots are taken")
        self.active[sequence.id] = sequence
        self.engine.add(sequence)

    def cancel(self, sequence: RecordingSequence) -> None:
        """Cancel a sequence; its slot counts as free from here on."""
        self.engine.cancel(sequence.id)
        self.active.pop(sequence.id, None)
        sequence.mark_cancelled()

    def cancel_all(self) -> None:
        """Leave the engine empty."""
        for sequence in list(self.active.values()):
            self.cancel(sequence)

    def step(self) -> bool:
        """Step once.

        Raises:
            ContractError: The engine broke a rule in this step.
        """
        before = {sequence.id: _progress(sequence) for sequence in self.active.values()}
        has_worked = self.engine.step()
        self.n_steps += 1
        has_moved = False
        for sequence in list(self.active.values()):
            old, new = before[sequence.id], _progress(sequence)
            has_moved = has_moved or old != new
            if sequence.violations:
                raise ContractError(f"step {self.n_steps}: {sequence.violations[0]}")
            if sequence.is_paused and old != new:
                raise ContractError(f"step {self.n_steps} advanced {sequence!r}, which is paused")
            if new[1] - old[1] > self._max_tokens_per_step:
                raise ContractError(
                    f"step {self.n_steps} pushed {new[1] - old[1]} tokens to {sequence!r}; "
                    f"allowed: {self._max_tokens_per_step} (max_tokens_per_step)"
                )
            if sequence.is_over:
                del self.active[sequence.id]
        waiting = [sequence for sequence in self.active.values() if not sequence.is_paused]
        if waiting and not has_worked and self._wait is not None:
            self._wait()
        elif waiting and not has_worked:
            raise ContractError(f"step() gave False (nothing to do) while {waiting[0]!r} is waiting")
        self._n_idle_steps = 0 if has_moved or not waiting else self._n_idle_steps + 1
        if self._n_idle_steps >= self._max_idle_steps:
            raise ContractError(f"{self._n_idle_steps} steps in a row did nothing for {waiting[0]!r}")
        return has_worked

    def step_until(self, condition: Callable[[], bool], *, max_steps: int = 100_000) -> None:
        """Step until something is true.

        Raises:
            ContractError: It did not become true before everything was over, or within `max_steps`.
        """
        for _ in range(max_steps):
            if condition():
                return
            if not any(not sequence.is_paused for sequence in self.active.values()):
                break
            self.step()
        if not condition():
            raise ContractError(f"what the test waits for did not happen; active: {list(self.active.values())}")

    def run(self, sequences: Iterable[RecordingSequence] = (), *, max_steps: int = 100_000) -> None:
        """Run sequences to their ends, as many at once as there are slots; later ones wait for a free one."""
        waiting = list(sequences)
        for _ in range(max_steps):
            while waiting and len(self.active) < self._n_slots:
                self.add(waiting.pop(0))
            if not self.active:
                return
            self.step()
        raise ContractError(f"not over after {max_steps} steps: {list(self.active.values())}")


def drive(engine: Engine, sequences: Iterable[RecordingSequence], *, n_slots: int = 1, max_steps: int = 100_000) -> None:
    """Run sequences to their ends in a loaded engine, `n_slots` at once."""
    Driver(engine, n_slots=n_slots).run(sequences, max_steps=max_steps)


def _progress(sequence: RecordingSequence) -> tuple[object, int, int, object]:
    return sequence.n_cached, len(sequence.token_ids), len(sequence.prefilled_counts), sequence.reason
