"""`hostler threads|messages|assistants` and `import-jan`, each command in this process over a home of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from hostler.api.body import MAX_DEPTH
from hostler.cli import cli, importing, jan, lines
from hostler.cli.client import Refused
from hostler.cli.records import every, one_line, path_of, show_content
from support.jan import MESSAGES, THREAD_ID, jan_folder, message, thread, write_assistant, write_model, write_thread


class Home:
    """Runs commands on one home."""

    def __init__(self, path):
        self.path = path

    def __call__(self, *arguments, given=None, code=0):
        done = CliRunner().invoke(cli, ["--home", str(self.path), *arguments], input=given)
        assert done.exit_code == code, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done

    def json(self, *arguments, **options):
        return json.loads(self(*arguments, "--json", **options).stdout)

    def id(self, *arguments, **options):
        return self(*arguments, **options).stdout.strip()

    def texts(self, thread_id):
        return [show_content(message) for message in self.json("messages", "list", thread_id)]


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path / "home")


def write_lines(path, *objects):
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in objects), encoding="utf-8")
    return str(path)


def line_thread(id="t1", **more):
    return {"object": "thread", "id": id, "created_at": 1700000000, **more}


def line_message(id, text="Hi", thread_id="t1", **more):
    return {"object": "thread.message", "id": id, "thread_id": thread_id, "role": "user", "content": text, **more}


# -- every day ------------------------------------------------------------------------------------------------------------


def test_a_thread_is_made_talked_in_shown_and_deleted(home):
    thread_id = home.id("threads", "create", "What should I see?", "--title", "Rome", "--metadata", "who=me")
    answer = home.id("messages", "create", thread_id, "--role", "assistant", "The Forum.\nBring water.")
    home("messages", "create", thread_id, "-", given="piped\n")
    home("messages", "create", thread_id, given="and once more\n", code=0)

    (row,) = home("threads", "list").stdout.splitlines()[1:]
    assert row.split()[:4] == [thread_id, "Rome", "jan", "4"]
    shown = home("threads", "show", thread_id).stdout
    assert shown.startswith(f"Rome\n{thread_id}, created ")
    assert "who: me" in shown
    places = [shown.index(text) for text in ("What should I see?", "The Forum.\nBring water.", "piped", "and once more")]
    assert places == sorted(places)
    assert home.texts(thread_id) == ["What should I see?", "The Forum.\nBring water.", "piped", "and once more"]
    assert "The Forum. Bring water." in home("messages", "list", thread_id).stdout
    assert home("messages", "show", thread_id, answer).stdout.endswith("\n\nThe Forum.\nBring water.\n")
    assert home("messages", "delete", thread_id, answer).stdout == f"{answer} is deleted\n"
    assert home.json("threads", "delete", thread_id) == [{"id": thread_id, "object": "thread.deleted", "deleted": True}]
    assert home("threads", "list").stdout.startswith("No thread is here yet.")


def test_a_thread_of_many_messages_shows_its_last_ones_and_says_so(home, tmp_path):
    messages = [line_message(f"m{number}", f"text {number}.") for number in range(120)]
    home("threads", "import", write_lines(tmp_path / "f", line_thread(), *messages))

    shown = home("threads", "show", "t1").stdout
    assert "text 70." in shown
    assert "text 69." not in shown
    assert "earlier messages are not shown; --limit 0" in shown
    whole = home("threads", "show", "t1", "--limit", "0").stdout
    assert [f"text {number}." in whole for number in (0, 119)] == [True, True]
    assert "not shown" not in whole
    assert "100+" in home("threads", "list").stdout
    assert home.texts("t1") == [f"text {number}." for number in range(120)]


def test_lists_are_cut_and_turned_as_asked(home, tmp_path):
    objects = [line_thread(f"t{number}", created_at=1700000000 + number) for number in range(1, 106)]
    home("threads", "import", write_lines(tmp_path / "f", *objects))

    def ids(*options):
        return [thread["id"] for thread in home.json("threads", "list", *options)]

    assert ids() == [f"t{number}" for number in range(105, 0, -1)]
    assert ids("--order", "asc", "--limit", "2") == ["t1", "t2"]
    assert ids("--limit", "101") == [f"t{number}" for number in range(105, 4, -1)]
    assert len(home("threads", "list", "--limit", "3").stdout.splitlines()) == 4


def test_what_a_thread_is_told_of_its_assistant_is_kept(home):
    home("assistants", "create", "--id", "poet", "--name", "Poet")

    made = home.json("threads", "create", "--assistant", "poet", "--model", "phi", "--instructions", "In verse.")

    (entry,) = made["assistants"]
    assert (entry["assistant_id"], entry["assistant_name"], entry["instructions"]) == ("poet", "Poet", "In verse.")
    assert entry["model"]["id"] == "phi"
    assert "assistant poet with phi" in home("threads", "show", made["id"]).stdout
    assert "The assistant nope does not exist" in home("threads", "create", "--assistant", "nope", code=1).stderr


def test_an_assistant_is_made_shown_and_deleted_but_not_the_default_one(home):
    made = home.id("assistants", "create", "--name", "Tutor", "--model", "phi", "--temperature", "0.5", "--metadata", "a=b")
    own = home.id("assistants", "create", "--id", "mine", "--instructions", "Line one.\nLine two.")

    assert own == "mine"
    rows = {row.split()[0]: row for row in home("assistants", "list").stdout.splitlines()[1:]}
    assert set(rows) == {made, "mine", "jan"}
    assert "(default)" in rows["jan"]
    shown = home("assistants", "show", made).stdout
    assert "temperature  0.5" in shown.replace("temperature   ", "temperature  ")
    assert "metadata.a" in shown
    assert home("assistants", "show", "mine").stdout.endswith("\n\nLine one.\nLine two.\n")
    assert "already an assistant mine" in home("assistants", "create", "--id", "mine", code=1).stderr
    home("assistants", "delete", made, "mine")
    assert "cannot be deleted" in home("assistants", "delete", "jan", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("threads", "show", "nope"), 1, "The thread nope does not exist"),
        (("threads", "delete", "nope"), 1, "nope"),
        (("threads", "export", "nope"), 1, "nope"),
        (("messages", "list", "nope"), 1, "nope"),
        (("messages", "create", "nope", "hi"), 1, "nope"),
        (("messages", "show", "nope", "m"), 1, "nope"),
        (("messages", "export", "nope"), 1, "nope"),
        (("assistants", "show", "nope"), 1, "The assistant nope does not exist"),
        (("assistants", "delete", "nope"), 1, "nope"),
        (("threads", "create", "--metadata", "k=" + "v" * 600), 1, "metadata.k has 600 characters"),
        (("threads", "create", "--metadata", "k"), 2, "not KEY=VALUE"),
        (("threads", "list", "--limit", "0"), 2, "--limit"),
        (("threads", "list", "--order", "up"), 2, "--order"),
        (("threads", "delete"), 2, "THREAD"),
        (("threads", "nope"), 2, "nope"),
        (("threads", "import", "no-such-file"), 2, "no-such-file"),
        (("messages", "create", "t", ""), 2, "empty"),
        (("messages", "create", "t"), 2, "empty"),
        (("threads", "show", ""), 2, "'' is no id"),
        (("messages", "delete", "t", ".."), 2, "'..' is no id"),
        (("webhooks", "rm", "."), 2, "'.' is no id"),
        (("threads", "show", "\udcff"), 1, "no text"),
        (("threads", "create", "\udcff"), 1, "no text"),
        (("assistants", "create", "--temperature", "7"), 2, "temperature"),
        (("import-jan", "no-such-folder"), 2, "no-such-folder"),
    ],
)
def test_failures_exit_1_and_wrong_command_lines_2_each_saying_why(home, arguments, code, word):
    done = home(*arguments, code=code, given="")

    assert word in done.stderr
    assert done.stdout == ""
    if code == 1:
        assert len(done.stderr.splitlines()) == 1


# -- pages ------------------------------------------------------------------------------------------------------------------


class ScriptedClient:
    """A list that loses items while it is read."""

    def __init__(self, ids, page=100):
        self.ids = list(ids)
        self.page = page
        self.doomed = []

    def get(self, path, limit, order, after=None):
        if after is not None and after not in self.ids:
            raise Refused(400, {"message": "gone", "param": "after"})
        start = self.ids.index(after) + 1 if after is not None else 0
        found = self.ids[start : start + min(int(limit), self.page)]
        has_more = start + len(found) < len(self.ids)
        for id in self.doomed:
            if id in self.ids:
                self.ids.remove(id)
        return {"data": [{"id": id} for id in found], "has_more": has_more}


def test_all_pages_are_read_though_the_last_one_seen_is_deleted_meanwhile():
    client = ScriptedClient("abcdef", page=3)
    client.doomed = ["c", "b"]

    assert [item["id"] for item in every(client, "/x")] == list("abcdef")


def test_a_list_whose_page_was_deleted_whole_is_an_error_and_no_short_list():
    client = ScriptedClient("abcdef", page=2)
    client.doomed = ["a", "b"]

    with pytest.raises(Refused, match="gone"):
        list(every(client, "/x"))


def test_an_empty_page_that_claims_more_does_not_go_on_for_ever():
    class Liar:
        def get(self, path, **query):
            return {"data": [], "has_more": True}

    assert list(every(Liar(), "/x")) == []


def test_ids_are_encoded_into_paths():
    assert path_of("threads", "a b/ü?", "messages") == "/v1/threads/a%20b%2F%C3%BC%3F/messages"


def test_content_that_is_no_text_is_named_and_long_text_is_cut():
    parts = [
        {"type": "text", "text": {"value": "See:"}},
        {"type": "image_url", "image_url": {"url": "http://x/cat.png"}},
        {"type": "image_file", "image_file": {"file_id": "file-1"}},
    ]

    assert show_content({"content": parts}) == "See:\n[image: http://x/cat.png]\n[image: file file-1]"
    assert one_line("a\n b\t c") == "a b c"
    assert len(one_line("word " * 100)) <= 72


# -- import -----------------------------------------------------------------------------------------------------------------


def test_import_tells_what_it_did_and_a_second_one_fails_with_what_to_do(home, tmp_path):
    file = write_lines(tmp_path / "f.jsonl", line_thread(), line_message("m1"), line_message("m2"))

    assert home("threads", "import", file).stdout == "threads: 1 imported\nmessages: 2 imported\n"
    refused = home("threads", "import", file, code=1)
    skipped = home("threads", "import", file, "--on-conflict", "skip")
    copied = home.json("threads", "import", file, "--on-conflict", "copy")

    assert refused.stderr == (
        f"Error: {file}:1: The thread t1 is here already; nothing was imported. --on-conflict skip keeps what is here and "
        f"adds the rest, copy imports it under a new id\n"
    )
    assert refused.stdout == ""
    assert skipped.stdout == "threads: 1 already here\nmessages: 2 already here\n"
    assert copied["threads"] == {"copied": 1}
    assert len(home.json("threads", "list")) == 2


def test_one_bad_line_imports_nothing_at_all(home, tmp_path):
    file = write_lines(
        tmp_path / "f.jsonl", line_thread("t0"), "", line_thread(), line_message("m1"), line_message("m2", role="system"), "{"
    )

    refused = home("threads", "import", file, code=1)

    first, last = refused.stderr.splitlines()
    assert first.startswith(f"Error: {file}:5: role is ")
    assert last.startswith(f"Error: {file}:6: this is not valid JSON")
    assert last.endswith("; nothing was imported")
    assert home.json("threads", "list") == []


def test_a_file_of_rubbish_shows_its_first_problems_and_counts_the_rest(home, tmp_path):
    refused = home("threads", "import", write_lines(tmp_path / "f", *["rubbish"] * 30), code=1)

    assert len(refused.stderr.splitlines()) == 10
    assert "20 more lines are like that" in refused.stderr


def test_an_id_that_is_in_a_file_twice_is_found_before_anything_is_written(home, tmp_path):
    file = write_lines(tmp_path / "f.jsonl", line_thread(), line_thread("t2"), line_thread(title="again"))

    refused = home("threads", "import", file, code=1)

    assert f"{file}:3: the thread t1 was on line 1 before" in refused.stderr
    assert home.json("threads", "list") == []


def test_objects_of_another_kind_are_left_out_and_counted(home, tmp_path):
    poet = {"object": "assistant", "id": "poet", "name": "Poet"}
    file = write_lines(tmp_path / "f.jsonl", poet, line_thread(), line_message("m1"), {"object": ["run"], "id": "r"})
    assert "neither thread, thread.message nor assistant" in home("threads", "import", file, code=1).stderr

    file = write_lines(tmp_path / "f.jsonl", poet, line_thread(), line_message("m1"))
    threads = home("threads", "import", file)
    assistants = home.json("assistants", "import", file)

    assert threads.stdout == "threads: 1 imported\nmessages: 1 imported\n"
    assert "1 assistants were left out: import them with `hostler assistants import`" in threads.stderr
    assert (assistants["assistants"], assistants["threads"]) == ({"imported": 1}, {})
    assert assistants["left_out"] == {"threads": 1, "messages": 1}


def test_a_dry_run_changes_nothing(home, tmp_path):
    file = write_lines(tmp_path / "f.jsonl", line_thread(), line_message("m1"))

    assert (
        home("threads", "import", file, "--dry-run").stdout == "threads: 1 would be imported\nmessages: 1 would be imported\n"
    )
    assert home.json("threads", "list") == []


def test_nothing_to_import_is_no_error(home, tmp_path):
    assert home("threads", "import", write_lines(tmp_path / "f")).stdout == "There was nothing to import.\n"


@pytest.mark.parametrize(("depth", "code"), [(MAX_DEPTH, 0), (MAX_DEPTH + 1, 1)])
def test_what_a_request_could_make_can_be_imported_however_deep(home, tmp_path, depth, code):
    inner = depth - 1  # the thread itself is one level
    file = write_lines(tmp_path / "f", line_thread(tool_resources=json.loads('{"a":' * inner + "1" + "}" * inner)))

    home("threads", "import", file, code=code)


def test_messages_go_into_the_threads_they_name_or_into_one(home, tmp_path):
    home("threads", "import", write_lines(tmp_path / "a", line_thread(), line_message("m1", "one"), line_thread("t2")))
    home("messages", "export", "t1", "-o", str(tmp_path / "out"))

    home("messages", "import", str(tmp_path / "out"), "--thread", "t2")
    home("messages", "import", write_lines(tmp_path / "b", line_message("m2", "two"), line_message("m3", "three", "t2")))
    refused = home("messages", "import", write_lines(tmp_path / "c", line_message("m4", thread_id="t9")), code=1)

    assert (home.texts("t1"), home.texts("t2")) == (["one", "two"], ["one", "three"])
    assert "The thread t9 does not exist" in refused.stderr
    assert [json.loads(line)["id"] for line in home("messages", "export").stdout.splitlines()] == ["m1", "m2", "m1", "m3"]


@pytest.fixture
def small_requests(monkeypatch):
    """Threads that are longer than a request may be."""
    monkeypatch.setattr(importing, "PART_BYTES", 1000)
    monkeypatch.setattr(lines, "BATCH_BYTES", 500)


def test_a_thread_longer_than_a_request_comes_in_parts_in_order(home, tmp_path, small_requests):
    messages = [line_message(f"m{number}", f"text {number}") for number in range(60)]
    file = write_lines(tmp_path / "f", line_thread(), *messages, line_thread("t2"), line_message("x", "end", "t2"))

    assert home("threads", "import", file).stdout == "threads: 2 imported\nmessages: 61 imported\n"
    assert home.texts("t1") == [f"text {number}" for number in range(60)]
    assert home.texts("t2") == ["end"]
    copied = home("threads", "import", file, "--on-conflict", "copy")
    assert copied.stdout == "threads: 2 imported under a new id\nmessages: 61 imported\n"
    threads = {thread["id"]: home.texts(thread["id"]) for thread in home.json("threads", "list")}
    assert sorted(map(len, threads.values())) == [1, 1, 60, 60]


@pytest.mark.parametrize("named", [{"id": "t1"}, {}], ids=["with an id", "without"])
def test_messages_without_a_thread_belong_to_the_one_above_however_many_requests_it_takes(
    home, tmp_path, small_requests, named
):
    messages = [{"object": "thread.message", "role": "user", "content": f"text {number}"} for number in range(60)]
    file = write_lines(tmp_path / "f", {"object": "thread", **named}, *messages, line_thread("t2"), messages[0])

    assert home("threads", "import", file).stdout == "threads: 2 imported\nmessages: 61 imported\n"

    threads = {thread["id"]: home.texts(thread["id"]) for thread in home.json("threads", "list")}
    assert threads.pop("t2") == ["text 0"]
    assert list(threads.values()) == [[f"text {number}" for number in range(60)]]
    assert not named or list(threads) == ["t1"]


def test_an_import_that_was_interrupted_is_finished_by_skip(home, tmp_path, small_requests, monkeypatch):
    messages = [line_message(f"m{number}", f"text {number}") for number in range(60)]
    file = write_lines(tmp_path / "f", line_thread(), *messages, line_thread("t2"))
    post, sent = importing.Import._send_batch, []

    def interrupted(self, batch):
        if not self._is_dry:
            sent.append(batch)
            if len(sent) == 3:
                raise click.Abort
        post(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(importing.Import, "_send_batch", interrupted)
        home("threads", "import", file, code=1)
    assert 0 < len(home.texts("t1")) < 60

    home("threads", "import", file, "--on-conflict", "skip")

    assert home.texts("t1") == [f"text {number}" for number in range(60)]
    assert len(home.json("threads", "list")) == 2


# -- export -----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no disk that is always full")
def test_a_full_disk_behind_stdout_is_told_in_one_line(home):
    home("threads", "create", "Hi", "--title", "x" * 500)
    for arguments in (("threads", "export"), ("threads", "list")):
        with open("/dev/full", "wb") as full:
            done = subprocess.run(
                [sys.executable, "-m", "hostler", "--home", str(home.path), *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert done.returncode == 1, done.stderr
        assert done.stderr == "Error: the output cannot be written: No space left on device\n"


def test_a_title_of_two_lines_is_one_row_of_a_list_in_a_pipe(home):
    home("threads", "create", "--title", "one\ntwo", "Hi")

    assert len(home("threads", "list").stdout.splitlines()) == 2


def test_chosen_threads_are_exported_in_the_order_of_their_naming_each_once(home, tmp_path):
    file = write_lines(tmp_path / "f", *(line_thread(f"t{number}") for number in range(3)), line_message("m", thread_id="t2"))
    home("threads", "import", file)
    target = tmp_path / "out.jsonl"

    told = home("threads", "export", "t2", "t0", "t2", "--output", str(target))

    assert [json.loads(line)["id"] for line in target.read_text().splitlines()] == ["t2", "m", "t0"]
    assert told.stderr == f"{target} has 2 threads and 1 message\n"
    assert told.stdout == ""
    assert home.json("threads", "export", "-o", str(target)) == {"threads": 3, "messages": 1, "output": str(target)}


def test_an_export_that_fails_keeps_the_file_that_was_there(home, tmp_path):
    target = tmp_path / "out.jsonl"
    target.write_text("precious")

    home("threads", "export", "nope", "-o", str(target), code=1)

    assert target.read_text() == "precious"


# -- Jan --------------------------------------------------------------------------------------------------------------------


def test_jan_s_folder_comes_in_once_and_its_growth_by_doing_it_again(home, tmp_path):
    folder = jan_folder(tmp_path / "jan")

    first = home("import-jan", str(folder))
    write_thread(folder, thread(), *MESSAGES, message("new", "user", "One more", 1700123409000))
    second = home.json("import-jan", str(folder))

    assert first.stdout == "threads: 2 imported\nmessages: 4 imported\nassistants: 2 imported\nmodels: 1 imported\n"
    assert "models without weights in the folder: offered-7b" in first.stderr
    assert second["messages"] == {"imported": 1, "skipped": 4}
    assert (second["models"], second["assistants"]) == ({"skipped": 1}, {"skipped": 2})
    assert second["without_weights"] == [{"id": "offered-7b", "source_url": "https://example.test/offered-7b.gguf"}]
    assert home.texts(THREAD_ID)[-1] == "One more"
    assert [one["id"] for one in home.json("threads", "list")] == ["jan_1700200000", THREAD_ID]
    kept = home.json("assistants", "show", "jan")
    assert (kept["instructions"], kept["created_at"]) == ("Answer in verse.", 1750945742)
    (model,) = home.json("list")
    assert (model["id"], model["lifecycle"]) == ("tinyllama-1.1b", "downloaded")
    assert model["config"]["parameters"]["temperature"] == 0.3
    assert (folder / "models" / "tinyllama-1.1b" / "tinyllama-1.1b.gguf").exists()


def test_what_of_jan_s_cannot_be_read_is_named_and_the_rest_comes(home, tmp_path):
    folder = jan_folder(tmp_path / "jan")
    write_thread(folder, thread("jan_2"), MESSAGES[0], "{cut of", message("s", "system", "x", 1))
    write_assistant(folder, "odd", tools=[{"type": "telepathy"}])
    (write_model(folder, "broken") / "broken.gguf").write_bytes(b"GGUF rubbish")

    done = home("import-jan", str(folder))

    left_out = [line.split(": ")[1] for line in done.stderr.splitlines() if line.startswith("left out: ")]
    assert left_out == [
        "assistants/odd/assistant.json",
        "threads/jan_2/messages.jsonl:2",
        "threads/jan_2/messages.jsonl:3",
        "models/broken/model.json",
    ]
    assert "models: 1 imported, 1 not imported" in done.stdout
    assert len(home.json("messages", "list", "jan_2")) == 1


def test_a_dry_run_of_jan_s_folder_changes_nothing_and_only_takes_what_is_asked_for(home, tmp_path):
    folder = jan_folder(tmp_path / "jan")

    dry = home("import-jan", str(folder), "--dry-run")
    home("import-jan", str(folder), "--only", "models")

    assert "threads: 2 would be imported" in dry.stdout
    assert "models: 1 would be imported" in dry.stdout
    assert home.json("threads", "list") == []
    assert [model["id"] for model in home.json("list")] == ["tinyllama-1.1b"]


def test_a_model_that_jan_was_told_the_path_of_comes_with_its_settings(home, tmp_path):
    folder = jan_folder(tmp_path / "jan")
    weights = write_model(tmp_path / "elsewhere", "mine") / "mine.gguf"
    write_model(folder, "told", has_weights=False, sources=[{"filename": "mine.gguf", "url": str(weights)}])

    home("import-jan", str(folder), "--only", "models")

    told = home.json("show", "told")
    assert told["config"]["settings"]["ctx_len"] == 2048
    assert told["config"]["parameters"]["temperature"] == 0.3


def test_jan_s_folder_is_found_where_jan_keeps_it(home, tmp_path, monkeypatch):
    monkeypatch.setattr(jan, "_places", lambda: iter([tmp_path / "nowhere", tmp_path / "jan"]))
    assert "Jan's data folder is not at" in home("import-jan", code=2).stderr
    jan_folder(tmp_path / "jan")

    assert "threads: 2 imported" in home("import-jan").stdout


def test_a_folder_that_is_not_jan_s_is_refused_and_import_knows_jan_s(home, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is no data folder of Jan's" in home("import-jan", str(tmp_path / "empty"), code=1).stderr
    folder = jan_folder(tmp_path / "jan")

    assert f"hostler import-jan {folder}" in home("import", str(folder), code=1).stderr
