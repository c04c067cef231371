"""Host queue, worker's line and engine's turns together, driven through thousands of orders of what may happen.

The engine is scripted: it has costs instead of a model, and a clock that its steps turn. Every layer above it is the real
one: AdmissionQueue, Line, Pace, share_out. Asked is what is promised: everyone finishes, no step takes more prompt tokens
than it may, nobody waits for more than the bounds in turns.py and batching.py, priorities count.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler.batching import AGING_TOKENS, Pace, Turn, share_out
from hostler.domain import Priority
from hostler.scheduler import AdmissionQueue, Ticket
from hostler.turns import OVERTAKEN_A_RANK, Line

N_SLOTS = 4
N_RINGS = 12
N_BATCH = 256
PREFILL_S = 0.002
DECODE_S = 0.005


class Run(Turn):
    """A sequence in the engine."""

    def __init__(self, request: Request, rank: int, others: list[Run]) -> None:
        super().__init__(rank)
        self.request = request
        self.n_prompt = request.n_prompt
        self.n_done = 0
        self.n_output = 0
        self.n_slowed = 0
        """Prompt tokens of others while its own waited and it was not paused."""
        self.n_before = sum(other.n_missing() for other in others)
        """What the others missed when it came, or came back from a pause."""

    def n_missing(self) -> int:
        return self.n_prompt - self.n_done

    @property
    def bound(self) -> int:
        return self.n_before + self.priority * AGING_TOKENS + N_SLOTS * self.n_prompt + N_BATCH


@dataclass(eq=False)
class Request:
    """One of the client's."""

    number: int
    priority: Priority
    n_prompt: int
    n_output: int
    ticket: Ticket | None = None
    run: Run | None = None
    is_in_line: bool = False
    is_paused: bool = False
    is_cancelled: bool = False
    is_over: bool = False
    n_overtaken: int = 0


@dataclass
class Model:
    """One model's way from the queue to the engine, in one thread."""

    queue: AdmissionQueue = field(default_factory=lambda: AdmissionQueue(N_SLOTS, 10_000))
    line: Line[Request] = field(default_factory=Line)
    pace: Pace = field(default_factory=lambda: Pace(N_BATCH, N_SLOTS))
    runs: list[Run] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    n_submitted: int = 0

    def __post_init__(self) -> None:
        self.queue.open(N_SLOTS, N_RINGS)
        self.pace.learn(0, 100, 100 * PREFILL_S)
        self.pace.learn(1, 0, DECODE_S)

    def submit(self, priority: Priority, n_prompt: int, n_output: int) -> None:
        self.n_submitted += 1
        request = Request(self.n_submitted, priority, n_prompt, n_output)
        request.ticket = self.queue.enter(1, priority)
        self.requests.append(request)

    def cancel(self, request: Request) -> None:
        assert request.ticket is not None
        request.is_cancelled = True
        if not request.ticket.is_admitted:
            request.ticket.cancel()
            request.is_over = True
        elif request.is_in_line:
            self.line.remove(request)
            self._close(request)
        elif request.run is not None:
            self.runs.remove(request.run)
            self._close(request)

    def pause(self, request: Request, *, is_paused: bool) -> None:
        if request.run is not None and request.is_paused and not is_paused:
            # While it was paused it did not wait, others did: those are before it now.
            request.run.n_before += sum(run.n_missing() for run in self.runs if run is not request.run)
        request.is_paused = is_paused

    def turn(self) -> bool:
        """One turn of the worker's loop; False: there was nothing to do."""
        for request in self.requests:
            ticket = request.ticket
            if ticket is not None and ticket.is_admitted and not (request.is_in_line or request.run or request.is_over):
                request.is_in_line = True
                self.line.put(request, request.priority.rank, request.number)
        while len(self.line) and len(self.runs) < N_SLOTS:
            self._give_slot()
        return self._step()

    def _give_slot(self) -> None:
        standing = list(self.line)
        request = self.line.take()
        for other in standing:
            if other.number < request.number:
                other.n_overtaken += 1
                assert other.n_overtaken <= other.priority.rank * OVERTAKEN_A_RANK, "overtaken more often than promised"
        best = min(other.priority.rank for other in standing)
        assert request.priority.rank == best or request.n_overtaken >= OVERTAKEN_A_RANK, "a lower priority went first"
        request.is_in_line = False
        request.run = Run(request, request.priority.rank, self.runs)
        self.runs.append(request.run)

    def _step(self) -> bool:
        decoding = [run for run in self.runs if not run.n_missing() and not run.request.is_paused]
        waiting = [run for run in self.runs if run.n_missing() and not run.request.is_paused]
        chunks: list[tuple[Run, int]] = []
        if waiting:
            seconds, is_alone = self.pace.room_s(waiting, decoding)
            n_tokens = self.pace.tokens_in(seconds, is_alone=is_alone)
            assert 1 <= n_tokens <= N_BATCH
            chunks = share_out(waiting, n_tokens, lambda _: True)
            self._check(waiting, chunks, n_tokens)
        n_prefilled = sum(n for _, n in chunks)
        self.pace.learn(len(decoding), n_prefilled, len(decoding) * DECODE_S + n_prefilled * PREFILL_S)
        for run, n in chunks:
            run.n_done += n
        for run in waiting:
            run.n_slowed += n_prefilled - sum(n for one, n in chunks if one is run)
            assert run.n_slowed <= run.bound, f"a prompt of {run.n_prompt} tokens has waited for {run.n_slowed} of others"
        for run in decoding:
            run.n_output += 1
            if run.n_output >= run.request.n_output:
                self.runs.remove(run)
                self._close(run.request)
        return bool(decoding or chunks)

    def _check(self, waiting: list[Run], chunks: list[tuple[Run, int]], n_tokens: int) -> None:
        assert chunks, "prompts wait and none is evaluated"
        assert len({id(run) for run, _ in chunks}) == len(chunks)
        n_missing = sum(run.n_missing() for run in waiting)
        assert sum(n for _, n in chunks) == min(n_tokens, n_missing), "more or less than the step may take"
        assert all(1 <= n <= run.n_missing() for run, n in chunks)
        best = min(run.priority for run in waiting)
        first = chunks[0][0]
        assert first.priority == best or first.n_waited >= AGING_TOKENS // 2, "a lower priority was evaluated first"

    def _close(self, request: Request) -> None:
        request.is_over = True
        assert request.ticket is not None
        request.ticket.release()


EVENT = st.one_of(
    st.tuples(st.just("submit"), st.sampled_from(list(Priority)), st.integers(1, 3000), st.integers(1, 20)),
    st.tuples(st.just("submit"), st.sampled_from(list(Priority)), st.integers(1, 60), st.integers(1, 5)),
    st.tuples(st.sampled_from(["cancel", "pause", "resume"]), st.integers(0, 1000)),
    st.tuples(st.just("turn"), st.integers(1, 6)),
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENT, max_size=120))
def test_no_order_of_events_starves_anybody_or_overfills_a_step(events: list[tuple]) -> None:
    model = Model()
    for event in events:
        if event[0] == "submit":
            model.submit(*event[1:])
        elif event[0] == "turn":
            for _ in range(event[1]):
                model.turn()
        elif model.requests:
            request = model.requests[event[1] % len(model.requests)]
            if not request.is_over:
                if event[0] == "cancel":
                    model.cancel(request)
                else:
                    model.pause(request, is_paused=event[0] == "pause")
    for request in model.requests:
        model.pause(request, is_paused=False)
    while model.turn():
        pass

    assert all(request.is_over for request in model.requests)
    assert model.queue.n_in_flight == 0
    assert not model.runs


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 4000),
    st.sampled_from([Priority.NORMAL, Priority.BATCH]),
    st.lists(st.integers(1, 400), min_size=1, max_size=20),
)
def test_a_flood_of_interactive_requests_leaves_something_to_everybody(
    n_prompt: int, priority: Priority, flood: list[int]
) -> None:
    model = Model()
    model.submit(priority, n_prompt, 3)
    patient = model.requests[0]
    for number in range(100_000):
        while model.queue.n_in_flight < N_RINGS:
            model.submit(Priority.INTERACTIVE, flood[number % len(flood)], 1)
        model.turn()
        if patient.is_over:
            return
        model.requests = [patient, *(one for one in model.requests[1:] if not one.is_over)]

    raise AssertionError("the patient one never had its turn")
