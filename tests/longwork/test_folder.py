"""The folder of a long work: what is kept, what begins anew, and that one command at a time works in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hostler.longwork.folder import WorkFolder, WorkRuns

REQUEST = {"source": [["/m/x.gguf", 7, 8]], "quant": "int4"}


@pytest.fixture
def work(tmp_path: Path):
    with WorkFolder(tmp_path / "works", "small cpu int4", doing="converted") as work:
        yield work


def finished(work: WorkFolder, step: str, **result: object) -> None:
    (work.part(step) / "file").write_bytes(b"1234")
    work.finish(step, result)


def test_a_finished_step_is_known_to_the_next_command(work: WorkFolder) -> None:
    assert work.resume(REQUEST) == []
    finished(work, "load", architecture="Llama")

    again = WorkFolder(work.folder.parent, "small cpu int4")

    assert again.resume(REQUEST) == ["load"]
    assert again.state.done["load"]["architecture"] == "Llama"
    assert (again.path("load") / "file").read_bytes() == b"1234"
    assert again.used_bytes() == 4


@pytest.mark.parametrize("changed", [{"quant": "int8"}, {"source": [["/m/x.gguf", 7, 9]]}])
def test_another_request_begins_anew(work: WorkFolder, changed: dict[str, object]) -> None:
    work.resume(REQUEST)
    finished(work, "load")

    assert work.resume({**REQUEST, **changed}) == []
    assert not work.path("load").exists()


def test_what_a_killed_command_left_half_done_is_removed(work: WorkFolder) -> None:
    work.resume(REQUEST)
    finished(work, "load")
    half = work.part("build")
    (half / "file").write_bytes(b"half")

    assert work.resume(REQUEST) == ["load"]
    assert not half.exists()


def test_a_step_whose_folder_got_its_name_and_was_not_noted_is_done_again(work: WorkFolder) -> None:
    """A crash between the rename and the state."""
    work.resume(REQUEST)
    work.part("load").rename(work.path("load"))

    assert work.resume(REQUEST) == []
    assert not work.path("load").exists()


def test_a_step_whose_folder_is_gone_is_done_again(work: WorkFolder) -> None:
    work.resume(REQUEST)
    finished(work, "load")
    (work.path("load") / "file").unlink()
    work.path("load").rmdir()

    assert work.resume(REQUEST) == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 99, "request": {}, "done": {}}'])
def test_a_state_that_cannot_be_read_begins_anew(work: WorkFolder, text: str) -> None:
    work.resume(REQUEST)
    finished(work, "load")
    (work.folder / "state.json").write_text(text)

    assert work.resume(REQUEST) == []


def test_the_state_is_readable_json(work: WorkFolder) -> None:
    work.resume(REQUEST)
    finished(work, "load")

    assert json.loads((work.folder / "state.json").read_text())["request"] == REQUEST


def test_two_commands_do_not_work_in_one_folder(work: WorkFolder) -> None:
    class Runs(WorkRuns):
        code = "conversion_runs"

    again = WorkFolder(work.folder.parent, work.name, doing="converted", runs=Runs)

    with pytest.raises(Runs, match="small cpu int4 is being converted by another command"), again:
        pass
    with WorkFolder(work.folder.parent, "small cpu int8"):
        pass


def test_the_lock_is_free_when_the_command_is_through(tmp_path: Path) -> None:
    with WorkFolder(tmp_path, "small"):
        pass

    with WorkFolder(tmp_path, "small"):
        pass


def test_a_result_is_made_once(work: WorkFolder) -> None:
    made = []

    def make() -> dict[str, object]:
        made.append(1)
        return {"shape": (1, 2)}

    work.resume(REQUEST)

    assert work.once("measure", make) == work.once("measure", make) == {"shape": [1, 2]}
    assert made == [1]
    assert WorkFolder(work.folder.parent, work.name).resume(REQUEST) == ["measure"]


def test_a_file_is_made_once_and_stays_for_the_same_request(work: WorkFolder) -> None:
    work.resume(REQUEST)
    path = work.file("x.bin", lambda part: part.write_bytes(b"whole"))

    assert work.resume(REQUEST) == []
    assert work.file("x.bin", lambda part: part.write_bytes(b"again")).read_bytes() == b"whole"
    assert work.resume({**REQUEST, "quant": "int8"}) == []
    assert not path.exists()


def test_a_file_that_cannot_be_made_leaves_nothing(work: WorkFolder) -> None:
    def make(part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        work.file("x.bin", make)

    assert [path.name for path in work.folder.iterdir()] == ["lock"]


def test_again_forgets_results_and_keeps_files(work: WorkFolder) -> None:
    work.resume(REQUEST)
    work.note("measure", {"s": 1.0})
    work.file("x.bin", lambda part: part.write_bytes(b"whole"))

    assert work.resume(REQUEST, is_again=True) == []
    assert work.path("x.bin").exists()


def test_clearing_keeps_results_and_logs(work: WorkFolder) -> None:
    work.resume(REQUEST)
    work.note("measure", {"s": 1.0})
    work.file("x.bin", lambda part: part.write_bytes(b"whole"))
    work.part("build")
    work.log("measure").write_text("said")

    work.clear()

    assert {path.name for path in work.folder.iterdir()} == {"lock", "state.json", "measure.log"}


@pytest.mark.parametrize("name", ["../../x cpu int4", "file:///m/x.gguf cpu int4", "ü" * 300, ". cpu int4"])
def test_any_name_gives_one_folder_below_the_home(tmp_path: Path, name: str) -> None:
    folder = WorkFolder(tmp_path / "works", name).folder

    assert folder.parent == tmp_path / "works"
    assert len(folder.name) < 100
    assert not folder.name.startswith(".")
