"""What the library tells of itself: each change once, when it is so, in the order in which it happens to a model."""

from __future__ import annotations

import pytest

from hostler.domain import Lifecycle
from support.tiny_gguf import tiny_gguf

DATA = tiny_gguf(padding=300_000)
WAIT_S = 30


@pytest.fixture
def told():
    return []


@pytest.fixture
def library(open_library, told):
    return open_library(tell=told.append)


def kinds(told):
    return [(change.manifest.id, change.kind) for change in told]


def test_a_pull_is_told_when_it_begins_and_when_the_model_is_here(library, server, told):
    server.add("/a.gguf", DATA)

    library.pull(f"{server.url}/a.gguf").result()

    assert kinds(told) == [("a", "downloading"), ("a", "registered"), ("a", "downloaded")]
    assert [(change.previous, change.lifecycle) for change in told] == [
        (Lifecycle.NOT_DOWNLOADED, Lifecycle.DOWNLOADING),
        (Lifecycle.DOWNLOADING, Lifecycle.DOWNLOADED),
        (Lifecycle.DOWNLOADING, Lifecycle.DOWNLOADED),
    ]
    assert told[-1].manifest == library.find("a").manifest


def test_a_pull_that_is_joined_or_has_nothing_to_do_is_told_once(library, server, told):
    served = server.add("/a.gguf", DATA)
    served.hold_after = 1000
    first = library.pull(f"{server.url}/a.gguf")
    assert served.held.wait(WAIT_S)
    second = library.pull(f"{server.url}/a.gguf")
    served.released.set()

    first.result()
    second.result()
    library.pull("a").result()

    assert kinds(told) == [("a", "downloading"), ("a", "registered"), ("a", "downloaded")]


def test_a_failed_pull_says_why_and_the_next_one_begins_anew(library, server, told):
    job = library.pull(f"{server.url}/a.gguf")
    assert job.wait(WAIT_S)
    server.add("/a.gguf", DATA)
    library.pull(f"{server.url}/a.gguf").result()

    assert [kind for _, kind in kinds(told)] == [
        "downloading",
        "download_failed",
        "downloading",
        "registered",
        "downloaded",
    ]
    assert told[1].lifecycle is Lifecycle.NOT_DOWNLOADED
    assert "404" in told[1].error


@pytest.mark.parametrize(("end", "word"), [("cancel_pull", "cancelled"), ("delete", "cancelled"), ("close", "interrupted")])
def test_a_pull_that_is_ended_early_says_by_what(library, server, told, end, word):
    served = server.add("/a.gguf", DATA)
    served.hold_after = 1000
    library.pull(f"{server.url}/a.gguf")
    assert served.held.wait(WAIT_S)

    getattr(library, end)(*([] if end == "close" else ["a"]))
    served.released.set()

    expected = ["downloading", "download_failed"] + (["deleted"] if end == "delete" else [])
    assert [kind for _, kind in kinds(told)] == expected
    assert word in told[1].error


def test_a_pull_that_was_refused_is_not_told(library, told):
    with pytest.raises(Exception, match="does not exist"):
        library.pull("nothing-of-this-name")

    assert told == []


def test_an_import_is_told_once_and_again_only_when_it_changes_something(library, gguf, told):
    path = gguf("mine.gguf")

    library.import_path(path)
    library.import_path(path)
    assert kinds(told) == [("mine", "registered"), ("mine", "downloaded")]

    library.import_path(path, name="Mine")

    assert kinds(told)[2:] == [("mine", "updated")]
    assert told[-1].manifest.name == "Mine"
    assert told[-1].previous is told[-1].lifecycle is Lifecycle.DOWNLOADED


def test_a_change_is_told_and_one_that_changes_nothing_is_not(library, gguf, told):
    library.import_path(gguf("mine.gguf"))
    told.clear()

    library.update("mine", parameters={"temperature": "0.5"})
    library.update("mine", parameters={"temperature": 0.5})
    library.update("mine", name=None)
    with pytest.raises(Exception, match="temperature"):
        library.update("mine", parameters={"temperature": 9})

    assert kinds(told) == [("mine", "updated")]
    assert told[0].manifest.parameters == {"temperature": 0.5}


def test_a_deletion_is_told_after_the_files_are_gone(library, gguf, told, tmp_path):
    library.import_path(gguf("mine.gguf"))
    told.clear()

    library.delete("mine")
    with pytest.raises(Exception, match="does not exist"):
        library.delete("mine")

    assert kinds(told) == [("mine", "deleted")]
    assert (told[0].previous, told[0].lifecycle) == (Lifecycle.DOWNLOADED, Lifecycle.NOT_DOWNLOADED)
    assert not (tmp_path / "home" / "models" / "mine").exists()
