"""Bad manners: each does what the README says, asked for in each of the three places. What kills is run in a process."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostler import EngineSettings, FinishReason, ModelFiles, ModelLoadFailed, SamplingParams
from hostler.testing import RecordingSequence, drive
from hostler_echo.engine import EchoEngine
from hostler_echo.manners import Manners, manner_names, read_directive

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")

SCRIPT = """
import json, sys, threading, time
import psutil
from hostler import EngineSettings, ModelFiles, SamplingParams
from hostler.testing import RecordingSequence, drive
from hostler_echo.engine import EchoEngine

def say(text):
    print(text, file=sys.stderr, flush=True)

def resident():
    return psutil.Process().memory_info().rss

path, extra, prompt = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3]
ticks = []
def tick():
    while True:
        ticks.append(1)
        time.sleep(0.01)
threading.Thread(target=tick, daemon=True).start()
engine = EchoEngine()
engine.load(ModelFiles(path, "echo"), EngineSettings(ctx_len=512, extra=extra), lambda fraction: not say(f"at {fraction}"))
say("loaded")
before = resident()
sequence = RecordingSequence(engine.tokenize(prompt, add_special=True, parse_special=True), SamplingParams(temperature=0.0))
try:
    drive(engine, [sequence])
finally:
    say(f"text {sequence.text!r}")
engine.close()
say(f"kept {resident() - before}")
say("closed")
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "m.echo"
    path.write_text("{}")
    return path


def start(path: Path, extra: dict[str, Any], prompt: str = "Hello") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(path), json.dumps(extra), prompt]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(path: Path, extra: dict[str, Any], prompt: str = "Hello") -> tuple[int, str, str]:
    process = start(path, extra, prompt)
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def load(path: Path, **extra: Any) -> EchoEngine:
    engine = EchoEngine()
    engine.load(ModelFiles(str(path), "echo"), EngineSettings(ctx_len=512, extra=extra), lambda _: True)
    return engine


def ask(engine: EchoEngine, prompt: str, **params: Any) -> RecordingSequence:
    tokens = engine.tokenize(prompt, add_special=True, parse_special=True)
    sequence = RecordingSequence(tokens, SamplingParams(temperature=0.0, **params))
    drive(engine, [sequence])
    return sequence


# -- while loading ----------------------------------------------------------------------------------------------------


def test_a_slow_load_reports_its_progress(path: Path) -> None:
    seen: list[float] = []

    settings = EngineSettings(ctx_len=512, extra={"load_s": 0.02})
    EchoEngine().load(ModelFiles(str(path), "echo"), settings, lambda fraction: not seen.append(fraction))

    assert seen == [number / 20 for number in range(21)]


def test_a_load_can_refuse_or_raise(path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"^no coal$"):
        load(path, load_refuse="no coal")
    with pytest.raises(RuntimeError, match=r"^a bug$"):
        load(path, load_raise="a bug")
    with pytest.raises(MemoryError):
        load(path, load_oom=True)


@pytest.mark.parametrize(
    ("extra", "code"), [({"load_die": "SIGSEGV"}, -signal.SIGSEGV), ({"load_die": 9}, -9), ({"load_exit": 7}, 7)], ids=str
)
def test_a_load_can_end_the_process(path: Path, extra: dict[str, Any], code: int) -> None:
    returned, _, err = run(path, extra)

    assert returned == code
    assert "loaded" not in err


def test_a_load_can_hang_and_print(path: Path) -> None:
    process = start(path, {"load_hang": True, "load_print": "rubbish"})

    try:
        assert process.stdout is not None
        assert [process.stdout.readline(), process.stdout.readline()] == ["rubbish\n", "rubbish\n"]
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        _, err = process.communicate()

    assert "at 0.0" in err
    assert "loaded" not in err


# -- while answering --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("manners", "code"),
    [
        ("die=SIGKILL at=3", -9),
        ("die=11 at=3", -11),
        ("exit=4 at=3", 4),
        ("oom at=3", 1),
        ("raise='out of steam' at=3", 1),
    ],
)
def test_a_prompt_can_end_the_process_amid_an_answer(path: Path, manners: str, code: int) -> None:
    returned, _, err = run(path, {}, f"[[echo: {manners}]] Hello")

    assert returned == code
    assert "closed" not in err
    if code == 1:
        assert "text 'Hel'" in err
        assert "MemoryError" in err or "RuntimeError: out of steam" in err


def test_a_manner_can_show_with_the_first_chunk_of_the_prompt(path: Path) -> None:
    engine = load(path)
    sequence = RecordingSequence(engine.tokenize("[[echo: fail='no' at=-1]] Hi", add_special=True, parse_special=True))

    drive(engine, [sequence])

    assert (sequence.n_cached, sequence.prefilled_counts, sequence.message) == (0, [], "no")


def test_one_answer_can_fail_while_the_others_go_on(path: Path) -> None:
    engine = load(path)
    prompts = ["[[echo: fail='the sun set' at=2]] Hello", "Good day"]
    sequences = [RecordingSequence(engine.tokenize(text, add_special=True, parse_special=True)) for text in prompts]

    drive(engine, sequences, n_slots=2)

    failed, other = sequences
    assert (failed.text, failed.reason, failed.message) == ("He", FinishReason.ERROR, "the sun set")
    assert (other.text, other.reason) == ("Good day", FinishReason.STOP)


@pytest.mark.parametrize("kind", ["hang", "hang=gil"])
def test_an_answer_can_hang(path: Path, kind: str) -> None:
    process = start(path, {}, f"[[echo: print=now {kind} at=2]] Hello")

    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        _, err = process.communicate()

    assert "loaded" in err
    assert "text" not in err


def test_garbage_goes_to_standard_output_through_python_and_past_it(path: Path) -> None:
    code, out, err = run(path, {}, "[[echo: print='\x01\x02 rubbish' at=1]] Hello")

    assert (code, out) == (0, "\x01\x02 rubbish\n" * 2)
    assert "text 'Hello'" in err


def kept_bytes(err: str) -> int:
    """Resident memory that a process had more at its end than when its model was loaded."""
    kept = re.search(r"^kept (-?\d+)$", err, re.M)
    assert kept, err
    return int(kept[1])


def test_a_leak_stays_resident(path: Path) -> None:
    code, _, err = run(path, {}, f"[[echo: leak_bytes={64 * 2**20}]] Hello")

    assert code == 0
    assert kept_bytes(err) > 48 * 2**20


def test_without_a_leak_little_stays(path: Path) -> None:
    _, _, err = run(path, {}, "Hello")

    assert kept_bytes(err) < 24 * 2**20


# -- all the time -----------------------------------------------------------------------------------------------------


def test_a_flood_goes_on_until_max_tokens(path: Path) -> None:
    assert ask(load(path), "[[echo: flood]] ab", max_tokens=5).text == "ababa"
    assert len(ask(load(path, flood=True), "x", max_tokens=100).token_ids) == 100
    assert len(ask(load(path), "<|user|>[[echo: flood]]<|end|><|assistant|>", max_tokens=30).token_ids) == 30


def test_a_delay_slows_each_step_that_works_on_the_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("hostler_echo.engine.time", SimpleNamespace(sleep=slept.append))
    engine = load(path)
    slow = RecordingSequence(engine.tokenize("[[echo: delay_s=0.25]] abc", add_special=True, parse_special=True))

    drive(engine, [slow, RecordingSequence(engine.tokenize("quick", add_special=True, parse_special=True))], n_slots=2)

    assert slow.text == "abc"
    assert slept == [0.25] * 5  # the prompt, three letters, the end


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM to ignore")
def test_sigterm_can_be_ignored_and_close_can_hang(path: Path) -> None:
    process = start(path, {"ignore_sigterm": True, "close_hang": True})

    try:
        assert process.stderr is not None
        while not process.stderr.readline().startswith("text"):
            assert process.poll() is None
        process.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        process.kill()
        _, err = process.communicate()

    assert "closed" not in err


# -- how it is asked --------------------------------------------------------------------------------------------------


def test_a_prompt_beats_the_settings_which_beat_the_file(path: Path) -> None:
    path.write_text('{"script": "abc", "manners": {"fail": "file", "at": 1}}')

    assert ask(load(path), "x").message == "file"
    assert ask(load(path, fail="settings"), "x").message == "settings"
    sequence = ask(load(path, fail="settings"), "[[echo: fail=prompt at=2]] x")
    assert (sequence.message, sequence.text) == ("prompt", "ab")


def test_a_prompt_can_say_what_to_answer(path: Path) -> None:
    assert ask(load(path), "[[echo: script='two words']] x").text == "two words"


def test_a_directive_is_not_part_of_the_answer_and_only_read_at_the_beginning() -> None:
    assert read_directive(b" [[echo: at=3 fail='a b' hang]]\nrest") == ({"at": "3", "fail": "a b", "hang": True}, b"rest")
    assert read_directive(b"see [[echo: die=9]]") == ({}, b"see [[echo: die=9]]")
    assert read_directive(b"[[a wiki link]]") == ({}, b"[[a wiki link]]")


@pytest.mark.parametrize("directive", ["dye=9", "at=soon", "fail='unclosed", "load_s=x"])
def test_a_wrong_directive_ends_the_answer_with_the_reason(path: Path, directive: str) -> None:
    sequence = ask(load(path), f"[[echo: {directive}]] x")

    assert sequence.reason is FinishReason.ERROR
    assert sequence.message


def test_a_wrong_manner_in_the_settings_fails_the_load_with_those_it_knows(path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"the model's settings asks? echo for .*Expected `int`.*it knows load_s, "):
        load(path, at="soon")


def test_an_unknown_signal_is_named(path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match="die by 'SIGNIFICANT', which is no signal"):
        load(path, load_die="SIGNIFICANT")


# -- the page ---------------------------------------------------------------------------------------------------------


def test_the_readme_has_every_manner_and_no_other() -> None:
    tables = README.partition("## Bad manners")[2]
    rows = re.findall(r"^\| (`.*?) \|", tables, re.MULTILINE)
    names = {re.match(r"\w+", cell).group() for row in rows for cell in re.findall(r"`(.*?)`", row)}  # type: ignore[union-attr]

    assert names == set(manner_names())


def test_a_well_behaved_run_takes_the_short_way() -> None:
    assert Manners().is_good
    assert Manners(flood=True, at=3, load_s=9).is_good
    assert not any(Manners(**bad).is_good for bad in ({"hang": True}, {"exit": 0}, {"delay_s": 0.1}, {"fail": "x"}))
