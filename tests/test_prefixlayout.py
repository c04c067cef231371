from __future__ import annotations

import random
from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hostler import prefixlayout
from hostler.prefixlayout import (
    DamagedFile,
    StoredPrefix,
    file_bytes,
    identity_hash,
    map_payload,
    prefix_id,
    read_prefix,
    write,
)

IDENTITY = identity_hash("a model, an engine, its settings")
PARENT = prefix_id("", array("i", [7]).tobytes())


def made(tokens: bytes, n_bytes: int, parent: str = PARENT, **fields: object) -> StoredPrefix:
    known = {"n_before": 1, "worth": 2.5, "last_used": 1_700_000_000.25, **fields}
    return StoredPrefix(prefix_id(parent, tokens), parent, tokens=tokens, n_bytes=n_bytes, **known)  # type: ignore[arg-type]


def write_one(folder: Path, payload: bytes = b"payload" * 1000, tokens: bytes = array("i", range(300)).tobytes()) -> Path:
    prefix = made(tokens, len(payload))
    path = folder / f"{prefix.id}.prefix"
    assert write(path, prefix, IDENTITY, [memoryview(payload)], lambda: True)
    return path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(
    tokens=st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20_000 // 4).map(lambda ids: array("i", ids).tobytes()),
    pieces=st.lists(st.binary(max_size=5000), max_size=4),
    has_parent=st.booleans(),
    n_before=st.integers(0, 2**32 - 1),
)
def test_a_file_gives_back_what_was_written(
    tmp_path: Path, tokens: bytes, pieces: list[bytes], has_parent: bool, n_before: int
) -> None:
    parent = PARENT if has_parent else ""
    prefix = made(tokens, sum(map(len, pieces)), parent, n_before=n_before)
    path = tmp_path / f"{prefix.id}.prefix"

    assert write(path, prefix, IDENTITY, [memoryview(piece) for piece in pieces], lambda: True)

    assert read_prefix(path, IDENTITY) == prefix
    assert map_payload(path, prefix.n_bytes, is_checked=False) == b"".join(pieces)
    assert path.stat().st_size == file_bytes(prefix)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    path.unlink()


def test_a_payload_begins_on_a_page_of_any_machine(tmp_path: Path) -> None:
    path = write_one(tmp_path, payload=b"\x11" * 10)

    assert (path.stat().st_size - 10) % 65_536 == 0


def test_a_file_cut_off_anywhere_is_damaged(tmp_path: Path) -> None:
    path = write_one(tmp_path)
    whole = path.read_bytes()

    for length in [*range(0, 1600, 7), 65_535, 65_536, 70_000, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFile):
            read_prefix(path, IDENTITY)


def test_a_file_with_something_behind_it_is_damaged(tmp_path: Path) -> None:
    path = write_one(tmp_path)
    path.write_bytes(path.read_bytes() + b"\0")

    with pytest.raises(DamagedFile, match="as long as"):
        read_prefix(path, IDENTITY)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    """But for the zeros before the payload, which nobody reads, and the uses, which then count as none."""
    path = write_one(tmp_path)
    whole = path.read_bytes()
    prefix = read_prefix(path, IDENTITY)
    dice = random.Random(5)
    places = [*range(176 + 1200), *(dice.randrange(65_536, len(whole)) for _ in range(100))]

    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << dice.randrange(8)
        path.write_bytes(damaged)
        try:
            found = read_prefix(path, IDENTITY)
            map_payload(path, found.n_bytes, is_checked=False)
        except DamagedFile:
            assert not 160 <= place < 176
        else:
            assert 160 <= place < 176, place
            assert found == prefix


def test_a_file_under_another_name_is_not_taken_for_what_the_name_says(tmp_path: Path) -> None:
    path = write_one(tmp_path)
    other = path.with_name(f"{PARENT}.prefix")
    path.rename(other)

    with pytest.raises(DamagedFile, match="name"):
        read_prefix(other, IDENTITY)


def test_a_file_of_another_identity_is_not_taken(tmp_path: Path) -> None:
    path = write_one(tmp_path)

    with pytest.raises(DamagedFile, match="another model, engine or setting"):
        read_prefix(path, identity_hash("the same engine, one version on"))


def test_uses_are_noted_in_place(tmp_path: Path) -> None:
    path = write_one(tmp_path)
    before = read_prefix(path, IDENTITY)

    prefixlayout.write_use(path, 3, 1_800_000_000.5)

    after = read_prefix(path, IDENTITY)
    assert (after.n_uses, after.last_used) == (3, 1_800_000_000.5)
    assert after.tokens == before.tokens
    map_payload(path, after.n_bytes, is_checked=False)


def test_a_write_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    prefix = made(b"", 3 * prefixlayout.BLOCK_BYTES)
    blocks = iter([True, False])

    is_written = write(
        tmp_path / f"{prefix.id}.prefix", prefix, IDENTITY, [memoryview(bytes(prefix.n_bytes))], lambda: next(blocks)
    )

    assert not is_written
    assert list(tmp_path.iterdir()) == []


def test_a_mapped_payload_outlives_its_file(tmp_path: Path) -> None:
    path = write_one(tmp_path, payload=b"kept" * 5000)

    payload = map_payload(path, 20_000, is_checked=False)
    path.unlink()

    assert payload == b"kept" * 5000


def test_equal_beginnings_have_equal_ids_and_the_cut_between_two_prefixes_counts() -> None:
    one, two = array("i", [1, 2]).tobytes(), array("i", [3]).tobytes()

    assert prefix_id(prefix_id("", one), two) == prefix_id(prefix_id("", one), two)
    assert len({prefix_id("", one + two), prefix_id(prefix_id("", one), two), prefix_id("", two)}) == 3
    assert len(prefix_id("", one)) == prefixlayout.ID_LENGTH
