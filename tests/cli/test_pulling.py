"""How a download is shown, against a scripted API."""

from __future__ import annotations

import json

import click
import pytest

from hostler.cli import pulling
from hostler.cli.client import Refused
from hostler.cli.pulling import pull
from hostler.home import ServerAddress


def report(state, done, total=100):
    return {"downloadState": state, "size": {"total": total, "transferred": done}, "speed": 50.0}


class ScriptedClient:
    """Plays one download: the answer to the start, then progress reports."""

    address = None

    def __init__(self, first, reports=(), model=None):
        self.first = first
        self.reports = list(reports)
        self.model = model or {"id": "m", "lifecycle": "downloaded", "metadata": {"size_bytes": 100}}
        self.calls = []

    def post(self, path, body):
        self.calls.append(("POST", path, body))
        return self.first

    def get(self, path, **query):
        if path.startswith("/v1/models/"):
            return self.model
        step = self.reports.pop(0)
        if isinstance(step, BaseException):
            raise step
        return step


DOWNLOADING = {"id": "m", "state": "downloading"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(pulling, "POLL_S", 0.0)


def test_a_download_that_failed_before_it_was_looked_at_is_told_with_its_reason():
    client = ScriptedClient({"id": "m", "state": "not_downloaded"}, [report("error", 0) | {"error": "no such file"}])

    with pytest.raises(click.ClickException, match="no such file"):
        pull(client, "file:/lost.gguf", None)


def test_json_lines_tell_every_step_once_and_the_end(capsys):
    client = ScriptedClient(DOWNLOADING, [report("downloading", 10), report("downloading", 10), report("end", 100)])

    assert pull(client, "smollm2", None, is_json=True) == "m"

    steps = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(step["state"], step["done_bytes"]) for step in steps] == [("downloading", 10), ("downloaded", 100)]


def test_without_a_terminal_progress_is_plain_lines_on_stderr(capsys):
    client = ScriptedClient(DOWNLOADING, [report("downloading", 10), report("end", 100)])

    pull(client, "smollm2", "other")

    said = capsys.readouterr()
    assert said.out == ""
    assert "m: 10 B of 100 B" in said.err
    assert "m is here: 100 B" in said.err
    assert client.calls[0] == ("POST", "/v1/models/pull", {"model": "smollm2", "id": "other"})


def test_the_variant_that_was_taken_is_told_with_its_reason(capsys):
    metadata = {"size_bytes": 100, "variant": "cpu/cpu-int4", "variant_reason": "it was made for cpu"}
    model = {"id": "m", "lifecycle": "downloaded", "metadata": metadata}
    client = ScriptedClient(DOWNLOADING, [report("downloading", 10), report("end", 100)], model)

    pull(client, "hf:o/r", None)

    assert "of its variants cpu/cpu-int4 was taken: it was made for cpu" in capsys.readouterr().err


def test_waiting_for_the_source_is_told_from_a_download_that_stands_still(capsys):
    client = ScriptedClient(DOWNLOADING, [report("downloading", 0, None), report("end", 100)])

    pull(client, "smollm2", None)

    assert "m: asking its source" in capsys.readouterr().err


def test_model_that_is_already_here_is_a_success_without_transfer(capsys):
    client = ScriptedClient({"id": "m", "state": "downloaded"})

    assert pull(client, "smollm2", None) == "m"

    assert "already here" in capsys.readouterr().err


def test_job_that_vanished_is_judged_by_the_model(capsys):
    client = ScriptedClient(DOWNLOADING, [Refused(404, {"message": "no download"})])

    assert pull(client, "smollm2", None) == "m"


@pytest.mark.parametrize("reports", [[report("error", 10)], [Refused(404, {"message": "no download"})]])
def test_failed_download_says_why(reports):
    model = {"id": "m", "lifecycle": "not_downloaded", "metadata": {}, "last_error": "the disk is full"}
    client = ScriptedClient(DOWNLOADING, reports, model)

    with pytest.raises(click.ClickException, match="the disk is full"):
        pull(client, "smollm2", None)


def test_ctrl_c_tells_where_the_download_stands():
    client = ScriptedClient(DOWNLOADING, [report("downloading", 10), KeyboardInterrupt()])

    with pytest.raises(click.ClickException, match="goes on where it stopped"):
        pull(client, "smollm2", None)


def test_ctrl_c_leaves_a_download_of_the_server_alone():
    client = ScriptedClient(DOWNLOADING, [report("downloading", 10), KeyboardInterrupt()])
    client.address = ServerAddress(1, "http://127.0.0.1:4711", 4711, 0, "")

    with pytest.raises(click.ClickException, match=r"goes on in the server at http://127.0.0.1:4711"):
        pull(client, "smollm2", None)

    assert [method for method, *_ in client.calls] == ["POST"]
