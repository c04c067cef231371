"""`hostler bench`: models measured side by side, each in its own engine, through the server of this home or without one.

Only ratios within one call mean something: the rounds are interleaved, so that whatever else the machine does meanwhile
falls on all models alike, and each begins with another model.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click
import msgspec

from hostler.cli.options import home_option, json_option, print_json, print_table, read_settings, show_bytes
from hostler.cli.running import read_overrides
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.cli.client import Client

_TEXT = (
    "time year people way day man thing woman life child world school state family student group country problem hand part "
    "place case week company system program question work government number night point home water room mother area money "
    "story fact month lot right study book eye job word business issue side kind head house service friend father power "
    "hour game line end member law car city name team minute idea body back parent face others level office door health "
    "person art war history party result change morning reason research girl guy moment air teacher force education"
)
WORDS = tuple(_TEXT.split())
"""Common English words; nearly all of them one token in any vocabulary."""
WARM_UP_TOKENS = 8


class Round(msgspec.Struct, frozen=True):
    """One answer. Prefill and decode are by the worker's clock, the first token by this command's."""

    prompt_tokens: int
    prefill_s: float
    """From the first prefill step to the first token."""
    ttft_s: float
    """From sending the request to the first text."""
    new_tokens: int
    decode_s: float
    """From the first token to the last."""

    @property
    def prefill_speed(self) -> float | None:
        """Prompt tokens a second."""
        return self.prompt_tokens / self.prefill_s if self.prompt_tokens and self.prefill_s > 0 else None

    @property
    def decode_speed(self) -> float | None:
        """Tokens a second after the first one."""
        return (self.new_tokens - 1) / self.decode_s if self.new_tokens > 1 and self.decode_s > 0 else None


class Spread(msgspec.Struct, frozen=True):
    """What the rounds had."""

    median: float
    min: float
    max: float


class Measured(msgspec.Struct):
    """One model, and what was seen of it."""

    id: str
    engine: str = ""
    engine_version: str = ""
    device: str = ""
    quantization: str = ""
    size_bytes: int | None = None
    ctx_len: int = 0
    n_parallel: int = 0
    pid: int | None = None
    start_s: float | None = None
    """Until it answered; None: it ran already."""
    n_loads: int = 0
    """Starts during the rounds: more than none means that the models do not fit into memory together."""
    memory_bytes: int | None = None
    """Resident in main memory, after the rounds."""
    granted_bytes: int = 0
    """What the ledger keeps for it."""
    rounds: list[Round] = []


def spread(values: Sequence[float | None]) -> Spread | None:
    """The median of what there is, and its ends; None where nothing is."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def make_prompt(n_words: int, source: random.Random) -> str:
    """A text that no earlier round has had, so that no cache can help."""
    return " ".join(source.choice(WORDS) for _ in range(n_words))


def rotated(models: Sequence[Measured], number: int) -> list[Measured]:
    """The order of a round: each model is first in turn."""
    first = number % len(models)
    return [*models[first:], *models[:first]]


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...")
@click.option("--rounds", type=click.IntRange(1, 1000), default=5, help="Answers a model [5].")
@click.option(
    "--prompt-tokens",
    "n_prompt",
    type=click.IntRange(1, 100_000),
    default=128,
    help="Length of the prompts, about [128].",
)
@click.option("--tokens", "n_new", type=click.IntRange(2, 100_000), default=64, help="Length of the answers [64].")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    callback=read_overrides,
    help="A setting that all of them run with, such as ctx_len=2048 or cpu_threads=2. May be given several times.",
)
@json_option("Print everything that was measured as JSON, each round included.")
@home_option
def bench(models: tuple[str, ...], rounds: int, n_prompt: int, n_new: int, settings: dict[str, str], is_json: bool) -> None:
    """Measure models side by side: prefill, first token, decode, memory.

    Each round asks every model for one answer to the same new prompt, one model after the other; shown are the medians.
    Prefill and decode are by the worker's clock, the first token by this command's. What did not run before is started,
    and stopped afterwards.
    """
    from hostler.cli.client import connect
    from hostler.cli.run import ensure_here

    with connect(read_settings(), "bench") as client:
        names = [ensure_here(client, model) for model in models]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise click.UsageError(f"{', '.join(twice)} is named twice; a model is measured against others")
        measured = [Measured(name) for name in names]
        with left_as_found(client, measured):
            measure(client, measured, rounds, n_prompt, n_new, settings)
    if is_json:
        print_json(report(measured, n_prompt, n_new))
        return
    print_table(["", *(model.id for model in measured)], rows(measured))
    for model in measured:
        if model.n_loads:
            click.echo(f"{model.id} was unloaded and loaded again {model.n_loads} times: they do not fit together", err=True)


@contextmanager
def left_as_found(client: Client, models: Sequence[Measured]) -> Iterator[None]:
    """Stop afterwards what did not run before."""
    from hostler.cli.client import model_path

    rested = [model for model in models if client.get(model_path(model.id))["lifecycle"] not in {"running", "starting"}]
    try:
        yield
    finally:
        if client.address is not None:  # without a server they end with this process
            for model in rested:
                client.put(model_path(model.id, "/stop"), {})


def measure(
    client: Client, models: Sequence[Measured], n_rounds: int, n_prompt: int, n_new: int, settings: dict[str, str]
) -> None:
    """Run the rounds and fill in what they show."""
    source = random.Random()
    for model in models:
        ready(client, model, n_prompt, settings, source)
    for number in range(n_rounds):
        click.echo(f"round {number + 1} of {n_rounds}", err=True)
        prompt = make_prompt(n_prompt, source)
        for model in rotated(models, number):
            ready(client, model, n_prompt, settings, source)
            model.rounds.append(ask(client, model.id, prompt, n_new))
    for model in models:
        model.memory_bytes = resident_bytes(model.pid)


def ready(client: Client, model: Measured, n_prompt: int, settings: dict[str, str], source: random.Random) -> None:
    """See that a model runs; a process that has just started answers once before it is measured."""
    from hostler.cli.client import model_path

    started = time.monotonic()
    was_running = client.get(model_path(model.id))["lifecycle"] == "running"
    client.put(model_path(model.id, "/start"), dict(settings))
    took_s = time.monotonic() - started
    found = client.get(model_path(model.id), schema="native")
    run = found.get("hostler") or {}
    if run.get("pid") == model.pid:
        return
    if model.pid is not None:
        model.n_loads += 1
    elif not was_running:
        model.start_s = took_s
    model.pid, model.granted_bytes = run.get("pid"), run.get("memory_bytes", 0)
    model.engine, model.device = found["engine"], run.get("device", "")
    model.engine_version = run.get("engine_version", "")
    model.quantization = found["metadata"].get("quantization", "")
    model.size_bytes = found["metadata"].get("size_bytes")
    model.ctx_len, model.n_parallel = int(found["settings"]["ctx_len"]), int(found["settings"]["n_parallel"])
    ask(client, model.id, make_prompt(n_prompt, source), WARM_UP_TOKENS)


def ask(client: Client, model: str, prompt: str, n_new: int) -> Round:
    """One answer of just so many tokens.

    Raises:
        click.ClickException: The model refused, or sent no timings.
    """
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": n_new,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    started = time.monotonic()
    first_s: float | None = None
    timings: dict[str, Any] = {}
    for event in client.stream("/v1/completions", body):
        if first_s is None and any(choice.get("text") for choice in event.get("choices", ())):
            first_s = time.monotonic() - started
        timings = event.get("timings") or timings
    if not timings:
        raise click.ClickException(f"{model} answered without timings; its engine cannot be measured")
    whole_s = time.monotonic() - started
    return Round(
        prompt_tokens=timings["prompt_n"] + timings["cached_n"],
        prefill_s=timings["prompt_ms"] / 1000,
        ttft_s=first_s if first_s is not None else whole_s,
        new_tokens=timings["predicted_n"],
        decode_s=timings["predicted_ms"] / 1000,
    )


def resident_bytes(pid: int | None) -> int | None:
    """Main memory of a worker; None: it is gone, or the system does not tell."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss) if pid is not None else None
    except psutil.Error:
        return None


def rows(models: Sequence[Measured]) -> list[list[str]]:
    """The table, one column a model."""

    def each(name: str, values: Sequence[str]) -> list[str]:
        return [name, *values]

    def speeds(values: Sequence[Sequence[float | None]], form: str) -> list[str]:
        return [show_spread(spread(value), form) for value in values]

    return [
        each("engine", [f"{model.engine} ({model.device})" if model.device else model.engine for model in models]),
        each("format", [model.quantization or "-" for model in models]),
        each("size", [show_bytes(model.size_bytes) for model in models]),
        each("context", [f"{model.ctx_len} x {model.n_parallel}" for model in models]),
        each("start", ["-" if model.start_s is None else f"{model.start_s:.2f} s" for model in models]),
        each("prompt tokens", speeds([[one.prompt_tokens for one in model.rounds] for model in models], "{:.0f}")),
        each("prefill", speeds([[one.prefill_speed for one in model.rounds] for model in models], "{:.0f} tok/s")),
        each("first token", speeds([[one.ttft_s * 1000 for one in model.rounds] for model in models], "{:.0f} ms")),
        each("new tokens", speeds([[one.new_tokens for one in model.rounds] for model in models], "{:.0f}")),
        each("decode", speeds([[one.decode_speed for one in model.rounds] for model in models], "{:.1f} tok/s")),
        each("memory", [show_bytes(model.memory_bytes) for model in models]),
    ]


def show_spread(found: Spread | None, form: str) -> str:
    """`211.4 tok/s (198.0-215.2)`; one number where all rounds had the same."""
    if found is None:
        return "-"
    number = form.partition(" ")[0]
    low, high = number.format(found.min), number.format(found.max)
    return form.format(found.median) + ("" if low == high else f" ({low}-{high})")


def report(models: Sequence[Measured], n_prompt: int, n_new: int) -> dict[str, Any]:
    """All of it, for programs."""
    return {
        "prompt_tokens": n_prompt,
        "new_tokens": n_new,
        "models": [
            {
                **msgspec.to_builtins(model),
                "prefill_tokens_per_s": spread([one.prefill_speed for one in model.rounds]),
                "decode_tokens_per_s": spread([one.decode_speed for one in model.rounds]),
                "ttft_s": spread([one.ttft_s for one in model.rounds]),
            }
            for model in models
        ],
    }


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `bench`."""
    cli.add_command(bench)
