"""The home's lock and address file, with real processes where that is the point."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hostler.errors import HomeInUse, StorageUnavailable
from hostler.home import ADDRESS_FILE, HomeLock, ServerAddress, find_server, remove_address, write_address

HOLDER = """
import sys
from pathlib import Path
from hostler.home import HomeLock, ServerAddress, write_address
import os
home = Path(sys.argv[1])
HomeLock(home, sys.argv[2]).acquire()
if sys.argv[2] == "serve":
    write_address(home, ServerAddress(os.getpid(), "http://127.0.0.1:4711", 4711, 0, "t"))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock of tmp_path."""
    processes = []

    def start(purpose: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), purpose],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_second_server_on_one_home_is_told_pid_and_url_of_the_first(tmp_path, hold):
    first = hold("serve")

    with pytest.raises(HomeInUse) as caught:
        HomeLock(tmp_path, "serve").acquire(patience_s=0)

    assert f"pid {first.pid}" in str(caught.value)
    assert "http://127.0.0.1:4711" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_lock_held_by_a_command_is_explained_by_its_name(tmp_path, hold):
    first = hold("pull")

    with pytest.raises(HomeInUse, match=rf"`hostler pull` \(pid {first.pid}\)"):
        HomeLock(tmp_path, "rm").acquire(patience_s=0)


def test_kill_9_releases_the_lock_and_its_address_is_not_believed(tmp_path, hold):
    first = hold("serve")
    assert find_server(tmp_path).pid == first.pid

    first.send_signal(signal.SIGKILL if sys.platform != "win32" else signal.SIGTERM)
    first.wait()

    assert (tmp_path / ADDRESS_FILE).exists()
    assert find_server(tmp_path) is None
    with HomeLock(tmp_path, "serve"):
        pass


def test_lock_is_waited_for_when_somebody_only_looks_at_it(tmp_path, hold):
    first = hold("list")
    lock = HomeLock(tmp_path, "serve")
    started = time.monotonic()

    first.stdin.close()  # it ends on its own now, some time after our first try
    first.stdin = None
    lock.acquire(patience_s=30)

    assert time.monotonic() - started < 30
    lock.release()


def test_released_lock_can_be_taken_again_by_the_same_process(tmp_path):
    lock = HomeLock(tmp_path, "serve")
    lock.acquire()
    lock.release()
    lock.release()

    lock.acquire(patience_s=0)

    lock.release()


def test_home_that_cannot_be_made_is_a_clean_error(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(StorageUnavailable, match="--home"):
        HomeLock(tmp_path / "file" / "home", "serve").acquire()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX permissions")
def test_address_is_readable_by_its_user_only(tmp_path):
    write_address(tmp_path, ServerAddress(1, "http://127.0.0.1:1", 1, 0, "secret"))

    assert stat.S_IMODE((tmp_path / ADDRESS_FILE).stat().st_mode) == 0o600


def test_address_leaves_no_part_file_and_is_gone_once_removed(tmp_path):
    write_address(tmp_path, ServerAddress(os.getpid(), "http://127.0.0.1:1", 1, 0, "secret"))
    assert [path.name for path in Path(tmp_path).iterdir()] == [ADDRESS_FILE]

    remove_address(tmp_path)
    remove_address(tmp_path)

    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize("obstacle", [lambda home: home.rmdir(), lambda home: (home / ADDRESS_FILE / "x").mkdir(parents=True)])
def test_address_that_cannot_be_written_is_a_clean_error_and_leaves_nothing(tmp_path, obstacle):
    home = tmp_path / "home"
    home.mkdir()
    obstacle(home)
    before = sorted(tmp_path.rglob("*"))

    with pytest.raises(StorageUnavailable, match=r"server\.json cannot be written: .*; free some room"):
        write_address(home, ServerAddress(1, "http://127.0.0.1:1", 1, 0, "secret"))

    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("text", ["", "{", '{"pid": "x"}', "[]"])
def test_address_file_of_nonsense_means_no_server(tmp_path, text):
    (tmp_path / ADDRESS_FILE).write_text(text)

    assert find_server(tmp_path) is None
