"""What a model has read stays read: over stop and start, a killed worker, a killed host. Over HTTP, with real weights."""

from __future__ import annotations

import os
import signal

import pytest

from hostler.keptprefixes import KeptPrefixes
from support.server import eventually, run_hostler, serving

pytestmark = pytest.mark.weights

RULES = " ".join(f"Rule {n}: never put more than {n} apples into basket number {n}." for n in range(1, 50))
"""About 800 tokens, which are worth a file at once."""
QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture
def home(tmp_path, smollm2_path):
    home = tmp_path / "home"
    done = run_hostler(home, "import", str(smollm2_path), "--id", "smol")
    assert done.returncode == 0, done.stderr
    return home


def ask(server, **fields):
    """One answer: its text, its prompt's tokens, and how many of them needed no evaluation."""
    body = {
        "model": "smol",
        "messages": [
            {"role": "system", "content": RULES, **fields},
            {"role": "user", "content": QUESTION},
        ],
        "temperature": 0,
        "max_tokens": 16,
    }
    response = server.call("POST", "/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    answer = response.json()
    usage = answer["usage"]
    return (
        answer["choices"][0]["message"]["content"],
        usage["prompt_tokens"],
        usage["prompt_tokens_details"]["cached_tokens"],
    )


def kept_bytes(home):
    return sum(model.n_bytes for model in KeptPrefixes(home / "cache" / "prefixes", 0).models())


def assert_found_again(again, first):
    text, n_prompt, n_cached = again
    assert (text, n_prompt) == first[:2]
    assert n_prompt - 32 <= n_cached < n_prompt


def test_a_prompt_is_found_again_after_stop_and_start_a_killed_worker_and_a_restart_of_the_host(home):
    with serving(home) as server:
        first = ask(server)
        assert first[1] > 700
        assert first[2] == 0

        assert server.call("PUT", "/v1/models/smol/stop").json()["state"] == "stopped"
        assert kept_bytes(home) > 1_000_000
        assert_found_again(ask(server), first)

        worker = server.worker_pid("smol")
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: (server.model("smol")["hostler"] or {}).get("pid") not in (None, worker), "a new worker")
        assert_found_again(ask(server), first)

        assert server.stop() == 0
    with serving(home) as server:
        assert_found_again(ask(server), first)


def test_a_prompt_that_is_not_to_be_cached_is_found_neither_again_nor_after_a_restart(home):
    body = {"model": "smol", "prompt": RULES, "temperature": 0, "max_tokens": 4}

    def n_cached(server, **fields):
        usage = server.call("POST", "/v1/completions", {**body, **fields}).json()["usage"]
        assert usage["prompt_tokens"] > 700
        return usage["prompt_tokens_details"]["cached_tokens"]

    with serving(home) as server:
        assert [n_cached(server, cache_prompt=False) for _ in range(2)] == [0, 0]
        server.call("PUT", "/v1/models/smol/stop")
        assert kept_bytes(home) == 0
        assert n_cached(server, cache_prompt=False) == 0
        assert server.stop() == 0
    with serving(home) as server:
        assert n_cached(server) == 0
        assert n_cached(server, cache_prompt=False) == 0
        assert n_cached(server) > 700


def test_what_was_written_while_it_ran_outlives_a_host_that_is_killed(home):
    with serving(home) as server:
        first = ask(server)
        ask(server)
        eventually(lambda: kept_bytes(home) > 1_000_000, "the prompt on disk")
        worker = server.worker_pid("smol")
        server.signal(signal.SIGKILL)
        server.wait()
        eventually(lambda: not os.path.exists(f"/proc/{worker}") or os.name == "nt", "the worker's end")
    with serving(home) as server:
        assert_found_again(ask(server), first)


def test_a_file_replaced_under_the_models_name_finds_nothing_of_the_old_one(home, tmp_path, smollm2_path):
    """The same bytes, to tell it from a wrong answer: only that it is another file may count."""
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(smollm2_path.read_bytes())
    assert run_hostler(home, "import", str(copy), "--id", "copy").returncode == 0
    with serving(home) as server:
        body = {"model": "copy", "messages": [{"role": "user", "content": RULES}], "temperature": 0, "max_tokens": 4}
        first = server.call("POST", "/v1/chat/completions", body).json()
        server.call("PUT", "/v1/models/copy/stop")
        assert kept_bytes(home) > 1_000_000
        status = copy.stat()
        other = tmp_path / "other.gguf"
        other.write_bytes(copy.read_bytes())
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(copy)

        again = server.call("POST", "/v1/chat/completions", body).json()

    assert again["choices"][0]["message"] == first["choices"][0]["message"]
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_without_a_budget_or_with_a_folder_that_cannot_be_used_answers_are_the_same(home):
    with serving(home, "--cache-disk-bytes", "0", "--cache-ram-bytes", "0") as server:
        first = ask(server)
        server.call("PUT", "/v1/models/smol/stop")
        assert ask(server) == first
        assert kept_bytes(home) == 0
    (home / "cache").mkdir(exist_ok=True)
    (home / "cache" / "prefixes").write_text("somebody's file")
    with serving(home) as server:
        assert ask(server) == first
        server.call("PUT", "/v1/models/smol/stop")
        assert ask(server) == first
        log = (home / "logs" / "smol.log").read_text()
    assert "No prefix is kept on disk" in log
    assert "move away the file that stands there" in log


def test_a_pinned_system_prompt_stays_while_others_push_out_what_is_not(home):
    with serving(home, "--cache-disk-bytes", "0") as server:
        # Room for about one and a half of these prompts beside two slots.
        started = server.call("PUT", "/v1/models/smol/start", {"cache_ram_mib": 28, "n_parallel": 2, "ctx_len": 2048})
        assert started.status_code == 200, started.text
        ask(server, cache="pin")
        for number in range(6):
            text = " ".join(f"{number} hens and {n} geese." for n in range(110))
            response = server.chat("smol", text, max_tokens=1)
            assert response.status_code == 200, response.text

        _, n_prompt, n_cached = ask(server, cache="pin")

        assert n_cached > n_prompt - 64
        assert server.call("POST", "/v1/chat/completions", {
            "model": "smol", "messages": [{"role": "user", "content": "x", "cache": "always"}],
        }).json()["error"]["param"] == "messages[0].cache"  # fmt: skip


def test_settings_out_of_range_are_refused_with_their_names_and_too_large_ones_are_cut_and_said(home):
    with serving(home) as server:
        for name in ("cache_ram_mib", "cache_disk_mib"):
            refused = server.call("PUT", "/v1/models/smol/start", {name: -1})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, name)
        answer = server.call("PUT", "/v1/models/smol/start", {"cache_ram_mib": 2**31 - 1, "cache_disk_mib": 2**31 - 1})
        assert answer.status_code == 200, answer.text
        assert "cache_ram_mib is 2147483647, and the prefix cache gets" in answer.json()["warning"]
        assert "cache_disk_mib is 2147483647, and the prefix cache gets 8192 MiB" in answer.json()["warning"]
        assert ask(server)[1] > 700
