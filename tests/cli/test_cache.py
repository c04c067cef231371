"""`hostler cache`, in this process over a home of its own."""

from __future__ import annotations

import json
from array import array

from hostler.config import load_settings
from hostler.keptprefixes import kept_prefixes, write_model_id
from hostler.prefixfiles import PrefixFiles, prefix_id
from support.cli import run

DEADLINE_S = 60


def keep(home, model, n_bytes):
    folder = kept_prefixes(load_settings(home, environ={})).folder_of(model)
    write_model_id(folder, model)
    files = PrefixFiles(folder, "one", 1 << 40)
    files.open()
    tokens = array("i", [1]).tobytes()
    files.put(prefix_id("", tokens), "", 0, tokens, [memoryview(bytes(n_bytes))], 1.0)
    files.close(DEADLINE_S)


def listed(home):
    return json.loads(run(home, "cache", "list", "--json").output)


def test_an_empty_cache_is_listed_as_such(home):
    found = listed(home)

    assert found["models"] == []
    assert found["folder"] == str(home / "cache" / "prefixes")
    assert found["limit_bytes"] == 8 << 30
    assert run(home, "cache", "list").output.startswith("0 B of 8.6 GB in ")


def test_what_is_kept_is_listed_and_cleared_by_model_or_whole(home):
    keep(home, "parrot", 1_000_000)
    keep(home, "org/gone", 2_000_000)  # its model is not there any more
    assert [(model["id"], model["n_prefixes"]) for model in listed(home)["models"]] == [("org/gone", 1), ("parrot", 1)]
    assert "parrot" in run(home, "cache", "list").output

    assert run(home, "cache", "clear", "org/gone").output == "2.1 MB are free again\n"
    assert [model["id"] for model in listed(home)["models"]] == ["parrot"]

    freed = json.loads(run(home, "cache", "clear", "--json").output)["n_bytes"]
    assert freed > 1_000_000
    assert listed(home)["models"] == []


def test_clearing_a_model_that_has_nothing_is_fine_and_one_that_is_none_is_said(home):
    assert run(home, "cache", "clear", "parrot").output == "0 B are free again\n"
    assert "does not exist" in run(home, "cache", "clear", "nobody", code=1).output


def test_a_deleted_model_leaves_nothing_in_the_cache(home):
    keep(home, "parrot", 1_000_000)

    run(home, "rm", "parrot")

    assert listed(home)["models"] == []


def test_the_setting_cache_folder_moves_it(home, tmp_path):
    (home / "config.toml").write_text(f'cache_folder = "{tmp_path / "elsewhere"}"')
    keep(home, "parrot", 10)

    assert listed(home)["folder"] == str(tmp_path / "elsewhere")
    assert len(listed(home)["models"]) == 1


def test_doctor_tells_what_is_kept_and_of_a_folder_that_cannot_be(home):
    keep(home, "parrot", 1_000_000)

    assert "1.1 MB of 8.6 GB" in run(home, "doctor", code=0).output

    (home / "config.toml").write_text(f'cache_folder = "{home / "config.toml"}"')
    assert "is no folder that this user may write" in run(home, "doctor").output
