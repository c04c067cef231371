"""docs/engines.md is true: each row of its tables of features is tried on each engine, over HTTP where HTTP shows it.

`yes`, `no`, `ignored` and `upstream` mean what the page says of them. A row without a probe fails, so does a cell of another
word.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from typing import Any

import click
import httpx
import jsonschema
import pytest

from support.server import eventually

from .asking import Asked, assert_ended_amid_decode, assert_ended_amid_prefill, caught, delete, listed
from .conftest import ENGINES as LOCAL
from .conftest import N_CTX, ROOT

PAGE = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
ENGINES = (*LOCAL, "remote")
WORDS = ("yes", "no", "ignored", "upstream")
USUAL = {"ctx_len": 2048, "n_parallel": 2, "n_batch": 64, "speculation": "off"}
SOON_S = 3.0
LONG = " ".join(f"Rule {number}: no lamp, no key, no oil {number}." for number in range(9))
DRAWN = {"temperature": 1, "top_p": 1, "min_p": 0, "seed": 3, "cache_prompt": False, "ignore_eos": True}
GREEDY = {"temperature": 0, "cache_prompt": False, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}


def table() -> dict[str, dict[str, str]]:
    """Feature -> engine -> the first word of its cell."""
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in PAGE.partition("## What each does")[2].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("|") else []
        if cells and cells[0].strip() == "feature":
            columns = [cell.strip(" `|") for cell in cells[1:]]
        elif len(cells) > 1 and not cells[0].startswith("---"):
            words = [re.match(r"\w*", cell.strip(" |")) for cell in cells[1:]]
            assert cells[0] not in found, f"{cells[0]} has two rows"
            found[cells[0]] = dict(zip(columns, (word[0] for word in words if word), strict=True))
    return found


ROWS = table()


class Host:
    """One engine's model on the server."""

    def __init__(self, url: str, http: httpx.Client, engine: str) -> None:
        self.url = url
        self.http = http
        self.engine = engine
        self.model = "far" if engine == "remote" else engine

    def start(self, **settings: Any) -> httpx.Response:
        return self.http.put(f"/v1/models/{self.model}/start", json={**USUAL, **settings})

    def run(self, **settings: Any) -> str:
        """Have it run with these settings; what the start warned of."""
        answer = self.start(**settings)
        assert answer.status_code == 200, answer.text
        return str(answer.json().get("warning", ""))

    def run_long(self, **settings: Any) -> None:
        """With room for what takes seconds, and nothing kept of it; of `far`, its upstream."""
        Host(self.url, self.http, "echo" if self.engine == "remote" else self.engine).run(
            ctx_len=N_CTX, cache_ram_mib=0, cache_disk_mib=0, **settings
        )
        self.run(ctx_len=N_CTX, cache_ram_mib=0, cache_disk_mib=0, **settings)

    def post(self, path: str = "/v1/completions", **fields: Any) -> httpx.Response:
        prompt = {} if path != "/v1/completions" else {"prompt": "The engines are warm.", "max_tokens": 24}
        return self.http.post(path, json={"model": self.model, **prompt, **fields})

    def answer(self, path: str = "/v1/completions", **fields: Any) -> dict[str, Any]:
        answer = self.post(path, **fields)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def text(self, **fields: Any) -> str:
        return str(self.answer(**fields)["choices"][0]["text"])

    def n_cached(self, prompt: str, **fields: Any) -> int:
        answer = self.answer(prompt=prompt, **{"max_tokens": 2, "temperature": 0, **fields})
        return int(answer["usage"]["prompt_tokens_details"]["cached_tokens"])


Probe = Callable[[Host], str]
PROBES: dict[str, Probe] = {}


def probe(feature: str) -> Callable[[Probe], Probe]:
    """Says which row a function tries: it gives the word that the cell should have."""

    def keep(function: Probe) -> Probe:
        PROBES[feature] = function
        return function

    return keep


def yes_or_no(answer: httpx.Response, param: str) -> str:
    """Whether it was answered, or refused as the page promises."""
    if answer.status_code == 200:
        return "yes"
    error = answer.json()["error"]
    assert answer.status_code == 400, answer.text
    assert error["param"] == param, answer.text
    assert error["code"] in ("unsupported_parameter", "embeddings_disabled"), answer.text
    return "no"


# -- answers ----------------------------------------------------------------------------------------------------------


@probe("chats")
def chats(host: Host) -> str:
    answer = host.answer("/v1/chat/completions", messages=[{"role": "user", "content": "Hi there"}], max_tokens=5)
    return "yes" if answer["choices"][0]["message"]["content"] else "no"


@probe("`stream`, `n`")
def streams(host: Host) -> str:
    answer = host.post(stream=True, n=2, **GREEDY)
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    indices = {choice["index"] for line in lines[:-1] for choice in json.loads(line)["choices"]}
    return "yes" if indices == {0, 1} else "no"


@probe("`stop`")
def stops(host: Host) -> str:
    text = host.text(**GREEDY)
    stop = text[8:11]
    return "yes" if host.text(stop=[stop], **GREEDY) == text[: text.index(stop)] else "no"


@probe("token ids as a prompt")
def takes_token_ids(host: Host) -> str:
    return "yes" if host.answer(prompt=[65, 66, 67])["usage"]["prompt_tokens"] == 3 else "no"


@probe("`seed`")
def seeds(host: Host) -> str:
    texts = [host.text(**{**DRAWN, "temperature": 1.8, "seed": seed}) for seed in (7, 7, 8, 9)]
    assert len(set(texts)) > 1
    return "yes" if texts[0] == texts[1] else "no"


@probe("`temperature`, `top_k`, `top_p`, `min_p`")
def cuts(host: Host) -> str:
    greedy = host.text(**GREEDY)
    assert host.text(**DRAWN) != greedy
    texts = [host.text(**{**DRAWN, **cut}) for cut in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1})]
    return "yes" if set(texts) == {greedy} else "no"


def changes(host: Host, *params: dict[str, Any]) -> str:
    """Whether each of these makes another answer of the same draws."""
    usual = {host.text(**DRAWN) for _ in range(2)}
    assert len(usual) == 1
    changed = [host.text(**DRAWN, **param) not in usual for param in params]
    assert all(changed) or not any(changed), f"of {params} only some change the answer: {changed}"
    return "yes" if all(changed) else "ignored"


@probe("`frequency_penalty`, `presence_penalty`, `repeat_penalty`")
def penalises(host: Host) -> str:
    return changes(host, {"frequency_penalty": 2}, {"presence_penalty": 2}, {"repeat_penalty": 3})


@probe("`typ_p`, `dynatemp_range`, `mirostat`")
def samples_otherwise(host: Host) -> str:
    mirostats = ({"mirostat": version, "mirostat_tau": 0.5} for version in (1, 2))
    return changes(host, {"typ_p": 0.1}, {"dynatemp_range": 1}, *mirostats)


@probe("`logit_bias`")
def biases(host: Host) -> str:
    text = host.text(logit_bias={"97": 100}, **GREEDY)
    return "yes" if len(set(text)) == 1 else "ignored"


@probe("`logprobs`")
def tells_logprobs(host: Host) -> str:
    logprobs = host.answer(logprobs=2, **{**GREEDY, "max_tokens": 5})["choices"][0]["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["top_logprobs"]) == 5
    return "yes"


@probe("`ignore_eos`")
def goes_on(host: Host) -> str:
    return "yes" if host.answer(max_tokens=60, **GREEDY)["usage"]["completion_tokens"] == 60 else "no"


@probe("`echo` with `logprobs`")
def tells_a_prompts_logprobs(host: Host) -> str:
    return yes_or_no(host.post(echo=True, logprobs=1), "echo")


@probe("`suffix`")
def fills_in(host: Host) -> str:
    return yes_or_no(host.post(suffix="x"), "suffix")


@probe("`tools`")
def calls_tools(host: Host) -> str:
    tools = [{"type": "function", "function": {"name": "f"}}]
    return yes_or_no(host.post("/v1/chat/completions", messages=[{"role": "user", "content": "x"}], tools=tools), "tools")


@probe("`/v1/embeddings`")
def embeds(host: Host) -> str:
    return yes_or_no(host.post("/v1/embeddings", input="one"), "model")


# -- forms ------------------------------------------------------------------------------------------------------------


@probe("`response_format`: `json_object`, `json_schema`")
def keeps_to_json(host: Host) -> str:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    for form in ({"type": "json_object"}, schema):
        answer = host.post(response_format=form, temperature=0, max_tokens=400)
        if yes_or_no(answer, "response_format") == "no":
            return "no"
        if form is schema:
            jsonschema.validate(json.loads(answer.json()["choices"][0]["text"]), SCHEMA)
    return "yes"


@probe("`guided_regex`, `guided_choice`")
def keeps_to_expressions(host: Host) -> str:
    assert host.text(guided_choice=["ab", "cd"]) in ("ab", "cd")
    return "yes" if re.fullmatch(r"\d{3}", host.text(guided_regex=r"\d{3}")) else "no"


@probe("`grammar`: GBNF, Lark")
def keeps_to_grammars(host: Host) -> str:
    texts = [host.text(grammar=grammar) for grammar in ('root ::= "x" [0-9] "!"\n', 'start: "x" /[0-9]!/')]
    return "yes" if all(re.fullmatch("x[0-9]!", text) for text in texts) else "no"


@probe("`grammar_file`")
def reads_a_grammar_file(host: Host) -> str:
    return yes_or_no(host.start(grammar_file="g.gbnf"), "grammar_file")


# -- prefixes ---------------------------------------------------------------------------------------------------------


@probe("a slot's beginning goes on in it")
def reuses_a_slot(host: Host) -> str:
    host.n_cached(f"[next turn] {LONG}")
    return "yes" if host.n_cached(f"[next turn] {LONG} And then?") > 100 else "no"


@probe("a running answer's beginning is copied")
def copies_a_running_ones(host: Host) -> str:
    """The running one counts if it runs still when the second has been answered: then its slot was not to be had."""
    for number in range(20):
        prompt = f"[{number}. copy] {LONG}"
        endless = {"prompt": prompt, "max_tokens": 1500, "logprobs": 5, "temperature": 0, "ignore_eos": True}
        running = Asked(host.url, host.model, endless)
        if caught(host.http, running, "decode", host.model):
            n_cached = host.n_cached(f"{prompt} Who?", max_tokens=1)
            is_running = bool(listed(host.http, "decode", host.model))
            running.leave()
            eventually(lambda: not listed(host.http), "nothing runs")
            if is_running:
                return "yes" if n_cached > 100 else "no"
    raise AssertionError("twenty answers were over before a second one was")


@probe("`cache_prompt: false`")
def reads_everything(host: Host) -> str:
    host.n_cached(f"[everything] {LONG}")
    return "yes" if host.n_cached(f"[everything] {LONG}", cache_prompt=False) == 0 else "ignored"


@probe("in main memory: `cache_ram_mib`")
def keeps_in_memory(host: Host) -> str:
    warning = host.run(n_parallel=1, cache_ram_mib=64, cache_disk_mib=0)
    host.n_cached(f"[memory] {LONG}")
    host.n_cached(f"(another) {LONG}")
    is_kept = host.n_cached(f"[memory] {LONG}") > 100
    assert is_kept or host.engine == "remote" or "cache_ram_mib has no effect" in warning
    return "yes" if is_kept else "ignored"


@probe("on disk: `cache_disk_mib`")
def keeps_on_disk(host: Host) -> str:
    settings = {"n_parallel": 1, "cache_ram_mib": 0, "cache_disk_mib": 64}
    warning = host.run(**settings)
    host.n_cached(f"[disk] {LONG}")
    for model in {host.model, "echo"} if host.engine == "remote" else {host.model}:
        assert host.http.put(f"/v1/models/{model}/stop").status_code == 200
    host.run(**settings)
    is_kept = host.n_cached(f"[disk] {LONG}") > 100
    assert is_kept or "cache_disk_mib has no effect" in warning
    return "yes" if is_kept else "ignored"


@probe('pins: `"cache": "pin"`')
def pins(host: Host) -> str:
    """A pin changes no answer. What it keeps when memory is short is asked of the engine that has it, in its own tests."""
    system = {"role": "system", "content": f"[pins] {LONG}"}
    texts = []
    for message in (system, {**system, "cache": "pin"}):
        messages = [message, {"role": "user", "content": "Who?"}]
        answer = host.answer("/v1/chat/completions", messages=messages, max_tokens=8, **GREEDY)
        texts.append(answer["choices"][0]["message"]["content"])
    assert texts[0] == texts[1]
    return "yes" if spec(host).keeps_prefixes else "ignored"


# -- guesses ----------------------------------------------------------------------------------------------------------


@probe("guesses from what stood before")
def guesses(host: Host) -> str:
    """Whether guessing pays is measured: one that was disturbed at that by what else runs here gets a fresh start."""
    same = {"logit_bias": {"97": 100}, "max_tokens": 100, **GREEDY}
    assert host.answer(**same)["timings"]["draft_n"] == 0, "speculation is off"
    for _ in range(8):
        host.run(speculation="auto")
        if host.answer(**same)["timings"]["draft_n"]:
            return "yes"
        assert host.http.put(f"/v1/models/{host.model}/stop").status_code == 200
    return "no"


@probe("a model that guesses: `draft_model`")
def takes_a_draft_model(host: Host) -> str:
    return yes_or_no(host.start(speculation="auto", draft_model=host.model), "draft_model")


# -- order, ends ------------------------------------------------------------------------------------------------------


@probe("`priority`, `service_tier`")
def goes_by_priority(host: Host) -> str:
    """The later one is long: had the earlier one gone first, it would be answered long before."""
    host.run_long(n_parallel=1)
    running = Asked(host.url, host.model, {"prompt": "x", "max_tokens": 15000, "logprobs": 5, **GREEDY})
    assert caught(host.http, running, "decode", host.model)
    short = {"prompt": "x", "max_tokens": 1, "service_tier": "flex"}
    early = Asked(host.url, host.model, short)
    eventually(lambda: listed(host.http, "queued", host.model), "the first one waits")
    late = Asked(host.url, host.model, {"prompt": "x", "max_tokens": 300, "priority": "interactive", **GREEDY})
    eventually(lambda: len(listed(host.http, "queued", host.model)) == 2, "the second one waits")
    running.leave()
    eventually(early.is_answered, "the first one is answered")
    is_first = late.is_answered()
    assert early.answer()[0] == late.answer()[0] == 200
    return "yes" if is_first else "ignored"


@probe("a prompt over the context is refused")
def refuses_what_does_not_fit(host: Host) -> str:
    error = host.post(prompt="x y " * 3000).json()["error"]
    assert error["code"] == "context_length_exceeded"
    return "yes" if "2048" in error["message"] or "2,048" in error["message"] else "no"


@probe("cancelled while it waits")
def ends_in_the_queue(host: Host) -> str:
    host.run_long()
    full = Asked(host.url, host.model, {"prompt": [65, 66], "n": 2, "max_tokens": 15000, "logprobs": 5, **GREEDY})
    assert caught(host.http, full, "decode", host.model)
    waiting = Asked(host.url, host.model, {"prompt": "x", "max_tokens": 1})
    found = eventually(lambda: listed(host.http, "queued", host.model), "it waits").pop()
    assert delete(host.http, waiting, found), "it was answered, with both slots taken"
    full.leave()
    eventually(lambda: not listed(host.http), "nothing runs")
    return "yes"


@probe("cancelled in its prefill")
def ends_in_its_prefill(host: Host) -> str:
    """Of `far` the prefill is its upstream's: each of 30 chunks takes 0.2 s there, so that its end in time was no other."""
    if host.engine == "remote":
        prompt = "[[echo: delay_s=0.2]]" + "x" * 1900
        asked = Asked(host.url, host.model, {"prompt": prompt, "max_tokens": 1, "cache_prompt": False})
        assert caught(host.http, asked, "prefill", "echo"), "it was answered before its prefill was seen"
        [found] = listed(host.http, "", host.model)
        assert delete(host.http, asked, found), "its upstream has answered it"
        eventually(lambda: not listed(host.http), "nothing runs, there neither", SOON_S)
        return "yes"
    host.run_long(n_parallel=1, n_batch=8)
    assert_ended_amid_prefill(host.url, host.http, host.model, delete)
    return "yes"


@probe("cancelled while it is decoded")
def ends_while_it_is_decoded(host: Host) -> str:
    host.run_long()
    assert_ended_amid_decode(host.url, host.http, host.model, delete)
    eventually(lambda: not listed(host.http), "nothing runs, there neither", SOON_S)
    return "yes"


@probe("a `device` that is not there is an error")
def wants_its_device(host: Host) -> str:
    error = host.start(device="cuda").json()["error"]
    assert (error["code"], "cuda" in error["message"].lower()) == ("model_load_failed", True)
    return "yes"


# -- settings ---------------------------------------------------------------------------------------------------------


def spec(host: Host) -> Any:
    """What its plugin registers."""
    [found] = importlib.import_module(f"hostler_{host.engine}").register_engines()
    return found


def is_heeded(**settings: Any) -> Probe:
    """Tries settings that must all have an effect, or all be named in the start's warning."""

    def try_it(host: Host) -> str:
        warning = host.run(**settings)
        ignored = [f"{name} has no effect" in warning for name in settings]
        assert all(ignored) or not any(ignored), warning
        return "ignored" if all(ignored) else "yes"

    return try_it


PROBES |= {
    "`n_batch`": is_heeded(n_batch=32),
    "`cpu_threads`": is_heeded(cpu_threads=1),
    "`max_itl_ratio`": is_heeded(max_itl_ratio=5),
    "`caching_enabled`": is_heeded(caching_enabled=False),
    "`n_draft_max`": is_heeded(n_draft_max=5),
    "`ngl`": is_heeded(ngl=3),
    "`cache_type`": is_heeded(cache_type="q8_0"),
    "`flash_attn`": is_heeded(flash_attn=False),
    "`use_mmap`, `mlock`": is_heeded(use_mmap=False, mlock=True),
}


# -- commands ---------------------------------------------------------------------------------------------------------


def has_command(name: str) -> Probe:
    """Whether its plugin brings a command: it works on this engine's models alone."""

    def try_it(host: Host) -> str:
        cli = click.Group()
        register = getattr(importlib.import_module(f"hostler_{host.engine}"), "register_commands", lambda cli: None)
        register(cli)
        return "yes" if name in cli.commands else "no"

    return try_it


PROBES |= {"`hostler tune`": has_command("tune"), "`hostler convert` makes its models": has_command("convert")}


# -- the page ---------------------------------------------------------------------------------------------------------


def test_each_row_of_the_page_has_its_probe_and_each_probe_its_row() -> None:
    assert list(ROWS) == [feature for feature in ROWS if feature in PROBES], "rows without a probe"
    assert set(PROBES) == set(ROWS), "probes without a row"


def test_each_cell_is_one_of_the_words_that_the_page_explains() -> None:
    for feature, cells in ROWS.items():
        assert set(cells) == set(ENGINES), feature
        assert set(cells.values()) <= set(WORDS), feature


@pytest.mark.parametrize("feature", PROBES)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_does_what_the_page_says(url: str, http: httpx.Client, engine: str, feature: str) -> None:
    said = ROWS[feature][engine]
    if said == "upstream":
        said = ROWS[feature]["echo"]
        Host(url, http, "echo").run()
    host = Host(url, http, engine)
    host.run()

    assert PROBES[feature](host) == said
