"""Where a model lies, as plugins' commands ask for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostler import ModelNotDownloaded, ModelNotFound, find_model
from hostler.config import load_settings
from hostler.home import HomeLock
from support.server import add_echo


@pytest.fixture
def settings(tmp_path: Path):
    return load_settings(tmp_path / "home", {}, {})


def test_a_model_is_found_where_it_lies_while_another_process_has_the_home(settings) -> None:
    add_echo(settings.home, "parrot")

    with HomeLock(settings.home, "serve"):
        found = find_model(settings, "parrot")

    assert (found.id, found.format) == ("parrot", "echo")
    assert found.path == settings.home.with_name("home.models") / "parrot.echo"
    assert found.others == ()
    assert found.source_url == found.path.as_uri()
    assert found.parameters == {"temperature": 0}


def test_a_model_that_nobody_knows_and_one_that_is_not_here_are_told_apart(settings) -> None:
    with pytest.raises(ModelNotFound, match="The model nope does not exist"):
        find_model(settings, "nope")
    with pytest.raises(ModelNotDownloaded, match="hostler pull smollm2-135m-instruct"):
        find_model(settings, "smollm2")
