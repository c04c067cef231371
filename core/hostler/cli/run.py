"""`hostler run`: a chat on the terminal, or one prompt and its answer. The conversation lives here."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from hostler.cli.options import home_option, json_option, print_json, read_settings
from hostler.hookspecs import hookimpl

if TYPE_CHECKING:
    from hostler.cli.client import Client

HELP = """\
/clear   forget the conversation
/help    show this
/bye     leave (so does Ctrl-D); Ctrl-C ends the answer that is being written
\"\"\"      begins and ends a text of several lines"""

SAMPLING: tuple[tuple[str, Any, str], ...] = (
    ("temperature", click.FloatRange(0, 2), "Randomness; 0 takes the most likely token always."),
    ("top_p", click.FloatRange(0, 1), "Choose among the likeliest tokens that make up this share."),
    ("top_k", click.IntRange(0), "Choose among so many of the likeliest tokens; 0 is off."),
    ("min_p", click.FloatRange(0, 1), "Leave out tokens less likely than this share of the likeliest; 0 is off."),
    ("repeat_penalty", click.FloatRange(0), "Above 1 makes repetition less likely."),
    ("max_tokens", click.IntRange(1), "Longest answer, in tokens."),
    ("seed", int, "Makes the answer repeatable."),
)
"""Wire name, type, help."""


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for each row of SAMPLING; what is not given is left to the model."""
    for name, kind, text in reversed(SAMPLING):
        function = click.option("--" + name.replace("_", "-"), name, type=kind, help=text)(function)
    return function


@click.command()
@click.argument("model")
@click.argument("prompt", required=False)
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@sampling_options
@click.option("--stop", multiple=True, metavar="TEXT", help="End the answer before this text. May be given several times.")
@click.option("--verbose", is_flag=True, help="Show tokens and speed after each answer, on stderr.")
@json_option("Print the whole completion as JSON; needs a prompt.")
@home_option
def run(
    model: str,
    prompt: str | None,
    system: str | None,
    stop: tuple[str, ...],
    verbose: bool,
    is_json: bool,
    **sampling: Any,
) -> None:
    """Chat with a model on the terminal, or answer one PROMPT and end.

    Without PROMPT, text piped into the command is the prompt. A model that is not here yet is downloaded first; without
    a running server the model is loaded for this command alone.
    """
    from hostler.cli.client import connect

    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read()
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the prompt is empty")
    if is_json and prompt is None:
        raise click.UsageError("--json needs a prompt, as an argument or piped")
    options: dict[str, Any] = {name: value for name, value in sampling.items() if value is not None}
    if stop:
        options["stop"] = list(stop)
    with connect(read_settings(), "run") as client:
        chat = Chat(client, ensure_here(client, model), system, options, is_verbose=verbose)
        if is_json:
            chat.messages.append({"role": "user", "content": prompt})
            print_json(client.post("/v1/chat/completions", chat.body()))
        elif prompt is not None:
            if not chat.answer(prompt):
                raise click.Abort
        else:
            talk(chat)


def ensure_here(client: Client, model: str) -> str:
    """The model's id; a model that the catalogue knows is downloaded if it must be."""
    from hostler.cli.client import model_path
    from hostler.cli.pulling import pull

    found = client.get(model_path(model))
    if found["lifecycle"] in {"not_downloaded", "downloading"}:
        click.echo(f"{found['id']} is not here yet and is downloaded first", err=True)
        pull(client, model, None)
    return str(found["id"])


class Chat:
    """One conversation; used by one thread."""

    def __init__(
        self, client: Client, model: str, system: str | None, options: dict[str, Any], *, is_verbose: bool = False
    ) -> None:
        self.client = client
        self.model = model
        self.options = options
        self.is_verbose = is_verbose
        self._opening = [{"role": "system", "content": system}] if system else []
        self.messages: list[dict[str, Any]] = list(self._opening)

    def clear(self) -> None:
        """Forget everything but the system text."""
        self.messages = list(self._opening)

    def body(self) -> dict[str, Any]:
        """The request for the next answer."""
        return {"model": self.model, "messages": self.messages, **self.options}

    def answer(self, text: str) -> bool:
        """Ask, print the answer as it comes, keep both turns.

        Returns:
            False when Ctrl-C ended it; what had come by then is kept as the answer, as the user has read it.
        """
        self.messages.append({"role": "user", "content": text})
        pieces: list[str] = []
        last: dict[str, Any] = {}
        events = self.client.stream(
            "/v1/chat/completions", {**self.body(), "stream": True, "stream_options": {"include_usage": True}}
        )
        is_whole = True
        try:
            for event in events:
                last = {**last, **{name: event[name] for name in ("usage", "timings") if event.get(name)}}
                for piece in _texts(event):
                    pieces.append(piece)
                    click.echo(piece, nl=False)
        except KeyboardInterrupt:
            is_whole = False
        except BaseException:
            self.messages.pop()
            raise
        finally:
            _close(events)
            click.echo()
        if pieces:
            self.messages.append({"role": "assistant", "content": "".join(pieces)})
        else:
            self.messages.pop()
        if self.is_verbose:
            click.echo(show_speed(last), err=True)
        return is_whole


def _texts(event: dict[str, Any]) -> Iterator[str]:
    for choice in event.get("choices", ()):
        content = choice.get("delta", {}).get("content")
        if content:
            yield content


def _close(events: Iterator[dict[str, Any]]) -> None:
    # Hangs up, which cancels the generation. A second Ctrl-C meanwhile changes nothing: it is already ending.
    try:
        events.close()  # type: ignore[attr-defined]
    except KeyboardInterrupt:
        pass


def show_speed(last: dict[str, Any]) -> str:
    """One line of numbers by the worker's clock."""
    usage, timings = last.get("usage") or {}, last.get("timings") or {}
    if not timings:
        return f"{usage.get('prompt_tokens', 0)} prompt tokens, {usage.get('completion_tokens', 0)} new"
    read, cached = timings["prompt_n"] + timings["cached_n"], timings["cached_n"]
    steps, seconds = timings["predicted_n"] - 1, timings["predicted_ms"] / 1000
    speed = f", {steps / seconds:.1f} tokens/s" if steps > 0 and seconds > 0 else ""
    return f"{read} prompt tokens ({cached} cached) in {timings['prompt_ms']:.0f} ms, {timings['predicted_n']} new{speed}"


def talk(chat: Chat, read_line: Callable[[str], str] = input) -> None:
    """Ask for turns until the user leaves. An answer that fails is shown and does not end the conversation."""
    try:
        import readline  # noqa: F401 - editing and history for input(); Windows has none
    except ImportError:
        pass
    click.echo(f"{chat.model}: /help for help, /bye to leave", err=True)
    while True:
        try:
            text = read_turn(read_line).strip()
        except KeyboardInterrupt:
            click.echo("\n(/bye to leave)", err=True)
            continue
        except EOFError:
            click.echo()
            return
        if text in {"/bye", "/exit", "/quit"}:
            return
        if text == "/clear":
            chat.clear()
            click.echo("the conversation is forgotten", err=True)
        elif text in {"/help", "/?"}:
            click.echo(HELP, err=True)
        elif text.startswith("/"):
            click.echo(f"there is no command {text.split()[0]}; /help shows what there is", err=True)
        elif text:
            try:
                chat.answer(text)
            except click.ClickException as error:
                error.show()


def read_turn(read_line: Callable[[str], str]) -> str:
    '''One turn: a line, or what stands between two lines of """.'''
    line = read_line(">>> ")
    if not line.lstrip().startswith('"""'):
        return line
    lines = [line.lstrip()[3:]]
    while not lines[-1].rstrip().endswith('"""'):
        lines.append(read_line("... "))
    lines[-1] = lines[-1].rstrip()[:-3]
    return "\n".join(lines)


@hookimpl
def register_commands(cli: click.Group) -> None:
    """Add `run`."""
    cli.add_command(run)
