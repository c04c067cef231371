"""One run on its way: counted, admitted, recorded, generated, ended. Floor 4.

    asked for ──counts, admission──▶ recorded: queued ──slot──▶ in_progress ──▶ completed, incomplete
        │ refused: nothing is recorded    │                          │
        ▼                                 └────────── cancel, error ─┴────────▶ cancelled, failed
      error

A thread of its own works on it, so that a client who leaves does not take it along: that thread alone reads the generation
and writes the records. Any other may follow its events, cancel it, or wait for it.

INVARIANT: the answer is in the records when the run is over there, and not before: both are written in one transaction.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import Struct, structs

from hostler.context import Fitted, Limits, Turn, fit
from hostler.domain import FinishEvent, FinishReason, GenerateRequest, PrefillEvent, SamplingParams, TextEvent
from hostler.errors import (
    EngineFailed,
    HostlerError,
    InternalError,
    InvalidRequest,
    NotFound,
    QueueFull,
    StorageUnavailable,
    ThreadNotFound,
    UnsupportedParameter,
)
from hostler.library.fields import parameters_with_defaults
from hostler.library.sampling import sampling_params
from hostler.records.ids import new_id
from hostler.records.objects import (
    MAX_MESSAGE_IDS,
    Message,
    NewMessage,
    Run,
    RunError,
    RunStatus,
    RunStep,
    Text,
    TextPart,
    Thread,
)
from hostler.runplan import NewThread, RunPlan, RunRequest

if TYPE_CHECKING:
    from hostler.generation import Generation
    from hostler.records.store import Records
    from hostler.runtime import Runtime

log = logging.getLogger("hostler.runs")

POLL_S = 1.0
"""Longest silence of a generation between two looks; a cancel wakes it at once."""
CANCEL_WAIT_S = 2.0
"""So long a cancel waits for the end that it brings about; past it the answer says `cancelling`."""
RETRIES_S = (0.1, 1.0, 5.0, 15.0, 30.0)
"""Pauses between the attempts to write the end of a run: its answer is worth some patience with a busy or full disk."""


class TextDelta(Struct, frozen=True):
    """New text of the answer."""

    message_id: str
    text: str


class RunEvent(NamedTuple):
    """One of OpenAI's events of a run."""

    name: str
    data: Thread | Run | RunStep | Message | TextDelta


class Order(NamedTuple):
    """Everything a run needs to begin."""

    thread_id: str
    new_thread: NewThread | None
    """It is made together with the run; None: it is there."""
    request: RunRequest
    plan: RunPlan
    model_id: str


class Outcome(NamedTuple):
    """How the generation ended."""

    status: RunStatus
    finish: FinishEvent | None = None
    error: RunError | None = None


class LiveRun:
    """See the module."""

    def __init__(self, runtime: Runtime, order: Order, *, is_followed: bool) -> None:
        """Nothing happens before `work`.

        Args:
            is_followed: Events are kept for `follow`.
        """
        self._runtime = runtime
        self._order = order
        self._is_followed = is_followed
        self._changed = threading.Condition()  # protects the fields below
        self.run: Run | None = None
        """As it is now; None until it is recorded. What is told of it and what the records say may differ by a moment."""
        self._events: list[RunEvent] = []
        self._is_over = False
        self._error: HostlerError | None = None
        """Why nothing, or no end, could be recorded."""
        self._is_ending = False
        """The generation is over: a cancel comes too late."""
        self._generation: Generation | None = None
        # The thread of the run alone:
        self._message: Message | None = None
        """The answer, once it has begun."""
        self._step: RunStep | None = None
        self._pieces: list[str] = []
        self._n_prompt = 0
        self._n_output = 0

    @property
    def thread_id(self) -> str:
        """The thread it belongs to."""
        return self._order.thread_id

    # -- any thread -------------------------------------------------------------------------------------------------

    def wait_recorded(self, timeout_s: float | None = None) -> Run | None:
        """Wait until it is in the records; None when the time is over.

        Raises:
            HostlerError: It was refused.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.run is not None or self._is_over, timeout_s)
            if self.run is None and self._error is not None:
                raise self._error.copy()
            return self.run

    def follow(self, poll_s: float) -> Iterator[list[RunEvent] | None]:
        """Its events from the first on, as they come; None after each `poll_s` seconds of silence.

        Raises:
            HostlerError: After the last one: it was refused, or its end could not be recorded.
        """
        n_told = 0

        def has_news() -> bool:
            return len(self._events) > n_told or self._is_over

        while True:
            with self._changed:
                self._changed.wait_for(has_news, poll_s)
                news, is_over = self._events[n_told:], self._is_over
            n_told += len(news)
            if news:
                yield news
            elif is_over:
                break
            else:
                yield None
        if self._error is not None:
            raise self._error.copy()

    def cancel(self) -> None:
        """Cancel its generation in whatever phase it is; too late for one that has ended."""
        with self._changed:
            if self.run is None or self._is_ending or self.run.status == "cancelling":
                return
            self._tell_run("cancelling", structs.replace(self.run, status="cancelling"))
            generation = self._generation
        if generation is not None:
            generation.cancel()

    def wait_over(self, timeout_s: float) -> bool:
        """Wait for its end."""
        with self._changed:
            return self._changed.wait_for(lambda: self._is_over, timeout_s)

    # -- its own thread ---------------------------------------------------------------------------------------------

    def work(self, on_end: Callable[[LiveRun, HostlerError | None], None]) -> None:
        """Do all of it.

        Args:
            on_end: Called once, before anybody is told that it is over; with the error if its end was not recorded.
        """
        error: HostlerError | None = None
        try:
            generation = self._open()
            outcome = self._generate(generation)
            self._finish(outcome)
        except HostlerError as refusal:
            error = refusal
        except Exception:
            log.exception("a run in %s failed with a bug of hostler", self.thread_id)
            error = InternalError(f"hostler failed on a run in {self.thread_id}; the server's log has the reason")
        on_end(self, error)
        with self._changed:
            self._error = error
            self._is_over = True
            self._changed.notify_all()

    # -- until it is recorded ---------------------------------------------------------------------------------------

    def _open(self) -> Generation:
        """Count, admit and record.

        Raises:
            HostlerError: Nothing was recorded.
        """
        order, runtime = self._order, self._runtime
        request, plan = order.request, order.plan
        stored = runtime.model(order.model_id)
        params = sampling_params(stored.manifest.parameters, plan.parameters, output_format=plan.output_format)
        expected_ctx = stored.ctx_len or Limits.expected_ctx
        limits = Limits(params.max_tokens, request.max_prompt_tokens, request.last_messages, expected_ctx)
        fitted = fit(
            plan.instructions,
            self._turns(),
            limits,
            lambda messages: runtime.count_tokens(order.model_id, messages, settings=plan.settings),
        )
        self._refuse_images(fitted)
        generation = runtime.generate(
            GenerateRequest(
                id=f"chatcmpl-{secrets.token_hex(12)}", model=order.model_id, params=params, messages=fitted.messages
            )
        )
        with self._changed:
            self._generation = generation  # before anybody can know the run and cancel it
        try:
            left_out, n_left_out = self._left_out(fitted)
            parameters = parameters_with_defaults({**stored.manifest.parameters, **plan.parameters})
            self._record(self._new_run(params, parameters, left_out, n_left_out))
        except BaseException:
            generation.close()
            raise
        return generation

    def _turns(self) -> Iterator[Turn]:
        """What the run is asked to answer, the newest first."""
        yield from map(_turn, reversed(self._order.request.messages))
        if self._order.new_thread is None:
            yield from map(_turn, self._records.messages.all(self.thread_id, order="desc"))

    def _refuse_images(self, fitted: Fitted) -> None:
        given = {message.id: index for index, message in enumerate(self._order.request.messages)}
        for turn in fitted.turns:
            if turn.image is not None:
                message = f"messages.{turn.id}"
                if turn.id in given:
                    message = f"{self._order.request.messages_path}[{given[turn.id]}]"
                path = f"{message}.content[{turn.image}]"
                raise UnsupportedParameter(f"{path} is an image, and no model of this release sees images", param=path)

    def _left_out(self, fitted: Fitted) -> tuple[list[str], int]:
        """Ids of the newest messages that are left out, oldest first, and how many are left out in all."""
        if not fitted.has_more:
            return [], 0
        kept = {turn.id for turn in fitted.turns}
        ids = [str(message.id) for message in self._order.request.messages if message.id not in kept]
        count = len(ids)
        if self._order.new_thread is None:
            oldest = fitted.turns[0].id if not ids else None
            given = {message.id for message in self._order.request.messages}
            older, n_older = self._records.messages.older(self.thread_id, None if oldest in given else oldest, MAX_MESSAGE_IDS)
            ids, count = [*older, *ids], count + n_older
        return ids[-MAX_MESSAGE_IDS:], count

    def _new_run(
        self, params: SamplingParams, parameters: dict[str, Any], left_out: list[str], left_out_count: int
    ) -> Run:
        order = self._order
        request, plan = order.request, order.plan
        parameters.pop("stream", None)
        is_auto = request.last_messages is None
        now = int(time.time())
        return Run(
            id=new_id("run"),
            created_at=now,
            created=now,
            thread_id=order.thread_id,
            assistant_id=plan.assistant_id,
            status="queued",
            model=order.model_id,
            instructions=plan.instructions,
            tools=plan.tools,
            metadata=request.metadata,
            temperature=params.temperature,
            top_p=params.top_p,
            max_completion_tokens=request.parameters.get("token_limit"),
            max_prompt_tokens=request.max_prompt_tokens,
            tool_choice=plan.tool_choice,
            parallel_tool_calls=request.parallel_tool_calls,
            response_format=plan.response_format,
            truncation_strategy={"type": "auto" if is_auto else "last_messages", "last_messages": request.last_messages},
            left_out=left_out,
            left_out_count=left_out_count,
            parameters=parameters,
        )

    def _record(self, run: Run) -> None:
        records, order = self._records, self._order
        thread: Thread | None = None
        if order.new_thread is None:
            run = records.runs.create(run, order.request.messages)
        else:
            new = order.new_thread
            thread, run = records.runs.create_with_thread(
                run,
                order.request.messages,
                title=new.title,
                assistants=new.assistants,
                metadata=new.metadata,
                tool_resources=new.tool_resources,
            )
        with self._changed:
            if thread is not None:
                self._tell("thread.created", thread)
            self._tell_run("created", run)
            self._tell_run("queued", run)

    # -- generating -------------------------------------------------------------------------------------------------

    def _generate(self, generation: Generation) -> Outcome:
        try:
            with generation:
                outcome = self._read(generation)
        except HostlerError as error:
            outcome = Outcome("failed", error=run_error(error))
        except Exception:
            log.exception("%s failed with a bug of hostler", generation.id)
            message = f"hostler failed on this run; the server's log has the reason under {generation.id}"
            outcome = Outcome("failed", error=RunError("server_error", message))
        with self._changed:
            self._is_ending = True
        return outcome

    def _read(self, generation: Generation) -> Outcome:
        finish: FinishEvent | None = None
        for event in generation.events(POLL_S):
            if event is None:
                continue
            if isinstance(event, FinishEvent):
                finish = event
            elif isinstance(event, PrefillEvent):
                self._n_prompt = event.n_total
                self._begin()
            else:
                self._begin()
                self._say(event, generation.id)
        if finish is None:
            raise InternalError("The generation ended without an answer")
        if finish.reason is FinishReason.ERROR:
            raise EngineFailed("The engine gave up on this run and did not say why; the worker's log has its output")
        if finish.reason is FinishReason.CANCELLED:
            return Outcome("cancelled", finish)
        self._begin()
        self._begin_message(generation.id)
        return Outcome("completed" if finish.reason is FinishReason.STOP else "incomplete", finish)

    def _begin(self) -> None:
        """It has its slot."""
        with self._changed:
            assert self.run is not None
            if self.run.started_at is not None:
                return
            run = structs.replace(self.run, started_at=int(time.time()))
            if run.status == "cancelling":
                self.run = run
                return
            run = structs.replace(run, status="in_progress")
            self._tell_run("in_progress", run)
        self._note(lambda: self._records.runs.set_status(run.id, "in_progress", started_at=run.started_at))

    def _begin_message(self, generation_id: str) -> None:
        if self._message is not None:
            return
        run = self.run
        assert run is not None
        now = int(time.time())
        message = self._message = Message(
            id=new_id("msg"),
            created_at=now,
            created=now,
            thread_id=run.thread_id,
            role="assistant",
            content=[],
            assistant_id=run.assistant_id,
            run_id=run.id,
            chat_completion_id=generation_id,
            status="in_progress",
        )
        step = self._step = RunStep(
            id=new_id("step"),
            created_at=now,
            created=now,
            run_id=run.id,
            thread_id=run.thread_id,
            assistant_id=run.assistant_id,
            status="in_progress",
            step_details={"type": "message_creation", "message_creation": {"message_id": message.id}},
        )
        with self._changed:
            self._tell("thread.run.step.created", step)
            self._tell("thread.run.step.in_progress", step)
            self._tell("thread.message.created", message)
            self._tell("thread.message.in_progress", message)

    def _say(self, event: TextEvent, generation_id: str) -> None:
        self._n_output += event.n_tokens
        if not event.text:
            return
        self._begin_message(generation_id)
        message, step = self._message, self._step
        assert message is not None
        assert step is not None
        self._pieces.append(event.text)
        with self._changed:
            self._tell("thread.message.delta", TextDelta(message.id, event.text))
        if len(self._pieces) == 1:  # told first and written then: nobody waits for the disk to see the first word
            self._note(lambda: self._records.runs.add_step(step))

    def _note(self, write: Callable[[], object]) -> None:
        """Write how far it is. Its end says all of it again, so a database that is busy just now costs nothing."""
        try:
            write()
        except (StorageUnavailable, NotFound) as error:
            log.warning("how far a run in %s is could not be written: %s", self.thread_id, error.message)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _finish(self, outcome: Outcome) -> None:
        """Write the end, the answer with it, and tell both.

        Raises:
            HostlerError: It could not be written.
        """
        assert self.run is not None
        usage = self._usage(outcome)
        step = None if self._step is None else _ended_step(self._step, outcome, usage)
        run, kept = self._write_end(self.run, outcome, usage, step)
        self._log(run)
        with self._changed:
            self.run = run
            if kept is not None:
                self._tell(f"thread.message.{kept.status}", kept)
            if step is not None:
                self._tell(f"thread.run.step.{step.status}", step)
            self._tell_run(run.status, run)

    def _log(self, run: Run) -> None:
        generation_id = "" if self._generation is None else self._generation.id
        reason = run.status if run.last_error is None else f"{run.status}: {run.last_error.message}"
        log.info(
            "%s %s %d+%d tokens, %s %s",
            generation_id,
            run.model,
            self._n_prompt,
            self._n_output,
            run.id,
            reason,
            extra={
                "generation_id": generation_id,
                "run_id": run.id,
                "thread_id": run.thread_id,
                "model": run.model,
                "prompt_tokens": self._n_prompt,
                "completion_tokens": self._n_output,
                "end_reason": run.status,
            },
        )

    def _usage(self, outcome: Outcome) -> dict[str, Any]:
        finish = outcome.finish
        prompt, completion, cached = self._n_prompt, self._n_output, 0
        if finish is not None:
            usage = finish.usage
            prompt, completion, cached = usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens
            self._n_prompt, self._n_output = prompt, completion
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_token_details": {"cached_tokens": cached},
        }

    def _answer(self, outcome: Outcome) -> NewMessage | None:
        """The message as it is kept; None where there is none: of a run that failed nothing is."""
        message, text = self._message, "".join(self._pieces)
        if message is None or outcome.status == "failed":
            return None
        now = int(time.time())
        reason = {"incomplete": "max_tokens", "cancelled": "run_cancelled"}.get(outcome.status)
        return NewMessage(
            role="assistant",
            content=[TextPart(Text(text))] if text else [],
            id=message.id,
            created_at=message.created_at,
            assistant_id=message.assistant_id,
            run_id=message.run_id,
            chat_completion_id=message.chat_completion_id,
            status="completed" if reason is None else "incomplete",
            completed_at=now if reason is None else None,
            incomplete_at=None if reason is None else now,
            incomplete_details=None if reason is None else {"reason": reason},
        )

    def _write_end(
        self, run: Run, outcome: Outcome, usage: dict[str, Any], step: RunStep | None
    ) -> tuple[Run, Message | None]:
        is_incomplete = outcome.status == "incomplete"
        for pause_s in (*RETRIES_S, None):
            try:
                return self._records.runs.finish(
                    run.id,
                    status=outcome.status,
                    message=self._answer(outcome),
                    step=step,
                    started_at=run.started_at,
                    usage=usage,
                    last_error=outcome.error,
                    incomplete_details={"reason": "max_completion_tokens"} if is_incomplete else None,
                )
            except StorageUnavailable as error:
                if pause_s is None:
                    raise
                log.warning("the end of %s could not be written, once more in %g s: %s", run.id, pause_s, error.message)
                time.sleep(pause_s)  # nobody waits for this thread but who follows the run
            except NotFound as error:
                raise ThreadNotFound(f"The thread {run.thread_id} was deleted while the run worked on it") from error
        raise AssertionError("unreachable")

    # -- inside -----------------------------------------------------------------------------------------------------

    @property
    def _records(self) -> Records:
        return self._runtime.records

    def _tell_run(self, event: str, run: Run) -> None:
        """The run has changed; call under `_changed`."""
        self.run = run
        self._tell(f"thread.run.{event}", run)

    def _tell(self, name: str, data: Thread | Run | RunStep | Message | TextDelta) -> None:
        """Something happened; call under `_changed`."""
        if self._is_followed:
            self._events.append(RunEvent(name, data))
        self._changed.notify_all()


def run_error(error: HostlerError) -> RunError:
    """Why a run failed, in OpenAI's three words."""
    if isinstance(error, QueueFull):
        return RunError("rate_limit_exceeded", error.message)
    if isinstance(error, InvalidRequest):
        return RunError("invalid_prompt", error.message)
    return RunError("server_error", error.message)


def _ended_step(step: RunStep, outcome: Outcome, usage: dict[str, Any]) -> RunStep:
    status = "completed" if outcome.status == "incomplete" else outcome.status
    error = outcome.error
    if error is not None and error.code == "invalid_prompt":  # a step has no such word
        error = RunError("server_error", error.message)
    changes: dict[str, Any] = {f"{status}_at": int(time.time())}
    return structs.replace(step, status=status, last_error=error, usage=usage, **changes)


def _turn(message: Message | NewMessage) -> Turn:
    texts = [part.text.value for part in message.content if isinstance(part, TextPart)]
    image = next((index for index, part in enumerate(message.content) if not isinstance(part, TextPart)), None)
    return Turn(str(message.id), message.role, "\n".join(texts), image)
