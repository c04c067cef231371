"""Server-sent events: the same events however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostler_remote.events import EventReader, TooLong

STREAM = (
    b': hello\n\ndata: {"a":1}\n\nevent: x\ndata:{"b":2}\nid: 7\n\r\n'
    b"data: one\r\ndata: two\r\n\r\n\n\ndata: [DONE]\n\n"
)
EVENTS = [b'{"a":1}', b'{"b":2}', b"one\ntwo", b"[DONE]"]


@given(st.lists(st.integers(0, len(STREAM)), max_size=40))
def test_events_do_not_depend_on_how_the_bytes_come(cuts: list[int]) -> None:
    reader = EventReader()
    places = sorted({0, len(STREAM), *cuts})

    found = [event for start, end in pairwise(places) for event in reader.feed(STREAM[start:end])]

    assert found == EVENTS
    assert reader.finish() == []


def test_a_last_event_without_its_blank_line_counts() -> None:
    reader = EventReader()

    assert reader.feed(b"data: a\n\ndata: [DONE]") == [b"a"]
    assert reader.finish() == [b"[DONE]"]


@pytest.mark.parametrize("piece", [b"x" * 100, b"data: x\n" * 10])
def test_an_event_without_an_end_is_too_long(piece: bytes) -> None:
    reader = EventReader(max_bytes=1000)

    def feed_on() -> None:
        for _ in range(20):
            reader.feed(piece)

    with pytest.raises(TooLong, match="more than 1000 bytes"):
        feed_on()


def test_many_events_are_not_too_long_together() -> None:
    reader = EventReader(max_bytes=1000)

    assert sum(len(reader.feed(b"data: " + b"x" * 500 + b"\n\n")) for _ in range(50)) == 50
