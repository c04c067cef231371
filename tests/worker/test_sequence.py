"""One sequence over a real ring: counting, text, pauses, the last frame."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import msgpack

from hostler.domain import (
    FinishReason,
    FormatKind,
    OutputFormat,
    Priority,
    SamplingParams,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from hostler.engine import RawPrompt, TokenTable
from hostler.errors import EngineFailed, QueueFull
from hostler.guidance import Guide
from hostler.ring import RingReader, RingSegment
from hostler.text import StopStrings
from hostler.worker.sequence import RingSequence
from hostler.worker.wire import (
    ENDED,
    FAILED,
    PREFILL,
    PREFILL_STRUCT,
    TEXT,
    TEXT_HEADER,
    TEXT_LOGPROBS,
    EndedFrame,
    FailedFrame,
    TextFrame,
)


class Rig:
    """A prepared sequence, its ring's reader, and a clock that stands still until it is turned."""

    def __init__(self, params: SamplingParams | None = None, *, ring_bytes: int = 4096, n_ctx: int = 1000) -> None:
        self.now = 100.0
        self.over: list[RingSequence] = []
        self.paused: list[RingSequence] = []
        segment = RingSegment.create(1, ring_bytes, 1)
        self.reader: RingReader = segment.reader(0)
        self.reader.open(7, 0)
        self.sequence = RingSequence(
            7,
            segment.writer(0),
            ring_bytes,
            Priority.NORMAL,
            on_over=self.over.append,
            on_pause=self.paused.append,
            clock=lambda: self.now,
        )
        params = params or SamplingParams(temperature=0.0)
        self.sequence.prepared([1, 2, 3], params, StopStrings(params.stop), True, n_ctx)

    def frames(self) -> list[tuple[int, bytes]]:
        found = []
        while frames := self.reader.drain():
            found += frames
        return found

    def text(self) -> str:
        return "".join(payload[TEXT_HEADER.size :].decode() for kind, payload in self.frames() if kind == TEXT)


def ended(payload: bytes) -> EndedFrame:
    return msgpack.decode(payload, type=EndedFrame)


def test_a_sequence_writes_prefill_text_and_end_with_exact_times() -> None:
    rig = Rig()
    rig.sequence.admitted()
    rig.sequence.begin(1)
    rig.now += 0.5
    rig.sequence.prefilled(3)
    assert rig.sequence.push(65, b"A")
    rig.now += 0.25
    assert rig.sequence.push(66, b"B")
    rig.now += 9
    rig.sequence.end(FinishReason.STOP)

    frames = rig.frames()
    kinds = [kind for kind, _ in frames]
    assert kinds == [PREFILL, PREFILL, TEXT, TEXT, ENDED]
    assert [PREFILL_STRUCT.unpack(payload) for _, payload in frames[:2]] == [(0, 3), (3, 3)]
    last = ended(frames[-1][1])
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.cached_tokens) == (3, 2, 1)
    assert (last.timings.prompt_n, last.timings.cached_n, last.timings.predicted_n) == (2, 1, 2)
    assert (last.timings.prompt_ms, last.timings.predicted_ms) == (500.0, 250.0)
    assert rig.over == [rig.sequence]


def test_the_last_allowed_token_is_sent_and_ends_the_sequence() -> None:
    rig = Rig(SamplingParams(max_tokens=2))
    rig.sequence.begin(0)

    assert rig.sequence.push(65, b"A")
    assert not rig.sequence.push(66, b"B")
    assert not rig.sequence.push(67, b"C"), "it is over"

    *texts, (kind, payload) = rig.frames()
    assert kind == ENDED
    assert [payload[4:] for _, payload in texts] == [b"A", b"B"]
    assert ended(payload).reason is FinishReason.LENGTH


def test_a_full_context_ends_the_sequence_before_max_tokens() -> None:
    rig = Rig(SamplingParams(max_tokens=100), n_ctx=5)
    rig.sequence.begin(0)

    assert [rig.sequence.push(65, b"A") for _ in range(2)] == [True, False]


def test_a_stop_string_on_the_last_allowed_token_counts_as_stop() -> None:
    rig = Rig(SamplingParams(max_tokens=2, stop=("AB",)))
    rig.sequence.begin(0)

    assert [rig.sequence.push(65, b"A"), rig.sequence.push(66, b"B")] == [True, False]

    (frame,) = [payload for kind, payload in rig.frames() if kind == ENDED]
    assert ended(frame).reason is FinishReason.STOP
    assert ended(frame).stop_string == "AB"
    assert ended(frame).usage.completion_tokens == 2


def test_text_held_back_for_a_stop_string_comes_out_at_the_end() -> None:
    rig = Rig(SamplingParams(stop=("ABC",)))
    rig.sequence.begin(0)
    rig.sequence.push(65, b"A")
    rig.sequence.push(66, b"B")
    assert rig.text() == ""

    rig.sequence.end(FinishReason.STOP)

    assert rig.text() == "AB"


def test_a_full_ring_pauses_and_a_drained_one_goes_on_without_losing_text() -> None:
    rig = Rig(ring_bytes=128)
    rig.sequence.begin(0)
    pushed = ""
    while not rig.sequence.is_paused:
        pushed += chr(65 + len(pushed))
        assert rig.sequence.push(0, pushed[-1].encode())
    assert rig.sequence.push(0, b"!"), "a second token of the same step is kept, too"
    assert rig.paused == [rig.sequence]
    assert not rig.sequence.is_flushed

    seen = rig.text()
    rig.now += 5
    assert rig.sequence.flush(rig.now)

    assert rig.sequence.stalled_since == rig.now
    assert rig.sequence.is_flushed
    assert not rig.sequence.is_paused
    assert seen + rig.text() == pushed + "!"


def test_a_sequence_that_ends_while_paused_keeps_its_last_frame_for_later() -> None:
    rig = Rig(SamplingParams(max_tokens=50), ring_bytes=256)
    rig.sequence.begin(0)
    while rig.sequence.push(0, b"x"):
        pass
    assert rig.sequence.is_over
    assert not rig.sequence.is_flushed

    found = []
    while not rig.sequence.is_flushed:
        found += rig.frames()
        rig.sequence.flush(rig.now)
    found += rig.frames()

    assert [kind for kind, _ in found] == [TEXT] * 50 + [ENDED]


def test_cancel_drops_what_waits_and_says_so_where_there_is_room() -> None:
    rig = Rig()
    rig.sequence.begin(0)
    rig.sequence.push(65, b"A")
    rig.sequence.cancel()

    frames = rig.frames()
    kinds = [kind for kind, _ in frames]
    assert kinds == [TEXT, ENDED]
    assert ended(frames[-1][1]).reason is FinishReason.CANCELLED
    assert not rig.sequence.push(66, b"B")


def test_cancel_of_a_full_ring_leaves_nothing_waiting() -> None:
    rig = Rig(ring_bytes=256)
    rig.sequence.begin(0)
    while not rig.sequence.is_paused:
        rig.sequence.push(65, b"A")

    rig.sequence.cancel()

    assert rig.sequence.is_over
    assert rig.sequence.is_flushed


def test_an_error_of_the_engine_comes_after_the_text_before_it() -> None:
    rig = Rig(SamplingParams(stop=("AB",)))
    rig.sequence.begin(0)
    rig.sequence.push(65, b"A")
    rig.sequence.end(FinishReason.ERROR, "the sampler is on fire")

    frames = rig.frames()
    assert [kind for kind, _ in frames] == [TEXT, FAILED]
    assert msgpack.decode(frames[1][1], type=FailedFrame) == FailedFrame("engine_failed", "the sampler is on fire")


def test_an_engines_own_error_keeps_its_code_and_comes_after_the_text_that_was_held_back() -> None:
    rig = Rig(SamplingParams(stop=("AB",)))
    rig.sequence.begin(0)
    rig.sequence.push(65, b"A")
    rig.sequence.fail(QueueFull("too many of us", retry_after_s=7.0))
    rig.sequence.fail(EngineFailed("and then some"))

    frames = rig.frames()
    assert [kind for kind, _ in frames] == [TEXT, FAILED]
    assert msgpack.decode(frames[1][1], type=FailedFrame) == FailedFrame("queue_full", "too many of us", None, 7.0)


def test_guessed_tokens_of_all_steps_add_up_in_the_timings() -> None:
    rig = Rig()
    rig.sequence.begin(0)
    rig.sequence.drafted(4, 1)
    rig.sequence.push(65, b"A")
    rig.sequence.drafted(8, 8)
    rig.sequence.end(FinishReason.STOP)

    timings = ended(rig.frames()[-1][1]).timings
    assert (timings.draft_n, timings.draft_accepted_n) == (12, 9)


def test_pieces_of_a_message_engine_are_not_counted_as_tokens_where_it_counts_itself() -> None:
    rig = Rig()
    rig.sequence.prepared((), SamplingParams(max_tokens=2), StopStrings(()), True, 0, RawPrompt(prompt="Hi"))
    rig.sequence.begin(0)
    assert all(rig.sequence.push(-1, b"word ") for _ in range(5))
    rig.sequence.counted(Usage(9, 2, 4))
    rig.sequence.end(FinishReason.LENGTH)

    end = ended(rig.frames()[-1][1])
    assert (end.reason, end.usage) == (FinishReason.LENGTH, Usage(9, 2, 4))
    assert (end.timings.prompt_n, end.timings.cached_n, end.timings.predicted_n) == (5, 4, 2)


def test_pieces_of_a_message_engine_are_counted_where_it_cannot_tell() -> None:
    rig = Rig()
    rig.sequence.prepared((), SamplingParams(), StopStrings(()), True, 0, RawPrompt(prompt="Hi"))
    rig.sequence.begin(0)
    for _ in range(3):
        rig.sequence.push(-1, b"word ")
    rig.sequence.end(FinishReason.STOP)

    assert ended(rig.frames()[-1][1]).usage == Usage(0, 3)


def test_an_endless_error_message_still_fits_into_the_ring() -> None:
    rig = Rig(ring_bytes=1024)
    rig.sequence.fail(EngineFailed("é" * 100_000))

    ((kind, payload),) = rig.frames()
    assert kind == FAILED
    assert msgpack.decode(payload, type=FailedFrame).message.startswith("éé")


def test_log_probabilities_travel_with_their_text_in_frames_that_fit() -> None:
    rig = Rig(SamplingParams(logprobs=1, stop=("x" * 30,)))
    rig.sequence.begin(0)
    for number in range(29):
        rig.sequence.push(number, b"x", entry(number))
    rig.sequence.end(FinishReason.STOP)

    frames = [msgpack.decode(payload, type=TextFrame) for kind, payload in rig.frames() if kind == TEXT_LOGPROBS]
    assert "".join(frame.text for frame in frames) == "x" * 29
    assert [found.token_id for frame in frames for found in frame.logprobs] == list(range(29))
    assert sum(frame.n_tokens for frame in frames) == 29


def entry(number: int) -> TokenLogprob:
    return TokenLogprob(number, b"x", -0.5, (TopLogprob(number, b"x", -0.5),))


@settings(deadline=None)
@given(st.text(min_size=1, max_size=300), st.sampled_from([64, 128, 256]))
def test_a_piece_longer_than_the_ring_arrives_whole_in_several_frames(text: str, ring_bytes: int) -> None:
    rig = Rig(ring_bytes=ring_bytes)
    rig.sequence.begin(0)
    rig.sequence.push(0, b"")
    rig.frames()
    rig.sequence.push(0, ("é" + text).encode())

    seen = rig.text()
    while not rig.sequence.is_flushed:
        rig.sequence.flush(rig.now)
        seen += rig.text()

    assert seen == "é" + text


def test_the_prefills_news_is_left_out_where_there_is_no_room() -> None:
    rig = Rig(ring_bytes=64)
    rig.sequence.admitted()
    rig.sequence.begin(0)
    for number in range(100):
        rig.sequence.prefilled(number)

    assert rig.sequence.is_flushed
    assert not rig.sequence.is_paused


# -- forms ------------------------------------------------------------------------------------------------------------


GUIDE = Guide(TokenTable([*(bytes([byte]) for byte in range(256)), b""], (256,)))


def in_form(expression: str, params: SamplingParams | None = None) -> Rig:
    """A sequence whose answer is to match an expression; tokens are bytes."""
    rig = Rig(params)
    params = rig.sequence.params
    constraint = GUIDE.compile(OutputFormat(FormatKind.REGEX, expression, "guided_regex"))
    rig.sequence.prepared([1], params, StopStrings(params.stop), True, 1000, None, constraint)
    return rig


def push(rig: Rig, text: str) -> bool:
    return all(rig.sequence.push(byte, bytes([byte])) for byte in text.encode())


def test_an_answer_that_is_whole_ends_without_an_end_token() -> None:
    rig = in_form("ab")

    assert push(rig, "a")
    assert not push(rig, "b")

    *_, (kind, payload) = rig.frames()
    assert (kind, ended(payload).reason, ended(payload).usage.completion_tokens) == (ENDED, FinishReason.STOP, 2)


def test_a_token_outside_of_the_form_reaches_nobody_and_ends_the_answer_with_an_error() -> None:
    rig = in_form("ab")

    assert push(rig, "a")
    assert not push(rig, "x")

    frames = rig.frames()
    assert [kind for kind, _ in frames] == [TEXT, FAILED]
    failed = msgpack.decode(frames[-1][1], type=FailedFrame)
    assert failed.code == "engine_failed"
    assert "guided_regex" in failed.message


def test_an_end_in_the_middle_of_the_form_is_an_error_and_one_behind_it_is_none() -> None:
    early, late = in_form("a+b?"), in_form("a+b?")

    early.sequence.end(FinishReason.STOP)
    push(late, "aa")
    late.sequence.end(FinishReason.STOP)

    assert early.frames()[-1][0] == FAILED
    assert ended(late.frames()[-1][1]).reason is FinishReason.STOP


def test_max_tokens_and_stop_strings_end_an_answer_in_the_middle_of_its_form() -> None:
    short = in_form("abcd", SamplingParams(max_tokens=2))
    stopped = in_form("abcd", SamplingParams(stop=("b",)))

    assert not push(short, "ab")
    assert not push(stopped, "ab")

    assert ended(short.frames()[-1][1]).reason is FinishReason.LENGTH
    assert ended(stopped.frames()[-1][1]).stop_string == "b"
