"""A real server after a short soak: nothing failed, nothing is left over, its answers are what they were.

The soak itself, 2,000 requests and the verdict on memory, is a piece of benchmarks/bench_all.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import soak
from servers import Server as MeasuredServer
from streamclient import Address

from support.server import run_hostler, serving

pytestmark = [pytest.mark.slow, pytest.mark.weights]

N_REQUESTS = 150
CTX_LEN = 512
MOST_GROWTH = 1.1
"""Of so short a run: caches and buffers may still be filling."""


class WatchedServer(MeasuredServer):
    """A server of the functional tests as the soak sees it."""

    def __init__(self, url: str, model: str, pids: list[int]) -> None:
        super().__init__("hostler", Address.parse(f"{url}/v1"), model)
        self.pids = pids

    def memory(self) -> dict[str, float]:
        """Resident MB of host and worker."""
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self.pids]
        return {"rss": sum(pages) * 4096 / 1e6}


def test_after_many_random_requests_nothing_is_left_over_and_the_answer_is_what_it_was(
    tmp_path: Path, smollm2_path: Path
) -> None:
    home = tmp_path / "home"
    assert run_hostler(home, "import", str(smollm2_path), "--id", "bench").returncode == 0
    question = {"model": "bench", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}

    with serving(home) as server:
        # A prefix cache that is full long before the half: what it may take must not look like growth.
        settings = {"n_parallel": 4, "ctx_len": CTX_LEN, "cpu_threads": 2, "cache_ram_mib": 16}
        started = server.call("PUT", "/v1/models/bench/start", settings)
        assert started.status_code == 200, started.text
        pid = server.worker_pid("bench")
        before = server.call("POST", "/v1/completions", question).json()["choices"][0]["text"]

        watched = WatchedServer(server.url, "bench", [server.pid, pid])
        *_, state = soak.run(watched, list(soak.make_requests("bench", N_REQUESTS, CTX_LEN, seed=5)))

        server.wait_for_requests()
        after = server.call("POST", "/v1/completions", question).json()["choices"][0]["text"]
        assert server.worker_pid("bench") == pid, "the worker was replaced"
    assert state.errors == []
    assert state.n_requests == N_REQUESTS
    assert "Paris" in before
    assert "Paris" in after
    assert state.rss[-1] <= MOST_GROWTH * state.rss[len(state.rss) // 2]
