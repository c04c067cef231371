"""`hostler remote`: add, list, check and remove remote models. In the command line's process.

A model that is added here has its description in HOME/remotes; one that was imported from elsewhere keeps its own file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import click

from hostler import (
    InvalidModelFile,
    connect,
    home_option,
    json_option,
    model_path,
    print_json,
    print_table,
    read_settings,
)

if TYPE_CHECKING:
    from hostler_remote.description import Description
    from hostler_remote.upstream import Found

FORMAT = "remote"
KINDS = ("other", "hostler", "llamacpp", "vllm", "sglang", "ollama", "openai")
PARALLEL = 16
"""Requests at once: another machine batches them, and here they cost next to nothing."""


@click.group()
def remote() -> None:
    """Use models of other servers that speak OpenAI's API: a vLLM or SGLang cluster, another hostler, a hosted service."""


@remote.command()
@click.argument("name")
@click.option("--url", required=True, help="What /chat/completions is appended to, such as http://10.0.0.7:8000/v1.")
@click.option("--model", required=True, help="The model's name there.")
@click.option("--key-env", default="", metavar="VAR", help="Environment variable of the server that holds the key.")
@click.option("--key-keyring", default="", metavar="SERVICE", help="Service of the system's keyring that holds the key.")
@click.option("--key-user", default="hostler", metavar="USER", help="User name of the keyring's entry [hostler].")
@click.option("--key-header", default="authorization", metavar="HEADER", help="Header that carries the key [authorization].")
@click.option("--kind", type=click.Choice(KINDS), default="other", help="What it is, so which parameters it takes [other].")
@click.option("--strict", "is_strict", is_flag=True, help="Refuse parameters that OpenAI does not know.")
@click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="A further header. May be given several times.")
@click.option("--embeddings", "can_embed", is_flag=True, help="The model embeds.")
@click.option("--no-chat", "is_silent", is_flag=True, help="The model embeds only.")
@click.option("--proxy", default="", metavar="URL", help="Proxy; none: no proxy; without it as the environment says.")
@click.option("--ca-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Further certificates to trust.")
@click.option("--ctx-len", type=click.IntRange(min=128), help="Context that runs may fill, where the upstream does not tell.")
@click.option("--parallel", type=click.IntRange(1, 256), default=PARALLEL, help=f"Requests at once [{PARALLEL}].")
@click.option("--no-check", "is_unchecked", is_flag=True, help="Do not ask the upstream for the model first.")
@json_option("Print the model as JSON.")
@home_option
def add(
    name: str,
    *,
    can_embed: bool,
    is_silent: bool,
    is_strict: bool,
    headers: tuple[str, ...],
    ca_file: Path | None,
    ctx_len: int | None,
    parallel: int,
    is_unchecked: bool,
    is_json: bool,
    **texts: str,
) -> None:
    """Add a remote model under NAME, or change the one of that name.

    The key itself is never stored: name the environment variable that `hostler serve` will find it in, or put it into the
    system's keyring with `keyring set SERVICE hostler`.
    """
    description = _described(
        {
            **texts,
            "headers": dict(_pair(header) for header in headers),
            "strict": is_strict,
            "chat": not is_silent,
            "embeddings": can_embed or is_silent,
            "ca_file": str(ca_file.absolute()) if ca_file is not None else "",
        }
    )
    found = None if is_unchecked else look(description)
    settings = read_settings()
    chosen: dict[str, Any] = {"n_parallel": parallel}
    if ctx_len is not None:
        chosen["ctx_len"] = ctx_len
    path = file_of(settings.home, name)
    with connect(settings, "remote add") as client:
        known = _known(client, name)
        if known is not None and path_of(known) != path:
            raise click.ClickException(f"there is a model {name} already, which is not from here; choose another name")
        before = path.read_bytes() if path.exists() else None
        write(path, description)
        try:
            client.post("/v1/models/import", {"modelPath": str(path), "option": "symlink", "model": name})
        except click.ClickException:
            _put_back(path, before)
            raise
        client.patch(model_path(name), {"settings": chosen})
        if known is not None:
            client.put(model_path(name, "/stop"), {})  # what runs has the old one
        model = client.get(model_path(name), schema="native")
    if is_json:
        print_json(model)
        return
    click.echo(f"{name} is {description.model} at {description.url}")
    if found is not None and found.warning:
        click.echo(f"warning: {found.warning}", err=True)


@remote.command(name="list")
@json_option("Print the models as a JSON list.")
@home_option
def list_(is_json: bool) -> None:
    """Show the remote models."""
    with connect(read_settings(), "remote list", is_reading=True) as client:
        models = [model for model in client.get("/v1/models", schema="native")["data"] if model["format"] == FORMAT]
    rows = [_row(model) for model in models]
    if is_json:
        print_json(rows)
    elif rows:
        print_table(["NAME", "STATE", "MODEL", "URL", "KEY"], [list(row.values()) for row in rows])
    else:
        click.echo("No remote model is here yet. `hostler remote add NAME --url URL --model MODEL` makes one.")


@remote.command()
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@home_option
def rm(names: tuple[str, ...]) -> None:
    """Remove remote models; one that runs is stopped first. Keys, and files that were imported, stay where they are."""
    settings = read_settings()
    with connect(settings, "remote rm") as client:
        for name in names:
            model = client.get(model_path(name), schema="native")
            if model["format"] != FORMAT:
                raise click.ClickException(f"{name} is no remote model; remove it with: hostler rm {name}")
            client.delete(model_path(name))
            path = path_of(model)
            if path is not None and path.parent == folder_of(settings.home):
                path.unlink(missing_ok=True)
            click.echo(f"{model['id']} is removed")


@remote.command()
@click.argument("name")
@json_option("Print what was found as JSON.")
@home_option
def check(name: str, is_json: bool) -> None:
    """Ask the upstream of a remote model whether it is there, lets us in and has the model; exits 1 if not.

    The key is looked for in this command's environment, which may be another than the server's.
    """
    with connect(read_settings(), "remote check", is_reading=True) as client:
        model = client.get(model_path(name), schema="native")
    path = path_of(model)
    if model["format"] != FORMAT or path is None:
        raise click.ClickException(f"{name} is no remote model")
    description = _read(path)
    found = look(description)
    if is_json:
        print_json({"name": model["id"], "url": description.url, "model": description.model, "ctx_len": found.n_ctx})
        return
    context = f", with a context of {found.n_ctx} tokens" if found.n_ctx else ""
    click.echo(found.warning or f"{description.place} has {description.model}{context}")


# -- inside -----------------------------------------------------------------------------------------------------------


def folder_of(home: Path) -> Path:
    """Where descriptions lie."""
    return home / "remotes"


def file_of(home: Path, name: str) -> Path:
    """The description of a model."""
    return folder_of(home) / f"{quote(name, safe=' ')}.{FORMAT}"


def path_of(model: dict[str, Any]) -> Path | None:
    """Where the description of a registered model lies."""
    parts = urlsplit(str(model.get("source_url") or ""))
    return Path(url2pathname(parts.path)) if parts.scheme == "file" else None


def look(description: Description) -> Found:
    """Ask the upstream for the model.

    Raises:
        ModelLoadFailed: It is not there, does not let us in, or does not have it.
    """
    import asyncio

    from hostler_remote.keys import read_key
    from hostler_remote.upstream import Upstream

    async def ask() -> Found:
        upstream = Upstream(description, read_key(description), 1)
        try:
            return await upstream.look()
        finally:
            await upstream.close()

    return asyncio.run(ask())


def write(path: Path, description: Description) -> None:
    """Write a description: a reader sees the old one or the new one."""
    import msgspec

    data = msgspec.json.format(msgspec.json.encode(description), indent=2) + b"\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{os.getpid()}.part")
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error.strerror or error}") from error


def _put_back(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        path.write_bytes(before)


def _described(fields: dict[str, Any]) -> Description:
    from hostler_remote.description import description_of

    try:
        return description_of(fields)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _read(path: Path) -> Description:
    from hostler_remote.description import read_description

    return read_description(path)


def _pair(header: str) -> tuple[str, str]:
    name, has_value, value = header.partition("=")
    if not has_value:
        raise click.UsageError(f"--header takes NAME=VALUE, and {name!r} has no value")
    return name.strip(), value.strip()


def _known(client: Any, name: str) -> dict[str, Any] | None:
    """The model of that name, if there is one."""
    listed: list[dict[str, Any]] = client.get("/v1/models", schema="native")["data"]
    return next((model for model in listed if model["id"] == name), None)


def _row(model: dict[str, Any]) -> dict[str, str]:
    from hostler_remote.probe import key_state

    path = path_of(model)
    row = {"name": str(model["id"]), "state": str(model["lifecycle"])}
    try:
        if path is None:
            raise ValueError("it has no file")
        description = _read(path)
    except (InvalidModelFile, ValueError) as error:
        return {**row, "model": "-", "url": "-", "key": str(error)}
    return {**row, "model": description.model, "url": description.url, "key": key_state(description)}
