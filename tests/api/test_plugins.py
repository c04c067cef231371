"""/v1/plugins: how plugins fare in this server, and the order to look again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from api.scripted_runtime import ScriptedRuntime
from hostler.errors import EngineUnavailable
from hostler.hookspecs import hookimpl
from hostler.listeners import ListenerView
from hostler.plugins import PluginInfo, Plugins


class Odd:
    @hookimpl
    def register_engines(self) -> object:
        raise ValueError("no engine today")


def test_the_list_says_how_each_fares_and_what_it_brings(client: Any, runtime: ScriptedRuntime) -> None:
    plugins = Plugins()
    plugins.load_builtin()
    plugins.register(Odd(), "odd")
    plugins.left_out.append(PluginInfo("off", "made_up_off", state="disabled"))
    runtime.plugins = plugins
    fares = ListenerView("journal", "hostler.journal:note", ("model.*",), 7, 0)
    runtime.listeners = SimpleNamespace(views=lambda: [fares])

    answer = client.simulate_get("/v1/plugins")

    assert answer.status_code == 200
    rows = {row["id"]: row for row in answer.json["data"]}
    assert rows["huggingface"]["sources"] == ["hf"]
    assert rows["docspage"]["routes"] == ["/docs"]
    assert rows["journal"]["listeners"] == [
        {
            "plugin": "journal", "listener": "hostler.journal:note", "events": ["model.*"], "n_told": 7, "n_failed": 0,
            "busy_s": None, "last_error": None,
        }
    ]  # fmt: skip
    assert rows["odd"]["state"] == "problem"
    assert rows["odd"]["problems"] == ["plugin 'odd' register_engines raised ValueError: no engine today"]
    assert rows["off"]["state"] == "disabled"


def test_a_reload_answers_with_what_has_changed_and_holds_a_place(client: Any, runtime: ScriptedRuntime) -> None:
    answer = client.simulate_post("/v1/plugins/reload")

    assert (answer.status_code, runtime.calls, runtime.held) == (200, [("reload",)], ["reload of plugins"])
    assert answer.json == {
        "object": "plugins.reload", "added": ["red"], "removed": [], "changed": [], "stopped": ["phi"], "outdated": [],
        "problems": [],
    }  # fmt: skip


def test_a_server_that_stops_reloads_nothing(client: Any, runtime: ScriptedRuntime) -> None:
    runtime.to_raise = EngineUnavailable("hostler is stopping and takes no new requests")

    assert client.simulate_post("/v1/plugins/reload").status_code == 503


def test_a_reload_needs_the_key_or_the_token_of_the_cli(make_client: Any) -> None:
    client = make_client(api_key="secret", cli_token="token")

    assert client.simulate_post("/v1/plugins/reload").status_code == 401
    for key in ("secret", "token"):
        headers = {"Authorization": f"Bearer {key}"}
        assert client.simulate_post("/v1/plugins/reload", headers=headers).status_code == 200
