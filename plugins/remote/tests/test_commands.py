"""`hostler remote`: add, list, check, rm, on a home without a server and with one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from hostler_remote.description import Description, read_description
from hostler_remote.probe import probe
from support.server import add_echo, run_hostler, serving

from .scripted import MODEL, ScriptedUpstream, refuse, say

Run = Callable[..., "CompletedProcess[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path) -> Run:
    def run(*arguments: str, **environment: str) -> CompletedProcess[str]:
        return run_hostler(home, "remote", *arguments, environment=environment)

    return run


@pytest.fixture
def added(run: Run, upstream: ScriptedUpstream) -> ScriptedUpstream:
    """An upstream that is known as `far`."""
    done = run("add", "far", "--url", upstream.url, "--model", MODEL)
    assert done.returncode == 0, done.stderr
    return upstream


def test_add_writes_a_description_that_says_what_was_asked_for(home: Path, run: Run, upstream: ScriptedUpstream) -> None:
    done = run(
        "add", "team/far", "--url", f"{upstream.url}/", "--model", MODEL, "--key-env", "FAR_KEY", "--kind", "vllm",
        "--header", "x-team=blue", "--strict", "--parallel", "32", "--ctx-len", "4096", FAR_KEY="sk-1234567890",
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (0, f"team/far is {MODEL} at {upstream.url}\n")
    (path,) = (home / "remotes").iterdir()
    assert read_description(path) == Description(
        url=upstream.url, model=MODEL, key_env="FAR_KEY", kind="vllm", headers={"x-team": "blue"}, strict=True
    )
    shown = json.loads(run_hostler(home, "show", "team/far", "--json").stdout)
    assert (shown["settings"]["n_parallel"], shown["settings"]["ctx_len"]) == (32, 4096)
    assert "sk-1234567890" not in path.read_text()


def test_add_asks_the_upstream_first_and_leaves_nothing_behind_when_it_says_no(
    home: Path, run: Run, upstream: ScriptedUpstream
) -> None:
    done = run("add", "far", "--url", upstream.url, "--model", "nope")

    assert done.returncode == 1
    assert f"does not have nope; it has {MODEL}" in done.stderr
    assert not (home / "remotes").exists()
    assert run("add", "far", "--url", upstream.url, "--model", "nope", "--no-check").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--url", "nonsense"), "it must look like https://HOST/v1"),
        (("--url", "http://user:secret@127.0.0.1:9/v1"), "does not belong in this file"),
        (("--url", "http://127.0.0.1:9/v1", "--header", "x"), "--header takes NAME=VALUE"),
        (("--url", "http://127.0.0.1:9/v1", "--key-env", "A", "--key-keyring", "b"), "choose one"),
        (("--url", "http://127.0.0.1:9/v1", "--kind", "vlm"), "--kind"),
        ((), "Missing option '--url'"),
    ],
)
def test_add_refuses_what_cannot_be_meant(run: Run, arguments: tuple[str, ...], words: str) -> None:
    done = run("add", "far", "--model", "m", *arguments)

    assert done.returncode == 2
    assert words in done.stderr
    assert "secret" not in done.stderr


def test_add_changes_the_model_of_that_name(home: Path, run: Run, added: ScriptedUpstream) -> None:
    added.models.append({"id": "newer"})

    done = run("add", "far", "--url", added.url, "--model", "newer")

    assert done.returncode == 0, done.stderr
    (path,) = (home / "remotes").iterdir()
    assert read_description(path).model == "newer"
    assert [row["model"] for row in json.loads(run("list", "--json").stdout)] == ["newer"]


@pytest.mark.usefixtures("added")
def test_a_running_model_that_is_changed_answers_from_its_new_upstream(home: Path, run: Run) -> None:
    with serving(home) as server, ScriptedUpstream() as other:
        other.manner = say("the other one")
        assert server.chat("far", "hi").json()["choices"][0]["message"]["content"] == "Hello there."

        done = run("add", "far", "--url", other.url, "--model", MODEL)

        assert done.returncode == 0, done.stderr
        assert server.chat("far", "hi").json()["choices"][0]["message"]["content"] == "the other one"


def test_add_does_not_take_the_name_of_another_model(home: Path, run: Run, upstream: ScriptedUpstream) -> None:
    add_echo(home, "mine")

    done = run("add", "mine", "--url", upstream.url, "--model", MODEL)

    assert done.returncode == 1
    assert "there is a model mine already" in done.stderr
    assert not (home / "remotes").exists()


def test_a_name_that_cannot_be_a_model_leaves_nothing_behind(home: Path, run: Run, upstream: ScriptedUpstream) -> None:
    done = run("add", "a\\b", "--url", upstream.url, "--model", MODEL)

    assert done.returncode == 1
    assert "cannot be a model id" in done.stderr
    assert list((home / "remotes").iterdir()) == []


def test_list_shows_models_with_their_keys_variables_and_whether_they_are_set(
    run: Run, added: ScriptedUpstream
) -> None:
    run("add", "keyed", "--url", added.url, "--model", MODEL, "--key-env", "FAR_KEY", "--no-check")

    lines = run("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "far", "keyed"]
    assert lines[1].endswith("no key")
    assert lines[2].endswith("key from FAR_KEY, which is not set here")
    assert run("list", FAR_KEY="sk-1234567890").stdout.splitlines()[2].endswith("key from FAR_KEY")


def test_list_of_a_home_without_remote_models_says_how_to_make_one(home: Path, run: Run) -> None:
    add_echo(home)

    assert "hostler remote add NAME" in run("list").stdout


def test_check_tells_what_the_upstream_says(run: Run, added: ScriptedUpstream) -> None:
    added.models[0]["max_model_len"] = 4096

    done = run("check", "far")
    place = added.url.removesuffix("/v1")
    assert (done.returncode, done.stdout) == (0, f"{place} has {MODEL}, with a context of 4096 tokens\n")
    assert json.loads(run("check", "far", "--json").stdout)["ctx_len"] == 4096

    added.on_get = refuse(401, "no")
    done = run("check", "far")
    assert done.returncode == 1
    assert "does not let this server in" in done.stderr


def test_check_and_rm_keep_off_other_models(home: Path, run: Run) -> None:
    add_echo(home)

    for command in ("check", "rm"):
        done = run(command, "echo")
        assert done.returncode == 1
        assert "echo is no remote model" in done.stderr
    assert "does not exist" in run("rm", "nope").stderr


@pytest.mark.usefixtures("added")
def test_rm_removes_the_model_and_its_description(home: Path, run: Run) -> None:
    done = run("rm", "far")

    assert (done.returncode, done.stdout) == (0, "far is removed\n")
    assert list((home / "remotes").iterdir()) == []
    assert json.loads(run("list", "--json").stdout) == []


def test_a_description_that_was_imported_is_a_model_and_stays_when_it_is_removed(
    home: Path, run: Run, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "mine.remote"
    path.write_text(f'url = "{upstream.url}"\nmodel = "{MODEL}"\n')

    assert run_hostler(home, "import", str(path)).stdout == "mine is registered\n"
    assert run("check", "mine").returncode == 0
    assert run_hostler(home, "run", "mine", "Hi.").stdout == "Hello there.\n"
    assert run("rm", "mine").returncode == 0
    assert path.exists()


def test_the_doctor_says_which_remote_models_there_are(
    home: Path, added: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = [row for row in json.loads(run_hostler(home, "doctor", "--json").stdout) if row["subject"] == "engine remote"]
    assert row["state"] == "ok"
    assert f"far is {MODEL} at {added.url}, no key" in row["detail"]

    monkeypatch.setenv("HOSTLER_HOME", str(home / "elsewhere"))
    assert "no remote model" in probe().devices[0].reason
    (home / "models" / "far" / "model.json").write_text("{}")
    monkeypatch.setenv("HOSTLER_HOME", str(home))
    assert "no remote model" in probe().devices[0].reason
