"""A host that is killed with -9 leaves no worker behind, whatever the worker is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from support.workers import echo_model, wait_until

HOST = """
import sys, threading
from hostler.domain import SamplingParams
from hostler.engine import EngineSettings, ModelFiles
from hostler.worker.supervisor import Supervisor
from hostler.worker.wire import PromptSettings

prompt = sys.argv[2]
settings = EngineSettings(ctx_len=4096, n_parallel=1)
files = ModelFiles(sys.argv[1], "echo")
supervisor = Supervisor("tiny", "hostler_echo.engine:EchoEngine", {}, files, settings, PromptSettings())

def start():
    # From a thread that ends: the parent-death signal must not fire because of that.
    supervisor.start()

thread = threading.Thread(target=start)
thread.start()
thread.join()
supervisor.wait_ready(60)
group = supervisor.reader_group()
supervisor.submit(group, 0, SamplingParams(temperature=0.0, max_tokens=4000), prompt=prompt)
group.wait(60)
beats = None
while "hang" in prompt and beats != group.beats:
    # Hung when its loop goes round no more.
    beats = group.beats
    threading.Event().wait(0.3)
print(supervisor.pid, flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "[[echo: flood delay_s=0.001]]x",
        "[[echo: hang at=1]]abc",
        "[[echo: hang=gil at=1]]abc",
    ],
    ids=["idle", "busy", "hung", "hung in native code that holds Python's lock"],
)
def test_the_worker_of_a_killed_host_is_gone(tmp_path: Path, prompt: str) -> None:
    model = echo_model(tmp_path).primary
    host = subprocess.Popen(
        [sys.executable, "-c", HOST, model, prompt or "hello"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert host.stdout is not None
        line = host.stdout.readline()
        assert line, host.stderr.read().decode() if host.stderr else ""
        worker = psutil.Process(int(line))
        assert worker.is_running()

        host.send_signal(signal.SIGKILL)
        host.wait(60)

        wait_until(lambda: is_gone(worker), "the worker's end")
    finally:
        host.kill()
        host.communicate()


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
