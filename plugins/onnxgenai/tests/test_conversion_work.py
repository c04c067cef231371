"""The folder of a conversion: what is kept, what begins anew, and that one command at a time works in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostler_onnxgenai.conversion.work import ConversionRuns, Work

REQUEST = {"source": [["/m/x.gguf", 7, 8]], "quant": "int4"}


@pytest.fixture
def work(tmp_path: Path):
    with Work(tmp_path, "small cpu int4") as work:
        yield work


def finished(work: Work, step: str, **result: object) -> None:
    (work.part(step) / "file").write_bytes(b"1234")
    work.finish(step, result)


def test_a_finished_step_is_known_to_the_next_command(work: Work) -> None:
    assert work.resume(REQUEST) == []
    finished(work, "load", architecture="Llama")

    again = Work(work.folder.parents[1], "small cpu int4")

    assert again.resume(REQUEST) == ["load"]
    assert again.state.done["load"]["architecture"] == "Llama"
    assert (again.path("load") / "file").read_bytes() == b"1234"
    assert again.used_bytes() == 4


@pytest.mark.parametrize("changed", [{"quant": "int8"}, {"source": [["/m/x.gguf", 7, 9]]}])
def test_another_request_begins_anew(work: Work, changed: dict[str, object]) -> None:
    work.resume(REQUEST)
    finished(work, "load")

    assert work.resume({**REQUEST, **changed}) == []
    assert not work.path("load").exists()


def test_what_a_killed_command_left_half_done_is_removed(work: Work) -> None:
    work.resume(REQUEST)
    finished(work, "load")
    half = work.part("build")
    (half / "file").write_bytes(b"half")

    assert work.resume(REQUEST) == ["load"]
    assert not half.exists()


def test_a_step_whose_folder_got_its_name_and_was_not_noted_is_done_again(work: Work) -> None:
    """A crash between the rename and the state."""
    work.resume(REQUEST)
    work.part("load").rename(work.path("load"))

    assert work.resume(REQUEST) == []
    assert not work.path("load").exists()


def test_a_step_whose_folder_is_gone_is_done_again(work: Work) -> None:
    work.resume(REQUEST)
    finished(work, "load")
    (work.path("load") / "file").unlink()
    work.path("load").rmdir()

    assert work.resume(REQUEST) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "request": {}, "done": {}}'])
def test_a_state_that_cannot_be_read_begins_anew(work: Work, text: str) -> None:
    work.resume(REQUEST)
    finished(work, "load")
    (work.folder / "state.json").write_text(text)

    assert work.resume(REQUEST) == []


def test_the_state_is_readable_json(work: Work) -> None:
    work.resume(REQUEST)
    finished(work, "load")

    assert json.loads((work.folder / "state.json").read_text())["request"] == REQUEST


def test_two_commands_do_not_work_on_one_conversion(work: Work, tmp_path: Path) -> None:
    with pytest.raises(ConversionRuns, match="small cpu int4 is being converted"), Work(tmp_path, work.name):
        pass
    with Work(tmp_path, "small cpu int8"):
        pass


@pytest.mark.parametrize("name", ["../../x cpu int4", "file:///m/x.gguf cpu int4", "ü" * 300, ". cpu int4"])
def test_any_name_gives_one_folder_below_the_home(tmp_path: Path, name: str) -> None:
    folder = Work(tmp_path, name).folder

    assert folder.parent == tmp_path / "conversions"
    assert len(folder.name) < 100
    assert not folder.name.startswith(".")
