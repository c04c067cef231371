"""Structs are read before threads need them. What happens otherwise kills a process, so it is tried in one of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

FOUR_THREADS_AT_ONCE = """
import sys, threading
from hostler import typeinfo
from hostler.api.schema.chat import ChatBody
from hostler.api.schema.runs import ThreadRunBody
from hostler.records.objects import Run, Thread
import msgspec

sys.setswitchinterval(1e-6)
IS_BUILT and typeinfo.build()
message = {"role": "user", "content": [{"type": "text", "text": {"value": "x"}}]}
bodies = [(ThreadRunBody, {"thread": {"messages": [message]}}), (ChatBody, {"messages": [message]}), (Thread, {}), (Run, {})]
barrier = threading.Barrier(4)

def convert():
    barrier.wait()
    for kind, body in bodies:
        try:
            msgspec.convert(body, kind)
        except msgspec.ValidationError:
            pass

threads = [threading.Thread(target=convert) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def run(code: str) -> int:
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


@pytest.mark.parametrize("attempt", range(3))
def test_structs_that_were_read_are_safe_from_threads_that_need_them_at_once(attempt: int) -> None:
    assert run(FOUR_THREADS_AT_ONCE.replace("IS_BUILT", "True")) == 0


def test_every_struct_of_a_body_and_of_a_record_has_been_read_when_an_app_is_made() -> None:
    code = """
import msgspec
from pathlib import Path
from hostler import typeinfo
from hostler.api.app import create_app
from hostler.config import load_settings
from hostler.plugins import Plugins
from hostler.runtime import Runtime
settings = load_settings(Path("unused"), environ={})
create_app(Runtime(settings, Plugins()), settings)
pending, unread = [msgspec.Struct], []
while pending:
    kind = pending.pop()
    pending += kind.__subclasses__()
    if kind not in typeinfo._built:
        unread.append(kind)
assert not unread, unread
"""
    assert run(code) == 0
