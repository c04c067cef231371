"""How an end is classified and told."""

from __future__ import annotations

import signal

import pytest

from hostler.worker import exits
from hostler.worker.exits import ExitReport, classify


def classified(returncode: int, asked_for: str | None = None, oom_kills: int = 0) -> ExitReport:
    return classify(returncode, asked_for=asked_for, detail="", oom_kills=oom_kills, last_output="")


@pytest.mark.parametrize(
    ("report", "kind", "reason"),
    [
        (classified(0), "exited", "exited with code 0"),
        (classified(7), "exited", "exited with code 7"),
        (classified(exits.ENGINE_BUG), "exited", "exited with code 83 (the engine raised an exception)"),
        (classified(exits.OUT_OF_MEMORY), "out_of_memory", "ran out of memory"),
        (classified(-signal.SIGSEGV), "signalled", "was killed by SIGSEGV"),
        (classified(-signal.SIGKILL), "signalled", "was killed by SIGKILL"),
        (
            classified(-signal.SIGKILL, oom_kills=1),
            "out_of_memory",
            "ran out of memory: the system's out-of-memory killer ended it",
        ),
        (classified(-signal.SIGSEGV, oom_kills=1), "signalled", "was killed by SIGSEGV"),
        (classified(-signal.SIGKILL, asked_for="stalled", oom_kills=1), "stalled", "stood still and was killed"),
        (classified(0, asked_for="stopped"), "stopped", "was stopped"),
        (classified(-63), "signalled", "was killed by signal 63"),
    ],
)
def test_an_end_is_classified_by_who_caused_it(report: ExitReport, kind: str, reason: str) -> None:
    assert (report.kind, report.reason) == (kind, reason)


def test_a_report_tells_the_last_output() -> None:
    report = classify(7, asked_for=None, detail="", oom_kills=0, last_output="line one\nline two")

    assert report.text() == "exited with code 7. Its last output:\nline one\nline two"
    assert report.reason == "exited with code 7"


def test_the_count_of_the_kernels_kills_is_a_number_that_does_not_fall() -> None:
    first = exits.oom_kill_count()

    assert exits.oom_kill_count() >= first >= 0


def test_codes_are_distinct_and_not_those_that_shells_and_signals_use() -> None:
    codes = [
        exits.HOST_GONE, exits.LOAD_FAILED, exits.ENGINE_BUG, exits.TEMPLATE_STUCK, exits.OUT_OF_MEMORY, exits.PROTOCOL,
    ]  # fmt: skip

    assert len(set(codes)) == len(codes)
    assert all(2 < code < 126 for code in codes)
    assert all(str(code) in (exits.__doc__ or "") for code in codes)
