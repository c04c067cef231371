"""`hostler bench` as a process: with a server and without one."""

from __future__ import annotations

import json

import pytest

from support.server import add_echo, run_hostler, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def home(tmp_path):
    home = tmp_path / "home"
    add_echo(home)
    add_echo(home, "other")
    return home


def test_two_models_are_measured_side_by_side_without_a_server(home):
    done = run_hostler(home, "bench", "echo", "other", "--rounds", "2", "--prompt-tokens", "20", "--tokens", "8")

    assert done.returncode == 0, done.stderr
    heading, *lines = done.stdout.splitlines()
    assert heading.split() == ["echo", "other"]
    shown = {line[:15].strip(): line[15:].split("  ") for line in lines}
    assert [value.strip() for value in shown["new tokens"] if value.strip()] == ["8", "8"]
    assert "round 2 of 2" in done.stderr


def test_a_server_s_models_are_left_as_they_were_found(home):
    with serving(home) as server:
        assert run_hostler(home, "start", "echo").returncode == 0
        pid = server.worker_pid("echo")

        done = run_hostler(home, "bench", "echo", "other", "--rounds", "1", "--tokens", "8", "--json")

        first, second = json.loads(done.stdout)["models"]
        assert server.worker_pid("echo") == pid == first["pid"]
        assert server.model("other")["lifecycle"] == "stopped"
    assert (first["start_s"], second["n_loads"]) == (None, 0)
    assert second["start_s"] > 0
    assert first["memory_bytes"] > 1_000_000
    assert first["rounds"][0]["new_tokens"] == 8


def test_a_model_named_twice_is_a_wrong_command_line(home):
    done = run_hostler(home, "bench", "echo", "echo")

    assert done.returncode == 2
    assert "echo is named twice" in done.stderr
