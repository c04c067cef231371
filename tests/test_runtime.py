"""The runtime over real worker processes, with echo, the engine without weights and with bad manners on request."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hostler.config import Settings, load_settings
from hostler.domain import (
    EmbedRequest,
    EmbedResult,
    FinishEvent,
    FinishReason,
    GenerateRequest,
    GenerationEvent,
    Lifecycle,
    Message,
    SamplingParams,
    TextEvent,
)
from hostler.errors import (
    EmbeddingsDisabled,
    EngineUnavailable,
    HostlerError,
    InsufficientMemory,
    ModelLoadFailed,
    ModelNotDownloaded,
    ModelNotFound,
    QueueFull,
    RequestCancelled,
    RequestNotFound,
    StartCancelled,
)
from hostler.plugins import get_plugins
from hostler.runtime import Runtime
from hostler.views import ModelChanges
from support import workers

DEADLINE_S = 60.0
POLL_S = 0.05
_numbers = itertools.count()
wait_until = functools.partial(workers.wait_until, deadline_s=DEADLINE_S)

MakeRuntime = Callable[..., Runtime]


@pytest.fixture
def make_runtime(tmp_path: Path) -> Iterator[MakeRuntime]:
    """Makes runtimes on one home with echo models in it; each is closed at the end, busy or not."""
    made: list[Runtime] = []

    def make(*models: str, **settings: object) -> Runtime:
        base: Settings = load_settings(tmp_path / "home", environ={})
        runtime = Runtime(base.replace(stop_timeout_s=2, **settings), get_plugins())
        made.append(runtime)
        for text in models or ("{}",):
            add_model(runtime, tmp_path, f"parrot{len(runtime.models())}", text)
        return runtime

    yield make
    for runtime in made:
        runtime.close(0)


def add_model(runtime: Runtime, folder: Path, name: str, text: str = "{}") -> None:
    path = folder / f"{name}.echo"
    path.write_text(text)
    runtime.import_model(str(path))


def chat(text: str, model: str = "parrot0", **fields: object) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=int(str(fields.pop("max_tokens", 100))))
    return GenerateRequest(f"r{next(_numbers)}", model, params, (Message("user", text),), **fields)  # type: ignore[arg-type]


def answer(runtime: Runtime, request: GenerateRequest) -> tuple[str, FinishReason]:
    """Read one answer to its end."""
    text, reason = "", None
    with runtime.generate(request) as generation:
        for event in heard(generation.events(POLL_S)):
            if isinstance(event, TextEvent):
                text += event.text
            elif isinstance(event, FinishEvent):
                reason = event.reason
    assert reason is not None
    return text, reason


def heard(events: Iterator[GenerationEvent | None]) -> Iterator[GenerationEvent]:
    """Events without the silence between them, of which there may not be too much."""
    deadline = time.monotonic() + DEADLINE_S
    for event in events:
        if event is not None:
            yield event
            deadline = time.monotonic() + DEADLINE_S
        assert time.monotonic() < deadline, "no event came in time"


def first_text(events: Iterator[GenerationEvent | None]) -> TextEvent:
    return next(event for event in heard(events) if isinstance(event, TextEvent))


class Background:
    """A call on a thread of its own, and what became of it."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], object]) -> None:
        try:
            self.result = call()
        except BaseException as error:  # noqa: BLE001 - handed to the test
            self.error = error

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> Background:
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()
        return self


# -- lifecycle ------------------------------------------------------------------------------------------------------


def test_a_model_starts_answers_and_stops(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    assert runtime.model("parrot0").lifecycle is Lifecycle.DOWNLOADED

    started = runtime.start_model("parrot0")
    assert started.lifecycle is Lifecycle.RUNNING
    assert started.pid is not None
    assert answer(runtime, chat("Hello there.")) == ("Hello there.", FinishReason.STOP)

    stopped = runtime.stop_model("parrot0")
    assert stopped.lifecycle is Lifecycle.STOPPED
    assert stopped.pid is None


def test_a_request_starts_its_model_and_many_at_once_start_it_only_once(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.3}}')
    calls = [Background(lambda number=number: answer(runtime, chat(f"number {number}"))) for number in range(8)]  # type: ignore[misc]

    texts = [call.join().result for call in calls]

    assert texts == [(f"number {number}", FinishReason.STOP) for number in range(8)]
    log = (runtime.settings.home / "logs" / "parrot0.log").read_text() if runtime.settings.home else ""
    assert runtime.model("parrot0").pid is not None
    assert log.count("Traceback") == 0


def test_start_is_idempotent_and_other_settings_start_the_model_again(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    first = runtime.start_model("parrot0", {"ctx_len": 512})
    assert runtime.start_model("parrot0").pid == first.pid
    assert runtime.start_model("parrot0", {"ctx_len": 512}).pid == first.pid

    other = runtime.start_model("parrot0", {"ctx_len": "1024"})

    assert other.pid != first.pid
    assert other.ctx_len == 1024


def test_a_stop_cancels_a_start_and_everyone_who_waits_for_it(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_hang": true}}')
    start = Background(lambda: runtime.start_model("parrot0"))
    request = Background(lambda: answer(runtime, chat("Hello")))
    wait_until(lambda: runtime.model("parrot0").pid is not None and len(runtime.requests()) == 1)

    stopped = runtime.stop_model("parrot0")

    assert stopped.lifecycle is Lifecycle.DOWNLOADED
    assert isinstance(start.join().error, StartCancelled)
    assert isinstance(request.join().error, HostlerError)


def test_a_start_while_stopping_waits_and_then_starts(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"close_hang": true}}')
    first = runtime.start_model("parrot0")
    stop = Background(lambda: runtime.stop_model("parrot0"))
    wait_until(lambda: runtime.model("parrot0").lifecycle is Lifecycle.STOPPING)

    second = runtime.start_model("parrot0")

    stop.join()
    assert second.lifecycle is Lifecycle.RUNNING
    assert second.pid != first.pid


def test_a_refused_load_tells_why_and_leaves_the_model_where_it_was(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_refuse": "the moon is wrong"}}')

    with pytest.raises(ModelLoadFailed, match="the moon is wrong"):
        runtime.start_model("parrot0")

    view = runtime.model("parrot0")
    assert view.lifecycle is Lifecycle.DOWNLOADED
    assert "the moon is wrong" in str(view.last_error)
    assert runtime.ledger.bytes_of("parrot0") == 0


def test_a_request_for_a_model_that_refuses_to_load_gets_the_reason(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_refuse": "the moon is wrong"}}')

    with pytest.raises(ModelLoadFailed, match="the moon is wrong"):
        answer(runtime, chat("Hello"))

    assert runtime.requests() == []
    assert runtime.budget.n_held == 0


def test_deleting_a_running_model_stops_it_first(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.start_model("parrot0")

    assert runtime.delete_model("parrot0") == "parrot0"

    with pytest.raises(ModelNotFound):
        runtime.model("parrot0")


def test_unknown_and_not_downloaded_models_are_told_apart(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()

    with pytest.raises(ModelNotFound, match="The model nope does not exist"):
        runtime.generate(chat("Hello", model="nope"))
    with pytest.raises(ModelNotDownloaded, match="hostler pull"):
        runtime.generate(chat("Hello", model="smollm2"))


def test_autostart_off_refuses_a_request_for_a_model_that_does_not_run(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(autostart=False)

    with pytest.raises(EngineUnavailable, match="autostart"):
        runtime.generate(chat("Hello"))
    runtime.start_model("parrot0")

    assert answer(runtime, chat("Hello"))[0] == "Hello"


# -- memory ---------------------------------------------------------------------------------------------------------


def test_a_model_that_cannot_fit_is_refused_before_a_worker_is_spawned(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"weights_bytes": 4000000000}', memory_budget_bytes=1_000_000_000)

    with pytest.raises(InsufficientMemory) as caught:
        runtime.start_model("parrot0")

    assert caught.value.needed_bytes > caught.value.available_bytes
    assert runtime.model("parrot0").pid is None


def test_the_least_recently_used_idle_model_makes_room(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime("{}", "{}", "{}", max_loaded_models=2)
    runtime.start_model("parrot0")
    runtime.start_model("parrot1")
    answer(runtime, chat("newer", model="parrot0"))

    runtime.start_model("parrot2")

    running = [view.manifest.id for view in runtime.models() if view.lifecycle is Lifecycle.RUNNING]
    assert running == ["parrot0", "parrot2"]


def test_a_start_waits_for_a_busy_model_instead_of_stopping_it(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime("{}", "{}", max_loaded_models=1)
    with runtime.generate(chat("[[echo: flood delay_s=0.01]] x", max_tokens=100_000)) as generation:
        first_text(generation.events(POLL_S))
        start = Background(lambda: runtime.start_model("parrot1"))
        wait_until(lambda: runtime.model("parrot1").lifecycle is Lifecycle.STARTING)
        assert runtime.model("parrot0").lifecycle is Lifecycle.RUNNING
        assert start.is_running

    assert start.join().error is None
    assert runtime.model("parrot1").lifecycle is Lifecycle.RUNNING
    assert runtime.model("parrot0").lifecycle is Lifecycle.STOPPED


def test_an_idle_model_is_stopped_after_keep_alive(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(keep_alive_s=0.2)
    assert answer(runtime, chat("Hello"))[0] == "Hello"

    wait_until(lambda: runtime.model("parrot0").lifecycle is Lifecycle.STOPPED)


# -- queue, cancel --------------------------------------------------------------------------------------------------


def test_requests_beyond_slots_and_queue_are_refused_and_those_within_are_served(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"delay_s": 0.02}}', queue_len=2)
    runtime.start_model("parrot0", {"n_parallel": 1})
    calls = [Background(lambda: answer(runtime, chat("abc"))) for _ in range(3)]
    wait_until(lambda: len(runtime.requests()) == 3 or not any(call.is_running for call in calls))

    with pytest.raises(QueueFull) as caught:
        runtime.generate(chat("one too many"))

    assert caught.value.retry_after_s
    assert [call.join().result for call in calls] == [("abc", FinishReason.STOP)] * 3
    assert runtime.budget.n_held == 0


def test_max_requests_bounds_generations_over_all_models(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime("{}", "{}", max_requests=1)
    with runtime.generate(chat("Hello")), pytest.raises(QueueFull, match="max_requests"):
        runtime.generate(chat("Hello", model="parrot1"))

    assert answer(runtime, chat("Hello", model="parrot1"))[0] == "Hello"


def test_a_running_request_can_be_cancelled_by_its_id(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    request = chat("[[echo: flood delay_s=0.005]] x", max_tokens=100_000)
    with runtime.generate(request) as generation:
        events = generation.events(POLL_S)
        first_text(events)
        assert [(view.id, view.state) for view in runtime.requests()] == [(request.id, "decode")]

        runtime.cancel_request(request.id)

        last = list(heard(events))[-1]
        assert isinstance(last, FinishEvent)
        assert last.reason is FinishReason.CANCELLED
    with pytest.raises(RequestNotFound):
        runtime.cancel_request(request.id)


def test_a_waiting_request_can_be_cancelled_and_leaves_its_place(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(queue_len=64)
    runtime.start_model("parrot0", {"n_parallel": 1})
    floods = [chat("[[echo: flood delay_s=0.005]] x", max_tokens=100_000) for _ in range(12)]
    flooding = [Background(lambda request=request: answer(runtime, request)) for request in floods]  # type: ignore[misc]
    wait_until(lambda: len(runtime.requests()) == 12)
    waiting = chat("never")
    call = Background(lambda: answer(runtime, waiting))
    wait_until(lambda: len(runtime.requests()) == 13)

    runtime.cancel_request(waiting.id)

    assert call.join().result == ("", FinishReason.CANCELLED)
    for request in floods:
        runtime.cancel_request(request.id)
    assert {call.join().result[1] for call in flooding} == {FinishReason.CANCELLED}  # type: ignore[index]
    assert answer(runtime, chat("free again"))[0] == "free again"


def test_leaving_a_generation_early_frees_its_slot(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(queue_len=0)
    runtime.start_model("parrot0", {"n_parallel": 1})
    with runtime.generate(chat("[[echo: flood delay_s=0.005]] x", max_tokens=100_000)) as generation:
        first_text(generation.events(POLL_S))

    wait_until(lambda: runtime.model("parrot0").n_active == 0)
    assert answer(runtime, chat("next"))[0] == "next"


def test_several_answers_of_one_request_come_with_their_index(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    texts = dict.fromkeys(range(8), "")
    with runtime.generate(chat("same", n=8)) as generation:
        for event in heard(generation.events(POLL_S)):
            if isinstance(event, TextEvent):
                texts[event.index] += event.text

    assert texts == dict.fromkeys(range(8), "same")


# -- crashes --------------------------------------------------------------------------------------------------------


def test_a_crash_costs_only_the_streams_of_its_model_and_the_next_request_works(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime("{}", "{}")
    first = runtime.start_model("parrot0")
    with runtime.generate(chat("[[echo: flood delay_s=0.005]] x", model="parrot1", max_tokens=100_000)) as other:
        other_events = other.events(POLL_S)
        first_text(other_events)

        with pytest.raises(EngineUnavailable, match="SIGSEGV") as caught:
            answer(runtime, chat("[[echo: die=SIGSEGV at=3]] Hello"))

        assert caught.value.retry_after_s is not None
        assert answer(runtime, chat("Hello again")) == ("Hello again", FinishReason.STOP)
        assert runtime.model("parrot0").pid != first.pid
        first_text(other_events)


def test_a_request_that_arrives_while_the_worker_restarts_waits_for_it(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.5}}')
    runtime.start_model("parrot0")
    with pytest.raises(EngineUnavailable):
        answer(runtime, chat("[[echo: exit=7]] Hello"))

    assert answer(runtime, chat("patience")) == ("patience", FinishReason.STOP)


def test_a_worker_that_keeps_dying_is_left_alone_for_a_while_and_the_registry_says_why(
    make_runtime: MakeRuntime,
) -> None:
    runtime = make_runtime()
    runtime.start_model("parrot0")

    def crash() -> bool:
        with pytest.raises(EngineUnavailable) as caught:
            answer(runtime, chat("[[echo: exit=7]] Hello"))
        return "keeps dying" in caught.value.message and caught.value.retry_after_s is not None

    wait_until(crash)

    assert "7" in str(runtime.model("parrot0").last_error)
    assert runtime.stop_model("parrot0").lifecycle is Lifecycle.STOPPED


def test_close_stops_every_worker_and_ends_what_runs(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime("{}", "{}")
    runtime.start_model("parrot1")
    call = Background(lambda: answer(runtime, chat("[[echo: flood delay_s=0.005]] x", max_tokens=1_000_000)))
    wait_until(lambda: any(view.state == "decode" for view in runtime.requests()))

    runtime.close(0.1)

    assert isinstance(call.join().error, HostlerError) or call.result[1] is FinishReason.CANCELLED  # type: ignore[index]
    assert all(view.pid is None for view in runtime.models())
    assert not runtime.is_ready


# -- embeddings -----------------------------------------------------------------------------------------------------


def embed(runtime: Runtime, *inputs: str, model: str = "parrot0") -> EmbedResult:
    with runtime.embed(EmbedRequest(f"r{next(_numbers)}", model, inputs)) as embedding:
        deadline = time.monotonic() + DEADLINE_S
        for _ in embedding.progress(POLL_S):
            assert time.monotonic() < deadline, "no vectors came in time"
        return embedding.result


def is_embedding(runtime: Runtime) -> bool:
    return any(view.state == "embed" for view in runtime.requests())


def test_embeddings_start_their_model_and_give_everything_back(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()

    result = embed(runtime, "ab", "cde")

    assert (len(result.vectors), result.n_tokens) == (2, 5)
    assert runtime.model("parrot0").lifecycle is Lifecycle.RUNNING
    assert runtime.budget.n_held == 0
    assert runtime.requests() == []
    assert runtime.model("parrot0").n_active == 0
    assert runtime.model("parrot0").idle_s is not None


def test_many_embeddings_and_answers_at_once_share_one_start(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.2}}')

    calls = [Background(lambda: embed(runtime, "ab").n_tokens) for _ in range(8)]
    calls += [Background(lambda: answer(runtime, chat("Hello"))[0]) for _ in range(4)]

    assert [call.join().result for call in calls] == [2] * 8 + ["Hello"] * 4
    assert len(worker_pids()) == 1


def test_embeddings_wait_in_the_queue_and_are_refused_when_it_is_full(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.5}}', queue_len=0, max_requests=6)
    waiting = [runtime.embed(EmbedRequest(f"r{next(_numbers)}", "parrot0", ("x",))) for _ in range(4)]

    with pytest.raises(QueueFull, match="queue_len 0"):
        runtime.embed(EmbedRequest("fifth", "parrot0", ("x",)))

    assert {view.state for view in runtime.requests()} == {"queued"}
    for embedding in waiting:
        for _ in embedding.progress(POLL_S):
            pass
        embedding.close()
    assert runtime.budget.n_held == 0


def test_embeddings_hold_a_place_of_max_requests(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_requests=1)

    with runtime.embed(EmbedRequest("one", "parrot0", ("x",))), pytest.raises(QueueFull, match="max_requests"):
        runtime.embed(EmbedRequest("two", "parrot0", ("x",)))

    assert embed(runtime, "x").n_tokens == 1


def test_embeddings_are_cancelled_in_the_queue_and_at_work(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.5}}')
    for state in ("queued", "embed"):
        call = Background(lambda: embed(runtime, *["[[echo: delay_s=0.05]]"] * 2000))
        wait_until(lambda state=state: any(view.state == state for view in runtime.requests()))  # type: ignore[misc]

        runtime.cancel_request(runtime.requests()[0].id)

        assert isinstance(call.join().error, RequestCancelled)
        assert runtime.requests() == []
        runtime.start_model("parrot0")


def test_a_stop_ends_embeddings_with_its_own_error(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    call = Background(lambda: embed(runtime, *["[[echo: delay_s=0.05]]"] * 2000))
    wait_until(lambda: is_embedding(runtime))

    runtime.stop_model("parrot0")

    error = call.join().error
    assert isinstance(error, EngineUnavailable)
    assert "was stopped" in error.message
    assert runtime.model("parrot0").lifecycle is Lifecycle.STOPPED


def test_closing_waits_for_embeddings_that_are_under_way(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    call = Background(lambda: embed(runtime, *["[[echo: delay_s=0.05]]"] * 10))
    wait_until(lambda: is_embedding(runtime))

    runtime.close(DEADLINE_S)

    assert call.join().error is None
    with pytest.raises(EngineUnavailable, match="is stopping"):
        embed(runtime, "x")


def test_a_model_set_not_to_embed_is_not_even_started_for_it(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.update_model("parrot0", ModelChanges(settings={"embedding": False}))

    with pytest.raises(EmbeddingsDisabled, match="embedding: false"):
        embed(runtime, "x")

    assert runtime.model("parrot0").lifecycle is Lifecycle.DOWNLOADED


def test_the_setting_of_the_run_decides_whether_a_running_model_embeds(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.start_model("parrot0", {"embedding": False})

    with pytest.raises(EmbeddingsDisabled, match="embedding: false"):
        embed(runtime, "x")

    runtime.start_model("parrot0", {"embedding": True})
    assert embed(runtime, "x").n_tokens == 1


def test_without_autostart_embeddings_of_a_model_at_rest_are_refused(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(autostart=False)

    with pytest.raises(EngineUnavailable, match="autostart is off"):
        embed(runtime, "x")


# -- several things at once -----------------------------------------------------------------------------------------


def worker_pids() -> set[int]:
    """Worker processes that live, whether a runtime still knows them or not. No other test file's fixture leaves any."""
    import psutil

    children = psutil.Process().children()  # direct ones: a server that tests share is a process, and has its own
    return {child.pid for child in children if "hostler.worker.child" in " ".join(child.cmdline())}


def crash_until_it_backs_off(runtime: Runtime) -> None:
    def crash() -> bool:
        with pytest.raises(EngineUnavailable) as caught:
            answer(runtime, chat("[[echo: exit=7]] Hello"))
        return "keeps dying" in caught.value.message

    wait_until(crash)


def test_a_start_in_a_back_off_begins_anew_with_one_worker(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    runtime.start_model("parrot0")
    crash_until_it_backs_off(runtime)

    view = runtime.start_model("parrot0")

    assert worker_pids() == {view.pid}
    assert answer(runtime, chat("Hello"))[0] == "Hello"
    runtime.stop_model("parrot0")
    assert worker_pids() == set()


def test_a_request_in_the_restart_after_a_back_off_joins_it(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.3}}')
    runtime.start_model("parrot0")
    crash_until_it_backs_off(runtime)
    hosted = runtime._hosted["parrot0"]
    wait_until(lambda: hosted.worker is not None and hosted.worker.state == "starting")

    assert answer(runtime, chat("Hello"))[0] == "Hello"

    assert worker_pids() == {runtime.model("parrot0").pid}


@pytest.mark.parametrize("end", ["stop", "delete"])
def test_a_stop_or_delete_behind_a_stop_cancels_the_start_that_waits_between_them(
    make_runtime: MakeRuntime, end: str
) -> None:
    runtime = make_runtime('{"manners": {"close_hang": true}}')
    runtime.start_model("parrot0")
    first = Background(lambda: runtime.stop_model("parrot0"))
    wait_until(lambda: runtime.model("parrot0").lifecycle is Lifecycle.STOPPING)
    start = Background(lambda: runtime.start_model("parrot0"))
    wait_until(lambda: runtime._hosted["parrot0"].attempt.is_open)  # type: ignore[union-attr]

    runtime.stop_model("parrot0") if end == "stop" else runtime.delete_model("parrot0")

    first.join()
    assert isinstance(start.join().error, StartCancelled)
    assert worker_pids() == set()


def test_two_starts_at_once_keep_max_loaded_models(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime("{}", "{}", max_loaded_models=1)
    starts = [Background(lambda name=name: runtime.start_model(name)) for name in ("parrot0", "parrot1")]  # type: ignore[misc]

    assert [start.join().error for start in starts] == [None, None]

    assert len(worker_pids()) == 1


def test_a_start_with_other_settings_than_the_one_going_on_gets_its_own(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.3}}')
    first = Background(lambda: runtime.start_model("parrot0", {"ctx_len": 512}))
    wait_until(lambda: runtime.model("parrot0").lifecycle is Lifecycle.STARTING)

    second = runtime.start_model("parrot0", {"ctx_len": 1024})

    assert second.ctx_len == 1024
    first.join()
    assert len(worker_pids()) == 1


def test_a_stop_ends_running_requests_with_its_own_error_and_starts_nothing_again(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime()
    call = Background(lambda: answer(runtime, chat("[[echo: flood delay_s=0.005]] x", max_tokens=1_000_000)))
    wait_until(lambda: any(view.state == "decode" for view in runtime.requests()))

    runtime.stop_model("parrot0")

    assert isinstance(call.join().error, EngineUnavailable)
    assert runtime.model("parrot0").lifecycle is Lifecycle.STOPPED


def test_a_model_that_can_never_fit_unloads_nobody(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime("{}", '{"weights_bytes": 4000000000}', memory_budget_bytes=1_000_000_000)
    runtime.start_model("parrot0")

    with pytest.raises(InsufficientMemory):
        runtime.start_model("parrot1")

    assert runtime.model("parrot0").lifecycle is Lifecycle.RUNNING
