"""Text assembly: whole characters, stop strings across pieces, tokens together with their text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from hostler.domain import TokenLogprob
from hostler.text import NOTHING, Release, StopStrings, TextAssembler


def assemble(pieces: list[bytes], stops: tuple[str, ...] = ()) -> tuple[str, str | None]:
    """What a client sees of all pieces, and the stop string that was met."""
    assembler = TextAssembler(StopStrings(stops))
    text = "".join(assembler.feed(piece).text for piece in pieces)
    return text + assembler.finish().text, assembler.stop_string


def expected(text: str, stops: tuple[str, ...]) -> tuple[str, str | None]:
    """The rule, written the slow way: the first position at which any stop string is complete ends the text."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if stop and text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes at places given modulo the length; a place that comes twice makes an empty piece."""
    borders = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *borders], [*borders, len(data)], strict=True)]


PLACES = st.lists(st.integers(min_value=0, max_value=200), max_size=12)
FEW_LETTERS = st.text(alphabet="abé😀", max_size=24)
STOPS = st.lists(st.text(alphabet="abé😀", max_size=5), max_size=4).map(tuple)


@settings(deadline=None)
@given(text=st.text(max_size=60), places=PLACES)
def test_any_cut_of_valid_utf8_gives_the_text_back(text: str, places: list[int]) -> None:
    assert assemble(cut(text.encode(), places)) == (text, None)


@settings(deadline=None)
@given(data=st.binary(max_size=40), places=PLACES)
def test_invalid_bytes_become_replacement_characters_however_they_are_cut(data: bytes, places: list[int]) -> None:
    assert assemble(cut(data, places)) == (data.decode("utf-8", "replace"), None)


@settings(deadline=None)
@given(text=FEW_LETTERS, stops=STOPS, places=PLACES)
def test_stop_strings_end_the_text_at_the_same_place_however_it_is_cut(
    text: str, stops: tuple[str, ...], places: list[int]
) -> None:
    assert assemble(cut(text.encode(), places), stops) == expected(text, stops)


@settings(deadline=None)
@given(text=FEW_LETTERS, stops=STOPS, places=PLACES)
def test_nothing_is_held_back_that_cannot_become_a_stop_string(
    text: str, stops: tuple[str, ...], places: list[int]
) -> None:
    assembler = TextAssembler(StopStrings(stops))
    fed, seen = b"", ""
    for piece in cut(text.encode(), places):
        fed += piece
        seen += assembler.feed(piece).text
        if assembler.stop_string is not None:
            break
        whole = fed.decode("utf-8", "ignore")
        held = whole[len(seen) :]
        assert whole.startswith(seen)
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
        longest = max((n for n in range(1, 6) if any(s[:n] == whole[-n:] for s in stops if len(s) > n)), default=0)
        assert len(held) == longest


@settings(deadline=None)
@given(text=FEW_LETTERS, stops=STOPS, places=PLACES)
def test_tokens_and_their_log_probabilities_come_out_once_in_order_and_with_their_text(
    text: str, stops: tuple[str, ...], places: list[int]
) -> None:
    pieces = cut(text.encode(), places)
    assembler = TextAssembler(StopStrings(stops))
    releases = []
    fed = 0
    for position, piece in enumerate(pieces):
        fed += 1
        releases.append(assembler.feed(piece, TokenLogprob(position, piece, -0.5)))
        if assembler.stop_string is not None:
            break
    releases.append(assembler.finish())

    entries = [entry for release in releases for entry in release.logprobs]
    assert [entry.token_id for entry in entries] == list(range(len(entries)))
    assert sum(release.n_tokens for release in releases) == len(entries)
    shown = "".join(release.text for release in releases)
    joined = b"".join(entry.token for entry in entries).decode("utf-8", "ignore")
    assert joined.startswith(shown)
    if assembler.stop_string is None:
        assert len(entries) == fed


def test_a_token_waits_until_all_of_its_text_is_released() -> None:
    assembler = TextAssembler(StopStrings(["END"]))

    first = assembler.feed(b"go E", TokenLogprob(1, b"go E", -1.0))
    second = assembler.feed(b"asy", TokenLogprob(2, b"asy", -2.0))

    assert first == Release("go ", 0, ())
    assert second.text == "Easy"
    assert [entry.token_id for entry in second.logprobs] == [1, 2]
    assert second.n_tokens == 2


def test_a_character_cut_into_three_tokens_comes_out_with_all_three() -> None:
    assembler = TextAssembler()
    snowman = "☃".encode()

    assert assembler.feed(snowman[:1]) == NOTHING
    assert assembler.feed(snowman[1:2]) == NOTHING
    assert assembler.feed(snowman[2:]) == Release("☃", 3, ())


def test_an_unfinished_character_at_the_end_is_flushed_as_a_replacement_character() -> None:
    assembler = TextAssembler()

    assert assembler.feed("é".encode()[:1]) == NOTHING
    assert assembler.finish() == Release("�", 1, ())


def test_the_stop_string_that_is_complete_first_wins_over_a_longer_one_that_began_earlier() -> None:
    assert assemble([b"xabcdy"], ("abcd", "bc")) == ("xa", "bc")
    assert assemble([b"x", b"a", b"b", b"c", b"d", b"y"], ("abcd", "bc")) == ("xa", "bc")


def test_of_stop_strings_complete_at_the_same_character_the_one_that_began_first_wins() -> None:
    assert assemble([b"xabc"], ("bc", "abc")) == ("x", "abc")


def test_text_after_a_stop_string_is_dropped() -> None:
    assembler = TextAssembler(StopStrings(["."]))

    assert assembler.feed(b"one. two").text == "one"
    assert assembler.feed(b" three") == NOTHING
    assert assembler.finish() == NOTHING


def test_a_token_that_lies_wholly_inside_the_stop_string_is_not_part_of_the_answer() -> None:
    assembler = TextAssembler(StopStrings(["###"]))
    assembler.feed(b"a", TokenLogprob(0, b"a", -1.0))
    assembler.feed(b"b#", TokenLogprob(1, b"b#", -1.0))

    last = assembler.feed(b"##", TokenLogprob(2, b"##", -1.0))

    assert last.text == ""
    assert [entry.token_id for entry in last.logprobs] == [1]


@settings(deadline=None)
@given(text=FEW_LETTERS, stops=STOPS, places=PLACES)
def test_pieces_that_may_skip_the_assembler_leave_its_outcome_the_same(
    text: str, stops: tuple[str, ...], places: list[int]
) -> None:
    assembler = TextAssembler(StopStrings(stops))
    seen = ""
    for piece in cut(text.encode(), places):
        if assembler.stop_string is not None:
            break
        may_skip = assembler.is_idle and piece.isascii() and assembler.first_bytes.isdisjoint(piece)
        seen += piece.decode() if may_skip else assembler.feed(piece).text

    assert (seen + assembler.finish().text, assembler.stop_string) == expected(text, stops)


def test_the_assembler_is_idle_only_while_nothing_is_held_back() -> None:
    assembler = TextAssembler(StopStrings(["xy"]))
    states = [assembler.is_idle]
    for piece in (b"\xc3", b"\xa9", b"ax", b"b", b"c"):
        assembler.feed(piece)
        states.append(assembler.is_idle)

    assert states == [True, False, True, False, True, True]


def test_thousands_of_long_stop_strings_do_not_slow_the_text_down() -> None:
    """Work is counted, not time: each character takes a bounded number of steps."""
    stops = StopStrings(["a" * 50 + chr(200 + n) for n in range(2000)])
    state = 0
    for _ in range(100):
        state, _, _ = stops.scan(state, "a" * 100)

    assert stops.depth[state] == 50
    assert len(stops.depth) == 1 + 50 + 2000
