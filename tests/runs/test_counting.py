"""Counting a chat's tokens: a start, a place and a stop are what they are for an answer."""

from __future__ import annotations

import threading

import pytest

from hostler.domain import Lifecycle, Message
from hostler.errors import (
    EngineUnavailable,
    HostlerError,
    QueueFull,
)
from hostler.runtime import Runtime
from support.runs import (
    DEADLINE_S,
    FLOOD,
    MakeRuntime,
    new_thread,
    start,
    wait_for_text,
    wait_until,
)

CHAT = (Message("system", "Be brief."), Message("user", "Hello"))


def test_counting_starts_a_model_once_for_all_who_ask(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_s": 0.3}}')
    sizes: list[tuple[int, int]] = []

    def count() -> None:
        size = runtime.count_tokens("parrot", CHAT)
        sizes.append((size.n_tokens, size.n_ctx))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)

    assert sizes == [(len("Be brief.Hello") + 2 + 2 + 1, runtime.model("parrot").ctx_len)] * 4
    assert runtime.budget.n_held == 0
    assert runtime.model("parrot").idle_s is not None


def test_counting_starts_no_model_where_autostart_is_off(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(autostart=False)

    with pytest.raises(EngineUnavailable, match="autostart"):
        runtime.count_tokens("parrot", CHAT)
    assert runtime.model("parrot").lifecycle is Lifecycle.DOWNLOADED


def test_counting_is_bounded_by_max_requests(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime(max_requests=1)
    with runtime.hold("test"), pytest.raises(QueueFull, match="this count"):
        runtime.count_tokens("parrot", CHAT)


def test_counting_waits_for_no_slot(runtime: Runtime) -> None:
    runtime.start_model("parrot", {"n_parallel": 1})
    live = start(runtime, new_thread(runtime, FLOOD))
    wait_for_text(runtime)

    assert runtime.count_tokens("parrot", CHAT).n_tokens > 0

    assert live.run is not None
    runtime.runs.cancel(live.thread_id, live.run.id)


def test_a_stop_ends_a_count_that_waits_for_its_model(make_runtime: MakeRuntime) -> None:
    runtime = make_runtime('{"manners": {"load_hang": true}}')
    errors: list[HostlerError] = []

    def count() -> None:
        try:
            runtime.count_tokens("parrot", CHAT)
        except HostlerError as error:
            errors.append(error)

    thread = threading.Thread(target=count)
    thread.start()
    wait_until(lambda: runtime.model("parrot").pid is not None, "the worker")
    runtime.stop_model("parrot")
    thread.join(DEADLINE_S)

    assert len(errors) == 1
    assert runtime.budget.n_held == 0
