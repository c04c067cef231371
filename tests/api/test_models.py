"""The model routes: the seed's shapes, Jan's spelling, states, starts and stops."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from api.scripted_runtime import view
from api.seed_shapes import CHANGED_STATE, GET_PARAMETERS, GET_REQUIRED, MODEL_OPTIONAL, MODEL_REQUIRED, check
from hostler.api import shapes
from hostler.api.models import N_STOPS
from hostler.api.shapes import STATES, as_text
from hostler.domain import Lifecycle
from hostler.engine import EngineInfo
from hostler.views import ModelView


def list_item(view: ModelView) -> dict[str, Any]:
    """As it goes over the wire."""
    return msgspec.to_builtins(shapes.list_item(view))


def get_item(view: ModelView) -> dict[str, Any]:
    return msgspec.to_builtins(shapes.get_item(view))


def check_list_item(item: dict[str, Any]) -> None:
    check(item, MODEL_REQUIRED | MODEL_OPTIONAL)
    assert item["state"] in {None, "downloading", "available"}
    assert item["settings"].keys() == {"ctx_len", "ngl", "embedding", "n_parallel"}
    assert item["parameters"].keys() == {"temperature", "token_limit", "top_k", "top_p", "stream"}
    assert all(isinstance(value, str) for value in (*item["settings"].values(), *item["parameters"].values()))
    assert all(isinstance(asset, str) for asset in item["assets"])
    assert item["type"] == item["object"] == "model"
    assert item["settings"]["ctx_len"].isdigit()
    assert item["settings"]["ctx_len"] != "0"


def check_get_item(item: dict[str, Any]) -> None:
    check(item, GET_REQUIRED)
    check(item["parameters"], GET_PARAMETERS)
    check(item["metadata"], {"engine": str, "quantization": str, "size": str})
    assert item["object"] == "model"
    assert item["state"] in {"not_downloaded", "downloaded", "running", "stopped"}


# -- list -------------------------------------------------------------------------------------------------------------


def test_the_list_has_the_seeds_shape_and_leaves_out_what_is_not_downloaded(client: Any) -> None:
    answer = client.simulate_get("/v1/models").json

    assert answer["object"] == "list"
    assert [item["id"] for item in answer["data"]] == ["zephyr-7b", "phi", "org/name:Q4@main"]
    for item in answer["data"]:
        check_list_item(item)
        assert item["state"] is not None


@pytest.mark.parametrize("query", ["all=true", "all=1", "all"])
def test_the_list_with_all_names_the_catalogue_with_a_null_state(client: Any, query: str) -> None:
    data = client.simulate_get("/v1/models", query_string=query).json["data"]

    found = {item["id"]: item for item in data}["catalogue-only"]
    check_list_item(found)
    assert (found["state"], found["lifecycle"], found["status"]) == (None, "not_downloaded", "downloadable")


def test_a_list_item_equals_the_contracts_example() -> None:
    settings = {"ctx_len": 2048}
    parameters = {"temperature": 0.7, "token_limit": 2048, "top_k": 0, "top_p": 1.0}
    item = list_item(view(lifecycle=Lifecycle.RUNNING, manifest={"settings": settings, "parameters": parameters}))

    expected = {
        "type": "model", "object": "model", "version": "1", "id": "zephyr-7b", "model": "zephyr-7b", "name": "Zephyr 7B",
        "owned_by": "TheBloke", "created": 1700560000, "description": "", "state": "available", "lifecycle": "running",
        "status": "downloaded", "format": "ggufv3",
        "source_url": "https://huggingface.co/TheBloke/zephyr-7B-beta-GGUF/blob/main/zephyr-7b-beta.Q4_K_M.gguf",
        "settings": {"ctx_len": "2048", "ngl": "100", "embedding": "true", "n_parallel": "4"},
        "parameters": {"temperature": "0.7", "token_limit": "2048", "top_k": "0", "top_p": "1", "stream": "true"},
        "assets": ["zephyr-7b-beta.Q4_K_M.gguf"],
    }  # fmt: skip
    assert {name: item[name] for name in expected} == expected
    assert item["metadata"] == {"engine": "llamacpp", "quantization": "Q4_K_M", "size": "7B", "size_bytes": 4368438944}


def test_native_types_replace_strings_when_they_are_asked_for(client: Any) -> None:
    item = client.simulate_get("/v1/models", query_string="schema=native").json["data"][0]
    got = client.simulate_get("/v1/models/zephyr-7b", query_string="schema=native").json

    assert item["settings"] == {"ctx_len": 2048, "ngl": 100, "embedding": True, "n_parallel": 4}
    assert item["parameters"] == {"temperature": 0.7, "token_limit": 2048, "top_k": 0, "top_p": 0.95, "stream": True}
    assert got["parameters"]["temperature"] == 0.7
    assert got["parameters"]["token_limit"] == 2048


@pytest.mark.parametrize(("query", "param"), [("all=perhaps", "all"), ("schema=xml", "schema")])
def test_a_bad_query_value_is_400(client: Any, query: str, param: str) -> None:
    answer = client.simulate_get("/v1/models", query_string=query)

    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)


def test_config_is_complete_native_and_holds_what_was_granted() -> None:
    config = list_item(view(ctx_len=4096, manifest={"settings": {"ctx_len": "auto", "n_parallel": 8}}))["config"]

    assert config["settings"]["ctx_len"] == 4096
    assert config["settings"]["n_parallel"] == 8
    assert config["settings"]["cache_type"] == "f16"
    assert config["parameters"]["repeat_last_n"] == 64
    assert config["parameters"]["stop"] == []
    assert "cpu_threads" not in config["settings"]


def test_the_worker_is_shown_while_there_is_one(client: Any) -> None:
    items = {item["id"]: item for item in client.simulate_get("/v1/models").json["data"]}

    assert items["phi"]["hostler"]["pid"] == 4711
    assert items["phi"]["hostler"]["memory_bytes"] == 123
    assert items["zephyr-7b"]["hostler"] is None


# -- get --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["zephyr-7b", "phi", "catalogue-only", "org/name:Q4@main"])
def test_a_model_has_the_seeds_shape_downloaded_or_not(client: Any, name: str) -> None:
    answer = client.simulate_get(f"/v1/models/{name}")

    assert answer.status_code == 200
    check_get_item(answer.json)


def test_get_merges_both_groups_with_the_seeds_mix_of_types() -> None:
    stored = {"settings": {"ngl": 33, "cpu_threads": 3}, "parameters": {"temperature": 0.5, "stop": ["x"], "min_p": 0.1}}
    item = get_item(view(manifest=stored, last_error="it broke"))

    assert item["parameters"] == {
        "ctx_len": 2048, "ngl": 33, "embedding": True, "n_parallel": 4, "temperature": "0.5", "token_limit": "2048",
        "top_k": "0", "top_p": "0.95", "stream": True, "stop": ["x"], "min_p": 0.1,
    }  # fmt: skip
    assert item["settings"]["ngl"] == 33
    assert item["settings"]["cpu_threads"] == 3
    assert item["last_error"] == "it broke"
    assert item["engine"] == "llamacpp"


def test_an_alias_finds_the_model_and_the_answer_has_its_registered_id(client: Any) -> None:
    assert client.simulate_get("/v1/models/phi-alias").json["id"] == "phi"


def test_an_unknown_model_is_404_word_for_word(client: Any) -> None:
    answer = client.simulate_get("/v1/models/nope")

    assert answer.status_code == 404
    assert answer.json["error"] == {
        "message": "The model nope does not exist",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


# -- states -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lifecycle", "resting", "listed", "got", "status"),
    [
        ("not_downloaded", "not_downloaded", None, "not_downloaded", "downloadable"),
        ("downloading", "not_downloaded", "downloading", "not_downloaded", "downloadable"),
        ("downloaded", "downloaded", "available", "downloaded", "downloaded"),
        ("starting", "downloaded", "available", "downloaded", "downloaded"),
        ("starting", "stopped", "available", "stopped", "downloaded"),
        ("running", "stopped", "available", "running", "downloaded"),
        ("stopping", "stopped", "available", "running", "downloaded"),
        ("stopped", "stopped", "available", "stopped", "downloaded"),
    ],
)
def test_every_state_a_client_sees_follows_from_the_lifecycle(
    lifecycle: str, resting: str, listed: str | None, got: str, status: str
) -> None:
    model = view(lifecycle=Lifecycle(lifecycle), resting=Lifecycle(resting))

    assert (list_item(model)["state"], list_item(model)["lifecycle"], list_item(model)["status"]) == (
        listed,
        lifecycle,
        status,
    )
    assert (get_item(model)["state"], get_item(model)["lifecycle"], get_item(model)["status"]) == (got, lifecycle, status)


def test_the_table_of_states_knows_every_lifecycle() -> None:
    assert STATES.keys() == set(Lifecycle)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.7, "0.7"), (1.0, "1"), (0, "0"), (True, "true"), (False, "false"), (2048, "2048"), (1e-05, "1e-05")],
)
def test_settings_are_written_as_the_seed_writes_them(value: Any, expected: str) -> None:
    assert as_text(value) == expected


# -- delete -----------------------------------------------------------------------------------------------------------


def test_delete_answers_with_the_id_and_the_model_is_gone(client: Any) -> None:
    answer = client.simulate_delete("/v1/models/org%2Fname:Q4@main")

    assert answer.status_code == 200
    assert answer.json == {"id": "org/name:Q4@main", "object": "model", "deleted": True, "message": "Deleted successfully!"}
    assert client.simulate_get("/v1/models/org%2Fname:Q4@main").status_code == 404


@pytest.mark.parametrize("name", ["nope", "catalogue-only"])
def test_delete_of_what_is_not_here_is_404(client: Any, name: str) -> None:
    assert client.simulate_delete(f"/v1/models/{name}").status_code == 404


# -- start and stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_start_and_stop_answer_as_the_contract_says(client: Any, method: str) -> None:
    started = client.simulate_request(method, "/v1/models/zephyr-7b/start", headers={"Content-Type": "application/json"})
    stopped = client.simulate_request(method, "/v1/models/zephyr-7b/stop")

    assert started.json == {"id": "zephyr-7b", "object": "model", "state": "running", "message": "Model zephyr-7b started"}
    assert stopped.json == {"id": "zephyr-7b", "object": "model", "state": "stopped", "message": "Model stopped"}
    check(started.json, CHANGED_STATE)


def test_stop_of_a_model_that_does_not_run_is_200_with_its_resting_state(client: Any) -> None:
    answers = [client.simulate_put(f"/v1/models/{name}/stop") for name in ("zephyr-7b", "catalogue-only")]

    assert [(one.status_code, one.json["state"]) for one in answers] == [(200, "downloaded"), (200, "not_downloaded")]


def test_settings_of_a_start_are_native_whatever_was_sent_and_unknown_fields_are_ignored(client: Any, runtime: Any) -> None:
    body = {
        "ctx_len": "4096",
        "embedding": "false",
        "n_gpu_layers": 7,
        "nonsense": [1],
        "settings": {"n_parallel": "2"},
        "ngl": None,
    }

    client.simulate_put("/v1/models/zephyr-7b/start", json=body)

    expected = {"ctx_len": 4096, "embedding": False, "ngl": 7, "n_parallel": 2}
    assert runtime.calls == [("start", "zephyr-7b", expected, True)]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ctx_len": 64}, "ctx_len"),
        ({"ctx_len": "many"}, "ctx_len"),
        ({"n_parallel": 0}, "n_parallel"),
        ({"n_parallel": 257}, "n_parallel"),
        ({"ngl": -1}, "ngl"),
        ({"cache_type": "q5"}, "cache_type"),
        ({"settings": {"ctx_len": 1}}, "settings.ctx_len"),
        ({"settings": []}, "settings"),
        ({"prompt_template": "no marker"}, "prompt_template"),
        ({"llama_model_path": "/etc/passwd"}, "llama_model_path"),
        ({"model_path": "../../x.gguf"}, "llama_model_path"),
        ({"wait": "perhaps"}, "wait"),
    ],
)
def test_a_bad_setting_of_a_start_is_400_with_its_path(client: Any, runtime: Any, body: dict[str, Any], param: str) -> None:
    answer = client.simulate_put("/v1/models/zephyr-7b/start", json=body)

    assert (answer.status_code, answer.json["error"]["param"]) == (400, param)
    assert runtime.calls == []


@pytest.mark.parametrize(("body", "query"), [({"wait": False}, ""), ({"wait": "false"}, ""), ({}, "wait=false")])
def test_a_start_that_does_not_wait_answers_starting_and_holds_no_place(
    client: Any, runtime: Any, body: dict[str, Any], query: str
) -> None:
    answer = client.simulate_put("/v1/models/zephyr-7b/start", json=body, query_string=query)

    assert (answer.status_code, answer.json["state"]) == (200, "starting")
    assert runtime.held == []


def test_a_start_that_waits_holds_a_place_of_max_requests_and_past_it_is_429(client: Any, runtime: Any) -> None:
    client.simulate_put("/v1/models/zephyr-7b/start")
    runtime.n_free = 0
    refused = client.simulate_put("/v1/models/zephyr-7b/start")

    assert runtime.held == ["start"]
    assert (refused.status_code, refused.json["error"]["code"]) == (429, "queue_full")
    assert refused.headers["retry-after"] == "2"


def test_settings_without_effect_are_named_in_a_warning(client: Any, runtime: Any) -> None:
    info = EngineInfo(n_ctx=2048, n_slots=4, n_vocab=10, warnings=("mlock: not permitted",))
    runtime.views["zephyr-7b"] = view(info=info)

    answer = client.simulate_put("/v1/models/zephyr-7b/start", json={"cont_batching": False})

    assert answer.json["warning"] == "cont_batching is always on; mlock: not permitted"


def test_stops_have_places_of_their_own_and_a_crowd_of_them_is_429(client: Any, runtime: Any) -> None:
    """A stop must work while all other places are taken, and must not take the threads that answer /healthz."""
    runtime.n_free = 0
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def slow_stop(reference: str) -> Any:
        arrived.release()
        assert go_on.wait(20)
        return runtime.model(reference)

    runtime.stop_model = slow_stop
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda: answers.append(client.simulate_put("/v1/models/phi/stop"))) for _ in range(N_STOPS)
    ]
    for thread in threads:
        thread.start()
    assert all(arrived.acquire(timeout=20) for _ in threads)

    refused = client.simulate_put("/v1/models/phi/stop")
    go_on.set()
    for thread in threads:
        thread.join(20)

    assert refused.status_code == 429
    assert [one.status_code for one in answers] == [200] * N_STOPS
    assert client.simulate_put("/v1/models/phi/stop").status_code == 200
