"""The ledger refuses a load before it begins, with both numbers, and what runs already runs on."""

from __future__ import annotations

import re
from typing import Any

import httpx

BUDGET_MIB = 64
"""Of the server of `tight`."""


def too_large(engine: str) -> dict[str, Any]:
    """Settings with which a tiny model is over the budget though nothing else ran: its KV cache alone is."""
    return {"ctx_len": 32768 if engine == "echo" else 2048, "n_parallel": 256}


def pid_of(http: httpx.Client, model: str) -> int | None:
    run = http.get(f"/v1/models/{model}").json()["hostler"]
    return None if run is None else int(run["pid"])


def test_a_model_that_alone_is_over_the_budget_is_refused_before_it_loads_and_the_other_runs_on(
    tight: httpx.Client, engine: str
) -> None:
    started = tight.put("/v1/models/neighbour/start", json={"ctx_len": 512, "n_parallel": 1})
    assert started.json()["state"] == "running", started.text
    pid = pid_of(tight, "neighbour")

    answer = tight.put(f"/v1/models/{engine}/start", json=too_large(engine))

    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (507, "insufficient_memory"), answer.text
    needed, available = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) MiB (?:with|are)", error["message"]))
    assert needed > available
    assert available <= BUDGET_MIB
    assert pid_of(tight, engine) is None
    assert tight.get(f"/v1/models/{engine}").json()["lifecycle"] in {"stopped", "downloaded"}
    assert pid_of(tight, "neighbour") == pid
    said = tight.post(
        "/v1/completions", json={"model": "neighbour", "prompt": "still here", "max_tokens": 10, "temperature": 0}
    )
    assert said.json()["choices"][0]["text"] == "still here"
    assert pid_of(tight, "neighbour") == pid


def test_a_request_for_a_model_that_does_not_fit_is_told_so_too(tight: httpx.Client, engine: str) -> None:
    assert tight.patch(f"/v1/models/{engine}", json={"settings": too_large(engine)}).status_code == 200

    answer = tight.post("/v1/completions", json={"model": engine, "prompt": "x", "max_tokens": 1})

    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "insufficient_memory"), answer.text
    assert pid_of(tight, engine) is None
