"""`hostler set`, in this process over a home of its own."""

from __future__ import annotations

import json

import click
import pytest

from hostler.cli.setting import read_changes
from hostler.library.manifest import read_manifest
from support.cli import run


def kept(home):
    return read_manifest(home / "models" / "parrot")


def test_settings_parameters_and_texts_are_kept_and_taken_back(home):
    done = run(home, "set", "parrot", "ctx_len=1024", "n-parallel=2", "temperature=0.2", "name=Polly", "metadata.note=a=b")

    assert done.output == "parrot is updated\n"
    assert kept(home).settings == {"ctx_len": 1024, "n_parallel": 2}
    assert kept(home).parameters == {"temperature": 0.2}
    assert (kept(home).name, kept(home).metadata["note"]) == ("Polly", "a=b")

    run(home, "set", "parrot", "--unset", "ctx_len", "--unset", "name", "--unset", "metadata.note", "stop=x", "stop=y")

    assert kept(home).settings == {"n_parallel": 2}
    assert kept(home).parameters == {"temperature": 0.2, "stop": ["x", "y"]}
    assert kept(home).name == "parrot"
    assert "note" not in kept(home).metadata


def test_json_is_the_answer(home):
    answer = json.loads(run(home, "set", "parrot", "top_k=5", "--json").output)

    assert (answer["result"], answer["config"]["parameters"]["top_k"]) == ("Updated successfully!", 5)


def test_what_the_api_refuses_fails_with_its_words(home):
    done = run(home, "set", "parrot", "n_parallel=0", code=1)

    assert "n_parallel is '0'; allowed: a whole number from 1 to 256" in done.output
    assert kept(home).settings == {}


def test_a_model_that_is_not_here_cannot_be_set(home):
    assert "is not downloaded" in run(home, "set", "smollm2", "ctx_len=512", code=1).output
    assert "does not exist" in run(home, "set", "nope", "ctx_len=512", code=1).output


@pytest.mark.parametrize(
    ("pairs", "unset", "words"),
    [
        (("ctx_lne=5",), (), "did you mean ctx_len?"),
        (("port=5",), (), "A model has no 'port'"),
        (("ctx_len",), (), "'ctx_len' is not NAME=VALUE"),
        (("metadata.=5",), (), "A model has no 'metadata.'"),
        ((), ("temprature",), "did you mean temperature?"),
        ((), (), "Nothing to change"),
    ],
)
def test_a_typing_error_is_told_and_not_ignored(pairs, unset, words):
    with pytest.raises(click.UsageError) as raised:
        read_changes(pairs, unset)

    assert words in str(raised.value)


def test_other_spellings_are_taken_as_they_are():
    assert read_changes(("max_tokens=5", "n_gpu_layers=3"), ()) == {"max_tokens": "5", "n_gpu_layers": "3"}
