"""Variants over HTTP: the command line puts one in a model's place and takes it back; nobody else does."""

from __future__ import annotations

from typing import Any

import pytest


def test_the_command_line_may_put_a_variant_in_a_models_place_and_take_it_back(make_client: Any, runtime: Any) -> None:
    client = make_client(cli_token="token-of-this-home")
    headers = {"authorization": "Bearer token-of-this-home"}
    body = {"path": "/m/x.gguf", "settings": {"n_batch": "256", "cpu_threads": None}, "metadata": {"by": "me"}}

    taken = client.simulate_put("/v1/models/org/name:Q4@main/variant", json=body, headers=headers)
    dropped = client.simulate_delete("/v1/models/phi/variant", headers=headers)

    assert taken.json["modelHandle"] == "org/name:Q4@main"
    assert dropped.json["message"] == "phi keeps running as it was started until its next start"
    assert runtime.calls == [
        ("take_variant", "org/name:Q4@main", "/m/x.gguf", {"n_batch": 256, "cpu_threads": None}, {"by": "me"}),
        ("drop_variant", "phi"),
    ]


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_variants_are_for_hostlers_own_commands(make_client: Any, runtime: Any, method: str) -> None:
    answer = make_client(allow_file_sources=True).simulate_request(method, "/v1/models/phi/variant", json={})

    assert (answer.status_code, answer.json["error"]["code"]) == (400, "unsupported_parameter")
    assert runtime.calls == []


def test_variants_body_blames_its_own_fields(make_client: Any) -> None:
    client = make_client(cli_token="t")

    answer = client.simulate_put(
        "/v1/models/phi/variant", json={"settings": {"n_batch": 0}}, headers={"authorization": "Bearer t"}
    )

    assert (answer.status_code, answer.json["error"]["param"]) == (400, "settings.n_batch")
