"""The journal: a line in the log for each event of a model."""

from __future__ import annotations

import logging

import pytest

from hostler.journal import note
from hostler.listening import Event


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({}, "model.running smollm2 (event 7)"),
        ({"last_error": "no such file"}, "model.running smollm2 (event 7): no such file"),
    ],
)
def test_an_event_is_a_line_with_its_id_and_the_reason_if_it_has_one(
    caplog: pytest.LogCaptureFixture, data: dict[str, str], text: str
) -> None:
    with caplog.at_level(logging.INFO, "hostler.journal"):
        note(Event(7, 1, "model.running", "smollm2", data))

    (record,) = caplog.records
    assert record.getMessage() == text
    assert (record.__dict__["event"], record.__dict__["event_id"]) == ("model.running", 7)
