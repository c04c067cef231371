"""`hostler bench`: what a round asks for, how the rounds are ordered, and what the table shows."""

from __future__ import annotations

import random

import click
import pytest

from hostler.cli.bench import Measured, Round, ask, left_as_found, make_prompt, measure, report, rotated, rows, spread


class ScriptedClient:
    """An API in which every model runs at once and answers at a given speed; it remembers what it was asked."""

    address = object()

    def __init__(self, running: tuple[str, ...] = (), *, timings: bool = True) -> None:
        self.pids = {name: 100 + index for index, name in enumerate(running)}
        self.timings = timings
        self.asked: list[tuple[str, str, int]] = []
        self.bodies: list[dict] = []
        self.stopped: list[str] = []
        self.n_starts = 0

    def get(self, path: str, **query: str) -> dict:
        name = path.rpartition("/")[2]
        return {
            "id": name,
            "lifecycle": "running" if name in self.pids else "stopped",
            "engine": "made-up",
            "metadata": {"quantization": "Q4_1", "size_bytes": 98_400_000},
            "settings": {"ctx_len": 2048, "n_parallel": 4},
            "hostler": {"pid": self.pids.get(name), "device": "cpu", "memory_bytes": 5, "engine_version": "1"},
        }

    def put(self, path: str, body: dict) -> dict:
        name, _, action = path.removeprefix("/v1/models/").partition("/")
        if action == "start":
            self.n_starts += 1
            self.pids.setdefault(name, 1000 + self.n_starts)
        else:
            del self.pids[name]
            self.stopped.append(name)
        return {}

    def stream(self, path: str, body: dict):
        assert path == "/v1/completions"
        self.bodies.append(body)
        self.asked.append((body["model"], body["prompt"], body["max_tokens"]))
        yield {"choices": [{"text": "a"}]}
        last = {"choices": []}
        if self.timings:
            last["timings"] = {
                "prompt_n": 120, "cached_n": 8, "prompt_ms": 256.0,
                "predicted_n": body["max_tokens"], "predicted_ms": 10.0 * (body["max_tokens"] - 1),
            }  # fmt: skip
        yield last


def test_an_answer_has_just_so_many_tokens_and_no_help_from_a_cache() -> None:
    client = ScriptedClient(("one",))

    found = ask(client, "one", "some words", 64)

    assert found == Round(128, 0.256, found.ttft_s, 64, 0.63)
    assert found.decode_speed == pytest.approx(100)
    assert found.prefill_speed == pytest.approx(500)
    (body,) = client.bodies
    assert (body["ignore_eos"], body["cache_prompt"], body["temperature"]) == (True, False, 0)


def test_an_engine_without_timings_is_told() -> None:
    with pytest.raises(click.ClickException, match="one answered without timings"):
        ask(ScriptedClient(("one",), timings=False), "one", "some words", 64)


def test_speeds_that_cannot_be_known_are_none() -> None:
    one = Round(prompt_tokens=0, prefill_s=0.0, ttft_s=0.1, new_tokens=1, decode_s=0.0)

    assert (one.prefill_speed, one.decode_speed) == (None, None)
    assert spread([None, None]) is None


def test_rounds_are_interleaved_begin_with_each_model_in_turn_and_share_one_new_prompt() -> None:
    client = ScriptedClient()
    models = [Measured("one"), Measured("two")]

    measure(client, models, 3, 16, 32, {})

    warm_ups, rounds = client.asked[:2], client.asked[2:]
    assert [(name, n) for name, _, n in warm_ups] == [("one", 8), ("two", 8)]
    assert [name for name, _, _ in rounds] == ["one", "two", "two", "one", "one", "two"]
    prompts = [prompt for _, prompt, _ in rounds]
    assert prompts[0::2] == prompts[1::2]
    assert len({prompt for _, prompt, _ in client.asked}) == 5
    assert [len(model.rounds) for model in models] == [3, 3]


def test_a_model_that_was_unloaded_between_rounds_is_counted_and_warmed_up_again() -> None:
    class OneFits(ScriptedClient):
        def stream(self, path: str, body: dict):
            yield from super().stream(path, body)
            self.pids = {body["model"]: self.pids[body["model"]]}

    client = OneFits()
    models = [Measured("one"), Measured("two")]

    measure(client, models, 1, 4, 16, {})

    assert [model.n_loads for model in models] == [1, 1]
    assert [(name, n) for name, _, n in client.asked[2:]] == [("one", 8), ("one", 16), ("two", 8), ("two", 16)]


def test_only_what_did_not_run_before_is_stopped() -> None:
    client = ScriptedClient(("one",))
    models = [Measured("one"), Measured("two")]

    with left_as_found(client, models):
        measure(client, models, 1, 4, 4, {})

    assert client.stopped == ["two"]
    assert models[0].start_s is None
    assert models[1].start_s is not None


def test_the_order_of_a_round_begins_with_another_model() -> None:
    models = [Measured("one"), Measured("two"), Measured("three")]

    assert [[model.id for model in rotated(models, number)] for number in (0, 1, 3)] == [
        ["one", "two", "three"],
        ["two", "three", "one"],
        ["one", "two", "three"],
    ]


def test_prompts_have_the_asked_length_and_differ() -> None:
    source = random.Random(7)

    first, second = make_prompt(50, source), make_prompt(50, source)

    assert first != second
    assert len(first.split()) == 50


def test_the_table_has_a_column_a_model_with_medians_and_ends() -> None:
    model = Measured("one", engine="made-up", device="cpu", ctx_len=2048, n_parallel=4)
    model.rounds = [Round(100, seconds, 0.25, 11, 0.1) for seconds in (0.2, 0.25, 0.5)]

    shown = {row[0]: row[1] for row in rows([model])}

    assert shown["engine"] == "made-up (cpu)"
    assert shown["prefill"] == "400 tok/s (200-500)"
    assert shown["first token"] == "250 ms"
    assert shown["decode"] == "100.0 tok/s"
    assert (shown["size"], shown["start"], shown["memory"]) == ("-", "-", "-")


def test_the_report_has_medians_and_each_round() -> None:
    model = Measured("one", rounds=[Round(100, 0.2, 0.25, 11, 0.1)])

    (found,) = report([model], 100, 11)["models"]

    assert found["decode_tokens_per_s"].median == pytest.approx(100)
    assert found["rounds"] == [{"prompt_tokens": 100, "prefill_s": 0.2, "ttft_s": 0.25, "new_tokens": 11, "decode_s": 0.1}]
