"""The desk where forms become constraints: in its own thread, once for equal forms, and not for ever."""

from __future__ import annotations

import queue
import threading
from typing import Any

import pytest

from hostler.domain import FormatKind, OutputFormat, SamplingParams
from hostler.engine import TokenTable
from hostler.errors import EngineUnavailable, HostlerError, UnsupportedParameter
from hostler.guidance import Guide, TokenConstraint
from hostler.text import StopStrings
from hostler.worker.grammars import MAX_KEPT, MAX_STUCK, GrammarDesk
from hostler.worker.preparation import Prepared

WAIT_S = 20.0


class Engine:
    """Its tokens are bytes."""

    def __init__(self) -> None:
        self.n_asked = 0

    def token_table(self) -> TokenTable:
        self.n_asked += 1
        return TokenTable([*(bytes([byte]) for byte in range(256)), b""], (256,))


class Rig:
    def __init__(self, timeout_s: float = WAIT_S) -> None:
        self.engine = Engine()
        self.done: queue.Queue[Prepared | tuple[int, HostlerError]] = queue.Queue()
        self.desk = GrammarDesk(
            self.engine,  # type: ignore[arg-type]
            on_ready=self.done.put,
            on_failed=lambda sequence_id, error: self.done.put((sequence_id, error)),
            timeout_s=timeout_s,
        )

    def put(self, sequence_id: int, source: str, kind: FormatKind = FormatKind.REGEX) -> None:
        params = SamplingParams(output_format=OutputFormat(kind, source, "guided_regex"))
        self.desk.put(Prepared(sequence_id, [1], params, StopStrings(()), True))

    def next(self) -> Any:
        return self.done.get(timeout=WAIT_S)


class Slow:
    """Guide.compile, standing still for as long as a test likes where the form says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go = threading.Event()
        self.n_compiled = 0
        compile_form = Guide.compile

        def slow(guide: Guide, form: OutputFormat) -> TokenConstraint:
            self.n_compiled += 1
            if form.source.startswith("slow"):
                assert self.may_go.wait(WAIT_S)
            return compile_form(guide, form)

        monkeypatch.setattr(Guide, "compile", slow)


def test_a_request_comes_back_with_its_constraint() -> None:
    rig = Rig()

    rig.put(7, "ab")
    prepared = rig.next()

    assert prepared.sequence_id == 7
    assert prepared.constraint.allows(ord("a"))
    assert prepared.constraint.param == "guided_regex"


def test_a_form_that_cannot_be_enforced_fails_its_own_request_only() -> None:
    rig = Rig()

    rig.put(1, "(")
    rig.put(2, "ab")

    sequence_id, error = rig.next()
    assert (sequence_id, type(error), error.param) == (1, UnsupportedParameter, "guided_regex")
    assert rig.next().sequence_id == 2


def test_equal_forms_are_made_once_and_go_their_own_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, rig = Slow(monkeypatch), Rig()

    for sequence_id in range(4):
        rig.put(sequence_id, "ab")
    constraints = [rig.next().constraint for _ in range(4)]
    constraints[0].accept(ord("a"))

    assert (slow.n_compiled, rig.engine.n_asked) == (1, 1)
    assert constraints[1].allows(ord("a"))


def test_the_oldest_forms_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, rig = Slow(monkeypatch), Rig()

    for number in range(MAX_KEPT + 1):
        rig.put(number, f"a{number}")
        rig.next()
    rig.put(100, f"a{MAX_KEPT}")
    rig.next()
    assert slow.n_compiled == MAX_KEPT + 1
    rig.put(101, "a0")
    rig.next()

    assert slow.n_compiled == MAX_KEPT + 2


def test_a_form_that_takes_too_long_is_refused_while_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, rig = Slow(monkeypatch), Rig(timeout_s=0.2)

    rig.put(1, "slow")
    rig.put(2, "ab")

    sequence_id, error = rig.next()
    assert (sequence_id, type(error)) == (1, UnsupportedParameter)
    assert "longer than 0.2 s" in error.message
    assert rig.next().sequence_id == 2
    slow.may_go.set()
    rig.put(3, "cd")
    assert rig.next().sequence_id == 3  # what the stuck thread made in the end was dropped


def test_while_too_many_are_stuck_new_forms_are_turned_away(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, rig = Slow(monkeypatch), Rig(timeout_s=0.1)
    for number in range(MAX_STUCK):
        rig.put(number, f"slow{number}")
        assert isinstance(rig.next()[1], UnsupportedParameter)

    rig.put(9, "ab")

    sequence_id, error = rig.next()
    assert (sequence_id, type(error)) == (9, EngineUnavailable)
    assert error.retry_after_s
    slow.may_go.set()


def test_a_panic_of_the_library_costs_its_request_only(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Panic(BaseException):
        pass

    compile_form = Guide.compile

    def panics(guide: Guide, form: OutputFormat) -> TokenConstraint:
        if form.source == "panic":
            raise Panic("index out of bounds")
        return compile_form(guide, form)

    monkeypatch.setattr(Guide, "compile", panics)
    rig = Rig()

    rig.put(1, "panic")
    rig.put(2, "ab")

    assert "index out of bounds" in rig.next()[1].message
    assert rig.next().sequence_id == 2
    assert "Panic" in capfd.readouterr().err
