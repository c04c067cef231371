"""Downloads in a process of their own that is killed, or whose disk is full."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest

from support.tiny_gguf import tiny_gguf

pytestmark = pytest.mark.slow

DATA = tiny_gguf(padding=400_000)
DIGEST = hashlib.sha256(DATA).hexdigest()
HALF = 200_000
CHUNK = 128 * 1024
DEADLINE_S = 60

CHILD = """
import json, resource, sys
from pathlib import Path
from hostler.errors import HostlerError
from hostler.library.fetch import RetryPolicy
from hostler.library.store import Library
from hostler.library.transfer import TransferLimits
from hostler.plugins import Plugins

home, reference, chunk_bytes, largest_file = sys.argv[1:]
if int(largest_file):
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(largest_file), int(largest_file)))
plugins = Plugins()
plugins.load_builtin()
limits = TransferLimits(policy=RetryPolicy(attempts=2, first_wait_s=0.0), chunk_bytes=int(chunk_bytes))
library = Library(Path(home), plugins.sources, limits=limits)
try:
    library.pull(reference, id="a").result()
    print(json.dumps({"code": "ok"}))
except HostlerError as error:
    print(json.dumps({"code": error.code, "message": error.message, "needed": getattr(error, "needed_bytes", None)}))
"""


def child(home, reference, largest_file=0):
    command = [sys.executable, "-c", CHILD, str(home), reference, str(CHUNK), str(largest_file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def wait_for_size(path, size, process):
    deadline = time.monotonic() + DEADLINE_S
    while not (path.exists() and path.stat().st_size >= size):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)  # a file's growth can only be polled


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def killed_in_the_middle(home, served, reference):
    served.hold_after = HALF
    with child(home, reference) as process:
        try:
            wait_for_size(home / "models" / "a" / "a.gguf.part", HALF, process)
        finally:
            process.kill()
        process.wait(DEADLINE_S)
        assert process.returncode == -signal.SIGKILL
    served.released.set()


def test_a_pull_that_was_killed_goes_on_from_its_last_byte_and_verifies(home, server, library):
    served = server.add("/a.gguf", DATA)
    reference = f"{server.url}/a.gguf#sha256={DIGEST}"
    killed_in_the_middle(home, served, reference)
    assert not library.find("a").is_downloaded
    server.asked.clear()

    manifest = library.pull(reference, id="a").result()

    assert server.ranges("/a.gguf") == [f"bytes={HALF}-"]
    assert manifest.files[0].sha256 == DIGEST
    assert (home / "models" / "a" / "a.gguf").read_bytes() == DATA
    assert sorted(path.name for path in (home / "models" / "a").iterdir()) == ["a.gguf", "model.json"]


def test_a_killed_pull_of_an_unverifiable_file_goes_on_from_the_last_proven_chunk(home, server, library):
    served = server.add("/a.gguf", DATA, etag='"v1"')
    reference = f"{server.url}/a.gguf"
    killed_in_the_middle(home, served, reference)
    server.asked.clear()

    library.pull("a").result()

    assert server.ranges("/a.gguf") == [f"bytes={CHUNK}-"]
    assert (home / "models" / "a" / "a.gguf").read_bytes() == DATA


def test_a_full_disk_ends_the_pull_with_both_numbers_and_the_part_is_resumed(home, server, library):
    server.add("/a.gguf", DATA, etag='"v1"')
    with child(home, f"{server.url}/a.gguf", largest_file=HALF) as process:
        output, problems = process.communicate(timeout=DEADLINE_S)
    answer = json.loads(output), problems

    assert answer[0]["code"] == "insufficient_storage", answer
    assert answer[0]["needed"] == len(DATA) - HALF
    assert "No room left" in answer[0]["message"]
    assert (home / "models" / "a" / "a.gguf.part").stat().st_size == HALF
    server.asked.clear()

    library.pull("a").result()

    assert server.ranges("/a.gguf") == [f"bytes={HALF}-"]
    assert (home / "models" / "a" / "a.gguf").read_bytes() == DATA


def test_a_pull_killed_between_its_steps_is_finished_by_the_next(home, server, library):
    """Each prefix of the steps in transfer.py, made by hand: the file has its name, the manifest is not complete."""
    server.add("/a.gguf", DATA)
    library.pull(f"{server.url}/a.gguf").result()
    path = home / "models" / "a" / "model.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "files": [], "is_complete": False}))
    (home / "models" / "a" / "a.gguf.part.log").write_text("left over")
    server.asked.clear()

    again = library.pull("a").result()

    assert again.is_complete
    assert again.files[0].sha256 == DIGEST
    assert server.asked == []
