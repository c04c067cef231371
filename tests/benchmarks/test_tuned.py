"""The tuned model: tuned once, and what tuning said of its loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tuned
from lineup import Lineup, Setup
from servers import Hostler, Server
from streamclient import Address


class ScriptedHostler(Hostler):
    """Notes the commands it is given; nothing runs."""

    def __init__(self) -> None:
        Server.__init__(self, "hostler", Address("127.0.0.1", 1, "/v1"), "bench")
        self.commands: list[tuple[str, ...]] = []

    def command(self, *arguments: str) -> str:
        self.commands.append(arguments)
        return ""


def known(monkeypatch: pytest.MonkeyPatch, **metadata: Any) -> None:
    """What the library says of the model."""
    monkeypatch.setattr(tuned, "fetch", lambda *_: (200, {"metadata": metadata}))


def test_a_model_is_tuned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    server = ScriptedHostler()

    known(monkeypatch)
    tuned.tune(server, is_quick=True)
    known(monkeypatch, tuned_variant="mix", tuned_perplexity_change=0.004)
    tuned.tune(server, is_quick=True)

    assert server.commands == [("tune", "bench", "--apply", "--json", "--quick")]


def test_hostlers_figures_have_the_loss_that_tuning_measured_and_the_peers_have_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known(monkeypatch, tuned_variant="mix", tuned_perplexity_change=0.004)
    monkeypatch.setattr(tuned, "ask_by_tokens", lambda _server, n_prompt, _n_new, _seed: (900.0 if n_prompt else 190.0, None))

    ours = tuned.measure(ScriptedHostler(), "0", 1)
    theirs = tuned.measure(Server("llama-server", Address("127.0.0.1", 1, "/v1"), "bench"), "0", 1)

    assert (ours["pp512"], ours["tg128"], ours["perplexity_change"]) == (900.0, 190.0, 0.004)
    assert math.isnan(ours["kl_divergence"])
    assert theirs == {"errors": 0.0, "pp512": 900.0, "tg128": 190.0}


def test_a_server_alone_is_a_new_one_and_gone_behind_the_block(tmp_path: Path) -> None:
    setup, closed = Setup(Path("M.gguf"), None, 2, tmp_path), []

    class Scripted(Server):
        def close(self) -> None:
            closed.append(self)

    class Scene(Lineup):
        def _start(self, name: str) -> Server:
            return Scripted(name, Address("127.0.0.1", 1, "/v1"), "bench")

    with Scene(setup, setup.settings(4, 512)) as lineup:
        other = lineup.server("llama-server")
        with lineup.alone("hostler") as first:
            assert closed == [other]
        with lineup.alone("hostler") as second:
            assert closed == [other, first]
    assert closed == [other, first, second]


def test_where_the_file_as_shipped_is_best_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch)
    monkeypatch.setattr(tuned, "ask_by_tokens", lambda *_: (900.0, None))

    assert tuned.measure(ScriptedHostler(), "0", 1)["perplexity_change"] == 0.0
