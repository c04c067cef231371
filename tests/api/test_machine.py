"""/v1/engines, /v1/hardware, /v1/models/available."""

from __future__ import annotations

from typing import Any

from api.document import answer_schema, check
from api.scripted_runtime import view
from hostler.domain import Lifecycle


def test_engines_are_the_installed_plugins_and_say_which_models_run_in_them(client: Any) -> None:
    answer = client.simulate_get("/v1/engines").json

    engines = {one["name"]: one for one in answer["data"]}
    assert answer["has_more"] is False
    assert engines["echo"]["formats"] == ["echo"]
    assert (engines["echo"]["status"], engines["echo"]["models"]) == ("installed", [])
    assert (engines["llamacpp"]["status"], engines["llamacpp"]["models"]) == ("loaded", ["phi"])
    check(answer, answer_schema("listEngines"))


def test_one_engine_is_the_same_object_and_an_unknown_one_404(client: Any) -> None:
    listed = {one["name"]: one for one in client.simulate_get("/v1/engines").json["data"]}
    unknown = client.simulate_get("/v1/engines/nope")

    assert client.simulate_get("/v1/engines/echo").json == listed["echo"]
    assert (unknown.status_code, unknown.json["error"]["code"]) == (404, "engine_not_found")
    assert "installed: echo" in unknown.json["error"]["message"]


def test_hardware_has_cortex_s_shape_and_holds_a_place_while_it_looks(client: Any, runtime: Any) -> None:
    answer = client.simulate_get("/v1/hardware")
    runtime.n_free = 0
    refused = client.simulate_get("/v1/hardware")

    check(answer.json, answer_schema("getHardware"))
    assert answer.json["cpu"].keys() == {"arch", "cores", "instructions", "model"}
    assert runtime.held == ["hardware"]
    assert refused.status_code == 429


def test_available_models_are_those_that_can_be_asked(client: Any, runtime: Any) -> None:
    coming = view("coming", Lifecycle.DOWNLOADING, manifest={"is_complete": False})
    runtime.views["coming"] = coming

    answer = client.simulate_get("/v1/models/available").json

    check(answer, answer_schema("listAvailableModels"))
    assert [(one["id"], one["status"]) for one in answer["data"]] == [
        ("zephyr-7b", "available"),
        ("phi", "running"),
        ("org/name:Q4@main", "available"),
    ]
    assert answer["data"][0]["size_bytes"] == 4368438944
    assert answer["data"][0]["capabilities"] == ["chat", "completions", "embeddings"]
