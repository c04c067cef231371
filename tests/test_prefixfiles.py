from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostler import prefixfiles
from hostler.prefixfiles import HALF_LIFE_S, MIB, PrefixFiles, StoredPrefix, prefix_id
from hostler.prefixfolder import STALE_S

DEADLINE_S = 60
NOBODY = 65534
NEEDS_MODES = pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes and owners")


def tokens(*ids: int) -> bytes:
    return array("i", ids).tobytes()


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class Folder:
    """A model's folder, opened again and again as by one worker after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.warnings: list[str] = []
        self.free_bytes = 1 << 40
        self.files: PrefixFiles | None = None

    def open(self, identity: str = "one", budget_bytes: int = 100 * MIB) -> tuple[PrefixFiles, list[StoredPrefix]]:
        self.close()
        self.files = PrefixFiles(
            self.path,
            identity,
            budget_bytes,
            warn=self.warnings.append,
            free_bytes=lambda _: self.free_bytes,
            clock=self.clock,
            pause=0.0,
        )
        return self.files, self.files.open()

    def close(self) -> None:
        if self.files is not None:
            self.files.close(DEADLINE_S)
            assert not self.files.n_waiting

    def found(self, identity: str = "one", budget_bytes: int = 100 * MIB) -> dict[str, StoredPrefix]:
        return {prefix.id: prefix for prefix in self.open(identity, budget_bytes)[1]}

    @property
    def names(self) -> set[str]:
        return {path.name for path in self.path.rglob("*") if path.suffix in {".prefix", ".tmp"}}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    folder = Folder(tmp_path / "cache" / "model")
    yield folder
    folder.close()


def put(
    files: PrefixFiles, ids: tuple[int, ...], parent: StoredPrefix | str = "", payload: bytes = b"payload", worth: float = 1.0
) -> str:
    """Put a prefix behind one of those in the test's chain, whose tokens are one each."""
    parent_id = parent if isinstance(parent, str) else parent.id
    n_before = LENGTHS.get(parent_id, 0)
    own = tokens(*ids)
    id = prefix_id(parent_id, own)
    LENGTHS[id] = n_before + len(ids)
    assert files.put(id, parent_id, n_before, own, [memoryview(payload)], worth)
    return id


LENGTHS: dict[str, int] = {}


def test_what_was_put_is_found_by_the_next_worker_parents_first(folder: Folder) -> None:
    files, found = folder.open()
    assert found == []
    root = put(files, (1, 2, 3), payload=b"root")
    child = put(files, (4,), root, payload=b"child")
    put(files, (5,), root)
    put(files, (6, 7), child, payload=b"")

    files, found = folder.open()

    assert found[0].id == root
    places = {prefix.id: place for place, prefix in enumerate(found)}
    assert len(found) == 4
    assert all(not prefix.parent or places[prefix.parent] < places[prefix.id] for prefix in found)
    assert {prefix.id: (prefix.n_before, prefix.tokens) for prefix in found}[child] == (3, tokens(4))
    assert files.read(root) == b"root"
    assert files.read(child) == b"child"
    assert folder.warnings == []


def test_a_payload_of_several_pieces_is_one_when_it_is_read(folder: Folder) -> None:
    files, _ = folder.open()
    id = prefix_id("", tokens(1))
    pieces = [memoryview(bytes([n]) * 1_500_000) for n in range(3)]
    assert not files.has(id)
    assert files.put(id, "", 0, tokens(1), pieces, 1.0)
    assert files.has(id)
    assert files.read(id) == b"".join(pieces)  # be it queued or stored by now

    files, _ = folder.open()

    assert files.read(id) == b"".join(pieces)
    assert files.read(id) == b"".join(pieces)  # the second time unchecked


def test_what_is_there_already_is_not_written_again(folder: Folder) -> None:
    files, _ = folder.open()
    put(files, (1,), payload=b"first")
    files, _ = folder.open()

    id = put(files, (1,), payload=b"again")

    assert not files.n_waiting
    assert files.read(id) == b"first"


def test_a_prefix_without_its_parent_is_not_taken(folder: Folder) -> None:
    files, _ = folder.open()
    nowhere = prefix_id("", tokens(9))

    assert not files.put(prefix_id(nowhere, tokens(1)), nowhere, 1, tokens(1), [memoryview(b"x")], 1.0)


def test_what_would_not_be_found_again_is_refused(folder: Folder) -> None:
    files, _ = folder.open()
    root = put(files, (1,))

    with pytest.raises(ValueError, match="is not the id"):
        files.put("a" * 32, "", 0, tokens(1), [memoryview(b"x")], 1.0)
    with pytest.raises(ValueError, match="n_before is 5"):
        files.put(prefix_id(root, tokens(2)), root, 5, tokens(2), [memoryview(b"x")], 1.0)


def test_more_than_the_queue_holds_is_not_taken(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixfiles, "QUEUE_BYTES", 10)
    files, _ = folder.open()

    assert not files.put(prefix_id("", tokens(1)), "", 0, tokens(1), [memoryview(b"x" * 11)], 1.0)
    assert files.put(prefix_id("", tokens(1)), "", 0, tokens(1), [memoryview(b"x" * 10)], 1.0)


@pytest.mark.parametrize("damage", ["torn", "payload", "header", "gone", "renamed"])
def test_what_is_damaged_goes_with_all_that_goes_on_from_it(folder: Folder, damage: str) -> None:
    files, _ = folder.open()
    root = put(files, (1,), payload=b"root" * 100)
    child = put(files, (2,), root, payload=b"child" * 100)
    put(files, (3,), child)
    other = put(files, (4,))
    folder.close()
    path = next(folder.path.rglob(f"{child}.prefix"))
    data = bytearray(path.read_bytes())
    if damage == "torn":
        path.write_bytes(data[:-1])
    elif damage in {"payload", "header"}:
        data[-1 if damage == "payload" else 100] ^= 1
        path.write_bytes(data)
    elif damage == "gone":
        path.unlink()
    else:
        path.rename(path.with_name(f"{'0' * 32}.prefix"))

    files, _ = folder.open()

    assert files.read(child) is None  # a payload is only read now
    assert not files.has(child)
    assert files.read(root) == b"root" * 100
    folder.close()
    assert folder.names == {f"{root}.prefix", f"{other}.prefix"}
    assert folder.warnings == []


def test_a_folder_that_is_cleared_under_a_worker_leaves_it_going_on(folder: Folder) -> None:
    files, _ = folder.open()
    root = put(files, (1,))
    files, _ = folder.open()
    for path in folder.path.rglob("*.prefix"):
        path.unlink()

    child = put(files, (2,), root)
    folder.close()
    assert folder.names == set()  # what goes on from nothing is not kept

    files, found = folder.open()
    assert found == []
    assert files.read(child) is None
    again = put(files, (1,))
    assert set(folder.found()) == {again}
    assert folder.warnings == []


def test_half_written_files_are_swept_up_and_strangers_files_are_left_alone(folder: Folder) -> None:
    files, _ = folder.open()
    id = put(files, (1,))
    folder.close()
    own = next(folder.path.rglob("*.prefix")).parent
    (own / f"{'1' * 32}.tmp").write_bytes(b"half of someth")
    (own / f"{'2' * 32}.prefix").write_bytes(b"not ours at all")
    (own / "notes.txt").write_text("a person's")

    assert set(folder.found()) == {id}
    folder.close()
    assert folder.names == {f"{id}.prefix"}
    assert (own / "notes.txt").exists()


def test_another_identity_sees_nothing_and_finds_its_own_again(folder: Folder) -> None:
    files, _ = folder.open("engine 1")
    id = put(files, (1,), payload=b"one")
    files, found = folder.open("engine 2")
    assert found == []
    assert files.read(id) is None
    put(files, (1,), payload=b"two")

    files, _ = folder.open("engine 1")

    assert files.read(id) == b"one"


def test_files_of_another_identity_are_not_taken_when_somebody_moves_them(folder: Folder) -> None:
    files, _ = folder.open("engine 1")
    put(files, (1,))
    folder.open("engine 2")
    folder.close()
    (theirs,) = folder.path.rglob("*.prefix")
    (mine,) = (path.parent for path in folder.path.rglob("identity") if path.read_text() == "engine 2")
    theirs.rename(mine / theirs.name)

    assert folder.found("engine 2") == {}
    folder.close()
    assert folder.names == set()


def test_the_budget_holds_and_other_identities_go_first_the_oldest_before(folder: Folder) -> None:
    for day, identity in enumerate(["old", "older than none", "now"]):
        files, _ = folder.open(identity, 10 * MIB)
        put(files, (day,), payload=bytes(4 * MIB))
        folder.close()
        for name in folder.path.rglob("identity"):
            if name.read_text() == identity:
                os.utime(name, (folder.clock.now + day, folder.clock.now + day))

    assert folder.found("old", 10 * MIB) == {}
    assert len(folder.found("older than none", 10 * MIB)) == 1
    assert len(folder.found("now", 10 * MIB)) == 1


def test_another_identity_that_nobody_opened_for_a_month_is_removed(folder: Folder) -> None:
    files, _ = folder.open("before the update")
    put(files, (1,))
    folder.open("between")
    folder.close()
    for name in folder.path.rglob("identity"):
        age = STALE_S + 1 if name.read_text() == "before the update" else 1
        os.utime(name, (folder.clock.now - age, folder.clock.now - age))

    folder.open("after")

    assert {name.read_text() for name in folder.path.rglob("identity")} == {"between", "after"}


def test_leaves_go_before_what_others_go_on_from_the_longest_unused_first(folder: Folder) -> None:
    files, _ = folder.open(budget_bytes=5 * MIB)
    root = put(files, (1,), payload=bytes(MIB))
    old = put(files, (2,), root, payload=bytes(MIB))
    folder.clock.now += 10
    new = put(files, (3,), root, payload=bytes(MIB))
    folder.clock.now += 10

    added = put(files, (4,), payload=bytes(2 * MIB), worth=2.0)

    assert set(folder.found()) == {root, new, added}
    assert old not in folder.found()


def test_what_was_used_stays_before_what_was_not_until_it_is_long_ago(folder: Folder) -> None:
    files, _ = folder.open(budget_bytes=3 * MIB)
    often = put(files, (1,), payload=bytes(MIB))
    never = put(files, (2,), payload=bytes(MIB))
    files, found = folder.open(budget_bytes=3 * MIB)
    for _ in range(3):
        files.used(often)
    folder.clock.now += 60
    files, found = folder.open(budget_bytes=3 * MIB)
    assert {prefix.id: prefix.n_uses for prefix in found} == {often: 3, never: 0}

    third = put(files, (3,), payload=bytes(MIB))
    assert set(folder.found(budget_bytes=3 * MIB)) == {often, third}

    folder.clock.now += 10 * HALF_LIFE_S
    files, _ = folder.open(budget_bytes=3 * MIB)
    fourth = put(files, (4,), payload=bytes(MIB))
    fifth = put(files, (5,), payload=bytes(MIB))
    assert set(folder.found()) == {fourth, fifth}


def test_what_is_worth_less_than_all_that_is_there_is_not_kept(folder: Folder) -> None:
    files, _ = folder.open(budget_bytes=3 * MIB)
    first = put(files, (1,), payload=bytes(MIB), worth=5.0)
    second = put(files, (2,), payload=bytes(MIB), worth=5.0)
    put(files, (3,), payload=bytes(MIB), worth=1.0)

    assert set(folder.found()) == {first, second}


def test_nothing_goes_for_what_is_larger_than_the_budget(folder: Folder) -> None:
    files, _ = folder.open(budget_bytes=2 * MIB)
    small = put(files, (1,), payload=bytes(MIB))
    put(files, (2,), payload=bytes(3 * MIB), worth=1000.0)

    assert set(folder.found()) == {small}


def test_a_smaller_budget_is_kept_from_the_next_start_on(folder: Folder) -> None:
    files, _ = folder.open()
    root = put(files, (1,), payload=bytes(MIB))
    child = put(files, (2,), root, payload=bytes(MIB))
    put(files, (3,), child, payload=bytes(MIB))

    assert set(folder.found(budget_bytes=2 * MIB)) == {root}
    assert folder.names == {f"{root}.prefix"}


@pytest.mark.parametrize("budget_bytes", [0, -1])
def test_without_a_budget_nothing_is_made(folder: Folder, budget_bytes: int) -> None:
    files, found = folder.open(budget_bytes=budget_bytes)

    assert found == []
    assert not files.put(prefix_id("", tokens(1)), "", 0, tokens(1), [memoryview(b"x")], 1.0)
    assert not folder.path.exists()
    assert folder.warnings == []


def test_a_disk_that_is_nearly_full_gets_its_room_back_and_is_told_of_once(folder: Folder) -> None:
    files, _ = folder.open()
    put(files, (1,), payload=bytes(MIB))
    files, _ = folder.open()
    folder.free_bytes = prefixfiles.RESERVE_BYTES - MIB
    put(files, (2,), payload=bytes(MIB))
    put(files, (3,), payload=bytes(MIB))
    folder.close()

    assert len(folder.names) == 0
    (warning,) = folder.warnings
    assert "lies on a disk with 1,023 MiB free" in warning
    assert "choose another with cache_folder" in warning


def test_a_second_worker_goes_without_and_says_so(folder: Folder) -> None:
    files, _ = folder.open()
    id = put(files, (1,))
    warnings: list[str] = []
    second = PrefixFiles(folder.path, "one", MIB, warn=warnings.append)

    assert second.open() == []

    assert not second.is_on
    assert not second.put(id, "", 0, tokens(1), [memoryview(b"x")], 1.0)
    assert second.read(id) is None
    assert "is in use by another worker" in warnings[0]
    second.close(DEADLINE_S)
    assert set(folder.found()) == {id}


@pytest.mark.parametrize("where", ["the folder", "above it"])
def test_a_folder_that_is_a_file_switches_the_tier_off(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("somebody's")
    path = tmp_path / "file" if where == "the folder" else tmp_path / "file" / "model"
    folder = Folder(path)

    files, found = folder.open()

    assert (found, files.is_on) == ([], False)
    (warning,) = folder.warnings
    assert f"{path} is no folder; move away the file" in warning
    assert (tmp_path / "file").read_text() == "somebody's"


OTHER_USER = """
import os, sys
from array import array
from pathlib import Path
from hostler.prefixfiles import PrefixFiles, prefix_id

if os.geteuid() == 0:
    os.setegid({nobody}); os.seteuid({nobody})  # root may write everything
files = PrefixFiles(Path(sys.argv[1]), "one", 1 << 30, warn=print)
print(files.open(), files.is_on)
files.close(5)
"""


@NEEDS_MODES
@pytest.mark.parametrize(
    ("whose", "warning"), [("theirs", "may not be written by this user"), ("mine", "belongs to another user")]
)
def test_a_folder_that_may_not_be_written_switches_the_tier_off(whose: str, warning: str) -> None:
    if whose == "mine" and os.geteuid() != 0:
        pytest.skip("only root can be two users")
    with tempfile.TemporaryDirectory() as folder:  # below tmp_path the other user could not even look
        Path(folder).chmod(0o755)
        model = Path(folder) / "model"
        model.mkdir()
        if whose == "theirs" and os.geteuid() == 0:
            os.chown(model, NOBODY, NOBODY)
        model.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", OTHER_USER.format(nobody=NOBODY), str(model)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        model.chmod(0o755)

    assert done.returncode == 0, done.stderr
    said, result = done.stdout.splitlines()
    assert warning in said
    assert "cache_folder" in said
    assert result == "[] False"


FULL = """
import resource, sys
from array import array
from pathlib import Path
from hostler.prefixfiles import PrefixFiles, prefix_id

files = PrefixFiles(Path(sys.argv[1]), "one", 1 << 30, warn=print, free_bytes=lambda _: 1 << 40, pause=0.0)
files.open()
one = array("i", [1]).tobytes()
small = prefix_id("", one)
assert files.put(small, "", 0, one, [memoryview(bytes(100_000))], 1.0)
while files.n_waiting:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
for parent, n_before in ((small, 1), ("", 0), (small, 1)):
    for n in (2, 3):
        own = array("i", [n, n_before]).tobytes()
        files.put(prefix_id(parent, own), parent, n_before, own, [memoryview(bytes(500_000))], 1.0)
files.close(60)
print(sorted(path.suffix for path in Path(sys.argv[1]).rglob("*") if path.is_file()))
"""


@NEEDS_MODES
def test_a_full_disk_switches_writing_off_once_and_leaves_what_is_whole(folder: Folder) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(folder.path)], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )

    assert done.returncode == 0, done.stderr
    warning, left = done.stdout.splitlines()
    assert "is on a full disk" in warning
    assert left == "['', '', '.prefix']"
    (found,) = folder.found().values()
    assert found.n_bytes == 100_000


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="there is no second file system here")
def test_a_folder_may_lie_on_another_file_system(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        (tmp_path / "cache").symlink_to(elsewhere)
        folder = Folder(tmp_path / "cache" / "model")
        files, _ = folder.open()
        id = put(files, (1,), payload=b"there")
        files, _ = folder.open()

        assert files.read(id) == b"there"
        assert len(list(Path(elsewhere).rglob("*.prefix"))) == 1
        folder.close()
    assert folder.warnings == []


def test_close_gives_up_what_does_not_get_written_in_time(tmp_path: Path) -> None:
    files = PrefixFiles(tmp_path / "model", "one", 1 << 40, free_bytes=lambda _: 1 << 40, pause=1e9)
    files.open()
    block = memoryview(bytes(MIB))
    big = [block] * 500
    for n in range(3):  # 1.5 GB, of which a block at a time gets through
        files.put(prefix_id("", tokens(n)), "", 0, tokens(n), big[: 500 if n == 0 else 5], 1.0)

    files.close(0.0)

    (thread,) = (thread for thread in threading.enumerate() if thread.name == "prefix-files")
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert list(tmp_path.rglob("*.tmp")) == []
    again = Folder(tmp_path / "model")
    assert len(again.found()) < 3
    again.close()


def test_after_close_nothing_is_taken_and_a_second_close_does_no_harm(folder: Folder) -> None:
    files, _ = folder.open()
    files.close(DEADLINE_S)

    files.close(DEADLINE_S)

    assert not files.is_on
    assert not files.put(prefix_id("", tokens(1)), "", 0, tokens(1), [memoryview(b"x")], 1.0)


KILLED = """
import sys, random
from array import array
from pathlib import Path
from hostler.prefixfiles import PrefixFiles, prefix_id

files = PrefixFiles(Path(sys.argv[1]), "one", 6 << 20, pause=0.0, free_bytes=lambda _: 1 << 40)
dice = random.Random(int(sys.argv[2]))
known = {prefix.id: prefix.n_after for prefix in files.open()}
print("open", flush=True)
while True:
    parent = dice.choice([*known, ""])
    own = array("i", [dice.randrange(1000) for _ in range(dice.randrange(1, 50))]).tobytes()
    id = prefix_id(parent, own)
    payload = (id.encode() * (1 + dice.randrange(20_000)))
    if files.put(id, parent, known.get(parent, 0), own, [memoryview(payload)], dice.random()):
        known[id] = known.get(parent, 0) + len(own) // 4
    else:
        known.pop(parent, None)  # it had to go
    if dice.random() < 0.3 and known:
        one = dice.choice(list(known))
        files.used(one)
        payload = files.read(one)
        assert payload is None or bytes(payload[:32]) == one.encode()
    while files.n_waiting > 4:
        pass
"""


@pytest.mark.parametrize("seed", [1, 2, pytest.param(range(3, 30), marks=pytest.mark.slow)])
def test_a_worker_killed_at_any_moment_leaves_a_folder_that_opens(folder: Folder, seed: int | range) -> None:
    n_found = 0
    for one in [seed] if isinstance(seed, int) else seed:
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(folder.path), str(one)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"open\n"
            try:
                child.wait(random.Random(one).random())
            except subprocess.TimeoutExpired:
                child.kill()
            _, problems = child.communicate()
            assert child.returncode == -signal.SIGKILL, problems

        files, found = folder.open(budget_bytes=6 << 20)

        known = {prefix.id for prefix in found}
        n_found += len(found)
        for prefix in found:
            assert prefix.parent in {*known, ""}
            payload = files.read(prefix.id)
            assert payload is not None
            assert payload == prefix.id.encode() * (prefix.n_bytes // 32)
        assert sum(path.stat().st_size for path in folder.path.rglob("*.prefix")) <= 6 << 20
        folder.close()
        assert folder.names == {f"{id}.prefix" for id in known}
    assert n_found or isinstance(seed, int)
    assert folder.warnings == []
