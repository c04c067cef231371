"""PATCH /v1/models/{model_id}: what can be changed of a model, how it is kept, and when it counts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.conftest import Client
from hostler.api.app import create_app
from hostler.api.schema.models import read_update
from hostler.config import load_settings
from hostler.errors import InvalidRequest
from hostler.library.manifest import MAX_MANIFEST_BYTES, read_manifest
from hostler.plugins import get_plugins
from hostler.runtime import Runtime
from hostler.views import ModelChanges


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def real(home: Path) -> Iterator[Runtime]:
    """A runtime with one model, `parrot`, of the engine without weights."""
    settings = load_settings(home, environ={}).replace(stop_timeout_s=2)
    runtime = Runtime(settings, get_plugins())
    (home.parent / "parrot.echo").write_text("{}")
    runtime.import_model(str(home.parent / "parrot.echo"))
    yield runtime
    runtime.close(0)


@pytest.fixture
def parrot(real: Runtime) -> Client:
    return Client(create_app(real, real.settings))


def patch(client: Client, body: dict[str, Any], model: str = "parrot") -> Any:
    answer = client.simulate_patch(f"/v1/models/{model}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json


# -- what a body means --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "settings", "parameters"),
    [
        ({"ctx_len": "2048", "temperature": "0.5"}, {"ctx_len": 2048}, {"temperature": 0.5}),
        ({"settings": {"embedding": "false"}, "parameters": {"top_k": "7"}}, {"embedding": False}, {"top_k": 7}),
        ({"parameters": {"ctx_len": 512, "top_p": "1"}}, {"ctx_len": 512}, {"top_p": 1.0}),
        ({"engine_parameters": {"ngl": 3}, "model_parameters": {"stop": "end"}}, {"ngl": 3}, {"stop": ["end"]}),
        ({"ngl": 1, "settings": {"ngl": 2}, "engine_parameters": {"ngl": 3}}, {"ngl": 1}, {}),
        ({"n_gpu_layers": 5, "max_tokens": 9}, {"ngl": 5}, {"token_limit": 9}),
        ({"ctx_len": None, "temperature": None}, {"ctx_len": None}, {"temperature": None}),
        ({"n_gpu_layers": None, "max_completion_tokens": None}, {"ngl": None}, {"token_limit": None}),
        ({"settings": {"ngl": 2}, "ngl": None}, {"ngl": None}, {}),
        ({"settings": None, "parameters": None, "metadata": None}, {}, {}),
        ({"nonsense": 1, "id": "other", "state": "running", "files": []}, {}, {}),
    ],
)
def test_settings_and_parameters_are_taken_flat_and_in_groups(
    body: dict[str, Any], settings: dict[str, Any], parameters: dict[str, Any]
) -> None:
    changes = read_update(body)

    assert (changes.settings, changes.parameters) == (settings, parameters)


def test_a_null_name_is_the_id_again_and_one_that_is_not_sent_stays() -> None:
    assert read_update({"name": None, "description": None}) == ModelChanges(name="", description="")
    assert read_update({}) == ModelChanges()


def test_what_the_file_says_of_itself_cannot_be_changed() -> None:
    metadata = {"size": "900B", "size_bytes": "x", "context_length": 1, "engine": "other", "author": "me", "size_note": 1}

    assert read_update({"metadata": metadata}).metadata == {"author": "me", "size_note": 1}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"ctx_len": 1}, "ctx_len"),
        ({"settings": {"n_parallel": 0}}, "settings.n_parallel"),
        ({"parameters": {"temperature": "hot"}}, "parameters.temperature"),
        ({"parameters": {"ctx_len": 1}}, "parameters.ctx_len"),
        ({"model_parameters": {"top_p": 2}}, "model_parameters.top_p"),
        ({"settings": []}, "settings"),
        ({"name": 7}, "name"),
        ({"name": "x" * 257}, "name"),
        ({"metadata": "x"}, "metadata"),
        ({"prompt_template": "no marker"}, "prompt_template"),
        ({"llama_model_path": "../../x.gguf"}, "llama_model_path"),
        ({"settings": {"mmproj": "/etc/passwd"}}, "settings.mmproj"),
        ({"parameters": {"grammar_file": "a/../../b"}}, "parameters.grammar_file"),
    ],
)
def test_a_bad_value_is_refused_with_its_path(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        read_update(body)

    assert raised.value.param == param


# -- what is kept -------------------------------------------------------------------------------------------------------


def test_a_change_is_answered_with_the_model_and_in_cortex_s_words(parrot: Client) -> None:
    answer = patch(parrot, {"ctx_len": "1024", "temperature": 0.2, "name": "Polly", "description": "Talks"})

    assert (answer["result"], answer["modelHandle"], answer["message"]) == (
        "Updated successfully!",
        "parrot",
        "parrot is updated",
    )
    assert answer["config"]["settings"]["ctx_len"] == 1024
    assert (answer["parameters"]["ctx_len"], answer["parameters"]["temperature"]) == (1024, "0.2")
    got = parrot.simulate_get("/v1/models/parrot").json
    assert {name: answer[name] for name in got} == got
    assert (got["name"], got["description"]) == ("Polly", "Talks")


def test_changes_are_merged_and_survive_the_server(parrot: Client, real: Runtime, home: Path) -> None:
    patch(parrot, {"n_parallel": 2, "metadata": {"author": "me", "note": "x"}})
    patch(parrot, {"cpu_threads": "1", "stop": ["end"], "metadata": {"note": None}})
    real.close(0)

    again = Runtime(real.settings, get_plugins())
    manifest = again.model("parrot").manifest
    again.close(0)

    assert manifest.settings == {"n_parallel": 2, "cpu_threads": 1}
    assert manifest.parameters == {"stop": ["end"]}
    assert manifest.metadata["author"] == "me"
    assert "note" not in manifest.metadata
    assert read_manifest(home / "models" / "parrot") == manifest


def test_null_takes_a_field_back_to_its_default(parrot: Client, real: Runtime) -> None:
    patch(parrot, {"n_parallel": 2, "top_k": 5, "name": "Polly", "description": "Talks"})

    answer = patch(parrot, {"n_parallel": None, "parameters": {"top_k": None}, "name": None, "description": None})

    assert (answer["config"]["settings"]["n_parallel"], answer["config"]["parameters"]["top_k"]) == (4, 0)
    assert (answer["name"], answer["description"]) == ("parrot", "")
    assert real.model("parrot").manifest.settings == {}


def test_a_file_setting_names_one_of_the_model_s_files_or_none(parrot: Client, real: Runtime) -> None:
    wrong = parrot.simulate_patch("/v1/models/parrot", json={"llama_model_path": "other.gguf"})
    patch(parrot, {"llama_model_path": "parrot.echo", "mmproj": "", "grammar_file": ""})
    named = real.model("parrot").manifest.settings
    patch(parrot, {"llama_model_path": ""})

    assert (wrong.status_code, wrong.json["error"]["param"]) == (400, "settings.llama_model_path")
    assert named == {"llama_model_path": "parrot.echo"}
    assert real.model("parrot").manifest.settings == {}


def test_a_model_sent_back_as_it_was_read_changes_nothing_that_it_is(parrot: Client, real: Runtime) -> None:
    before = real.model("parrot")

    patch(parrot, parrot.simulate_get("/v1/models/parrot").json)

    after = real.model("parrot")
    assert (after.ctx_len, after.n_parallel) == (before.ctx_len, before.n_parallel)
    assert after.manifest.metadata == before.manifest.metadata
    assert after.manifest.files == before.manifest.files
    assert after.manifest.name == before.manifest.name


def test_a_bad_value_changes_nothing(parrot: Client, real: Runtime) -> None:
    before = real.model("parrot").manifest

    answer = parrot.simulate_patch("/v1/models/parrot", json={"name": "new", "n_parallel": 0})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, "n_parallel")
    assert real.model("parrot").manifest == before


def test_metadata_that_could_not_be_read_again_is_refused(parrot: Client, real: Runtime) -> None:
    answer = parrot.simulate_patch("/v1/models/parrot", json={"metadata": {"note": "x" * MAX_MANIFEST_BYTES}})

    assert (answer.status_code, answer.json["error"]["param"]) == (400, "metadata")
    assert "note" not in real.model("parrot").manifest.metadata


@pytest.mark.parametrize(
    ("method", "model", "status", "code"),
    [
        ("PATCH", "nope", 404, "model_not_found"),
        ("PATCH", "smollm2", 409, "model_not_downloaded"),
        ("POST", "parrot", 405, "method_not_allowed"),
    ],
)
def test_only_a_model_that_is_here_can_be_changed_and_only_by_patch(
    parrot: Client, method: str, model: str, status: int, code: str
) -> None:
    answer = parrot.simulate_request(method, f"/v1/models/{model}", json={"ctx_len": 512})

    assert (answer.status_code, answer.json["error"]["code"]) == (status, code)


def test_ids_with_slashes_can_be_changed(parrot: Client, real: Runtime, tmp_path: Path) -> None:
    (tmp_path / "other.echo").write_text("{}")
    real.import_model(str(tmp_path / "other.echo"), "org/name:Q4@main")

    answer = patch(parrot, {"ctx_len": 512}, model="org%2Fname:Q4@main")

    assert answer["id"] == "org/name:Q4@main"


def test_settings_without_effect_are_named(parrot: Client) -> None:
    assert "cont_batching is always on" in patch(parrot, {"cont_batching": False})["message"]
    assert "grp_attn_n" in patch(parrot, {"grp_attn_n": 2})["message"]
    assert "grp_attn_n" not in patch(parrot, {"grp_attn_n": None})["message"], "it is taken back"


def test_a_change_is_told_and_one_that_changes_nothing_is_not(parrot: Client, real: Runtime) -> None:
    follower = real.events.follow(0, ("model.updated",))

    for n_parallel in (2, 2, 3):
        patch(parrot, {"n_parallel": n_parallel})
    patch(parrot, {"name": "the last"})
    found = [event for event in itertools.islice(follower.events(5.0), 3) if event is not None]
    follower.close()

    assert [(event.name, event.subject) for event in found] == [("model.updated", "parrot")] * 3
    later = real.events.follow(found[-1].id, ("model.updated",))
    assert list(itertools.islice(later.events(0.0), 1)) == [None]
    later.close()


# -- when it counts -----------------------------------------------------------------------------------------------------


def test_parameters_count_from_the_next_request_on(parrot: Client) -> None:
    body = {"model": "parrot", "messages": [{"role": "user", "content": "one two three four five"}], "temperature": 0}
    before = parrot.simulate_post("/v1/chat/completions", json=body).json

    patch(parrot, {"token_limit": 3})
    after = parrot.simulate_post("/v1/chat/completions", json=body).json

    assert before["choices"][0]["finish_reason"] == "stop"
    assert (after["choices"][0]["finish_reason"], after["usage"]["completion_tokens"]) == ("length", 3)


def test_a_running_model_keeps_its_settings_until_it_is_started_again(parrot: Client) -> None:
    parrot.simulate_put("/v1/models/parrot/start", json={"ctx_len": 512, "n_parallel": 2})

    changed = patch(parrot, {"ctx_len": 1024, "n_parallel": 3})
    listed = parrot.simulate_get("/v1/models").json["data"][0]
    running = parrot.simulate_get("/v1/models/parrot", query_string="schema=native").json

    assert changed["message"] == "parrot keeps running with its settings until its next start"
    for shown in (changed, running, listed):
        assert (shown["config"]["settings"]["ctx_len"], shown["config"]["settings"]["n_parallel"]) == (1024, 3)
        run = shown["hostler"]["settings"]
        assert (run["ctx_len"], run["n_parallel"]) == (512, 2)
    assert (running["settings"]["ctx_len"], running["parameters"]["n_parallel"]) == (512, 2)
    assert listed["settings"]["ctx_len"] == "512"

    parrot.simulate_put("/v1/models/parrot/stop")
    started = parrot.simulate_put("/v1/models/parrot/start")

    assert started.json["state"] == "running"
    run = parrot.simulate_get("/v1/models/parrot").json["hostler"]
    assert (run["settings"]["ctx_len"], run["settings"]["n_parallel"]) == (1024, 3)


def test_a_start_after_a_change_loads_the_model_again_and_another_one_does_not(parrot: Client) -> None:
    def pid() -> int:
        return int(parrot.simulate_get("/v1/models/parrot").json["hostler"]["pid"])

    parrot.simulate_put("/v1/models/parrot/start")
    first = pid()
    patch(parrot, {"temperature": 0.1, "name": "Polly"})
    parrot.simulate_put("/v1/models/parrot/start")
    same = pid()
    patch(parrot, {"n_parallel": 2})
    parrot.simulate_put("/v1/models/parrot/start")
    second = pid()
    parrot.simulate_put("/v1/models/parrot/start")

    assert first == same
    assert second != first
    assert pid() == second


def test_a_chat_never_loads_a_running_model_again(parrot: Client) -> None:
    body = {"model": "parrot", "messages": [{"role": "user", "content": "Hello"}]}
    parrot.simulate_post("/v1/chat/completions", json=body)
    before = parrot.simulate_get("/v1/models/parrot").json["hostler"]["pid"]

    patch(parrot, {"n_parallel": 2})
    answer = parrot.simulate_post("/v1/chat/completions", json=body)

    assert answer.status_code == 200
    assert parrot.simulate_get("/v1/models/parrot").json["hostler"]["pid"] == before


def test_a_run_s_own_settings_are_not_what_is_kept(parrot: Client) -> None:
    parrot.simulate_put("/v1/models/parrot/start", json={"ctx_len": 256})

    shown = parrot.simulate_get("/v1/models/parrot").json

    assert shown["hostler"]["settings"]["ctx_len"] == shown["parameters"]["ctx_len"] == 256
    assert shown["config"]["settings"]["ctx_len"] == 8192


def test_changes_of_settings_are_written_as_one(parrot: Client, home: Path) -> None:
    """A reader of the folder never sees half of a change: the file is replaced, not written over."""
    path = home / "models" / "parrot" / "model.json"
    before = path.stat().st_ino

    patch(parrot, {"n_parallel": 2, "cpu_threads": 1})

    assert path.stat().st_ino != before
    assert json.loads(path.read_text())["settings"] == {"n_parallel": 2, "cpu_threads": 1}
    assert [one.name for one in path.parent.iterdir()] == ["model.json"]
