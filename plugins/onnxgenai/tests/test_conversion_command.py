"""`hostler convert` as a command: its line, its words, its exit codes, and kill -9 in each of its steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from hostler import find_model
from hostler.cli import cli
from hostler.config import load_settings
from hostler_onnxgenai import tinymodel, versions
from hostler_onnxgenai.conversion import job
from hostler_onnxgenai.conversion.child import run_step
from hostler_onnxgenai.conversion.display import Lines
from support.server import eventually, hostler_environment, is_alive

from .converting import GOOD, TOOLS, Steps, write_source


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    """Steps that need no torch, in place of those that do."""
    steps = Steps()
    monkeypatch.setattr(job.Conversion.__init__, "__kwdefaults__", {**job.Conversion.__init__.__kwdefaults__, "run": steps})
    return steps


def hostler(home: Path, *arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(cli, ["--home", str(home), *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_file_is_converted_and_the_way_to_compare_the_two_is_shown(home: Path, steps: Steps, tmp_path: Path) -> None:
    code, out, err = hostler(home, "convert", write_source(tmp_path), "--id", "made")

    assert code == 0, err
    assert out.startswith("made is here: ")
    assert out.endswith("hostler bench made\n")  # the file is no model of this home
    assert "1/5 load" in err
    assert (
        "KL 0.200 from the source, 0.300 going on, the same likeliest token in 80%, the first 5 of 24 new tokens the same"
        in err
    )
    assert steps.ran == ["load", "reference", "build", "compare"]


@pytest.mark.usefixtures("steps")
def test_json_has_a_line_a_change_and_the_result_last(home: Path, tmp_path: Path) -> None:
    code, out, err = hostler(home, "convert", write_source(tmp_path), "--json")

    lines = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [line["step"] for line in lines if line.get("state") == "done"] == [
        "load", "reference", "build", "check", "register",
    ]  # fmt: skip
    assert lines[-1]["model"]["id"] == "small.Q4_1-onnx-int4"
    assert lines[-1]["model"]["check"] == GOOD


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nope"], 1, "The model nope does not exist"),
        (["smollm2"], 1, "hostler pull smollm2-135m-instruct"),
        (["SOURCE", "--quant", "fp16", "--device", "cpu"], 2, "--quant fp16 is not made for --device cpu"),
        (["SOURCE", "--quant", "int8", "--device", "dml"], 2, "choose among int4, fp16"),
        (["SOURCE", "--quant", "int3"], 2, "int3"),
        (["SOURCE", "--to", "gguf"], 2, "gguf"),
        ([], 2, "MODEL"),
        (["SOURCE", "--python", "/no/such/python"], 1, "/no/such/python cannot be run"),
    ],
)
def test_a_wrong_command_line_and_a_model_that_is_not_there_are_told(
    home: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    source = str(write_source(tmp_path))

    found, _, err = hostler(home, "convert", *(source if one == "SOURCE" else one for one in arguments))

    assert found == code
    assert words in err
    assert "Traceback" not in err


def test_a_device_is_chosen_by_what_is_installed(
    home: Path, steps: Steps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed", lambda: {"cuda": "0.18.0"})

    code, out, err = hostler(home, "convert", write_source(tmp_path))

    assert code == 0, err
    assert out.startswith("small.Q4_1-onnx-cuda-int4 is here")
    assert steps.arguments["build"]["device"] == "cuda"
    assert steps.arguments["compare"]["device"] == "cuda"


def test_an_interrupted_command_says_how_to_go_on(home: Path, steps: Steps, tmp_path: Path) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    steps.do_build = interrupt  # type: ignore[method-assign]

    code, _, err = hostler(home, "convert", write_source(tmp_path))

    assert code == 1
    assert "the same command goes on after the last finished step" in err


def test_help_names_the_command_and_imports_nothing_that_converts() -> None:
    code = (
        "import sys; from hostler.cli import main\nsys.argv = ['hostler', 'convert', '--help']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'onnx', 'onnxruntime_genai', 'hostler_onnxgenai.conversion'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "Convert a model into the format of ONNX Runtime GenAI" in done.stdout


# -- kill -9 ----------------------------------------------------------------------------------------------------------

FAKE = """
import json, os, pathlib, shutil, time
RESULT = {result!r}
def run(arguments, show):
    base = pathlib.Path({base!r})
    with open(base / "ran", "a") as stream:
        stream.write({name!r} + "\\n")
    folder = arguments.get("folder")
    {work}
    if (base / "hang").exists() and (base / "hang").read_text() == {name!r}:
        part = base / "pid.part"
        part.write_text(str(os.getpid()))
        part.rename(base / "pid")
        time.sleep(3600)
    return RESULT
"""
CODE = """
import functools, sys
from pathlib import Path
from hostler.config import load_settings
from hostler_onnxgenai.conversion.child import run_step
from hostler_onnxgenai.conversion.display import Lines
from hostler_onnxgenai.conversion.job import Conversion, Order
from hostler_onnxgenai.conversion.source import source_at
home, source, steps = map(Path, sys.argv[1:])
order = Order(source_at(source), "cpu", "int4", "made")
Conversion(load_settings(home, {}, {}), order, Lines(), run=functools.partial(run_step, steps=steps)).run()
"""


def write_fakes(folder: Path, base: Path, model: Path) -> None:
    """Steps in processes of their own that write what the real ones would, and hang where they are told to."""
    folder.mkdir()
    reference = {"tokens": [1, 2], "bos": None, "greedy": [3], "continuation": " x"}
    results = {"tools": TOOLS, "load": {"architecture": "LlamaForCausalLM", "size_bytes": 100}, "reference": reference,
               "build": {"size_bytes": 7}, "compare": GOOD}  # fmt: skip
    works = {
        "tools": "pass",
        "load": 'pathlib.Path(folder, "model.safetensors").write_bytes(bytes(100))',
        "reference": 'pathlib.Path(folder, "logits.npy").write_bytes(b"x")',
        "build": f"shutil.copytree({str(model)!r}, folder, dirs_exist_ok=True)",
        "compare": 'assert pathlib.Path(folder, "genai_config.json").is_file()',
    }
    for name, result in results.items():
        (folder / f"{name}.py").write_text(FAKE.format(result=result, base=str(base), name=name, work=works[name]))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
@pytest.mark.parametrize("step", ["load", "reference", "build", "compare"])
def test_kill_9_in_a_step_loses_that_step_only(home: Path, tmp_path: Path, step: str) -> None:
    source, fakes = write_source(tmp_path), tmp_path / "steps"
    write_fakes(fakes, tmp_path, tinymodel.write_llama(tmp_path / "tiny"))
    command = [sys.executable, "-c", CODE, str(home), str(source), str(fakes)]
    (tmp_path / "hang").write_text(step)
    first = subprocess.Popen(command, env=hostler_environment(), stderr=subprocess.DEVNULL)
    try:
        eventually((tmp_path / "pid").exists, f"the step {step} runs")
        child = int((tmp_path / "pid").read_text())
    finally:
        os.kill(first.pid, 9)
        first.wait()
    eventually(lambda: not is_alive(child), "the step has ended with its command")
    (tmp_path / "hang").unlink()

    again = subprocess.run(command, env=hostler_environment(), capture_output=True, text=True, check=False)

    assert again.returncode == 0, again.stderr
    ran = [line for line in (tmp_path / "ran").read_text().split() if line != "tools"]
    order = ["load", "reference", "build", "compare"]
    at = order.index(step)
    assert ran == [*order[: at + 1], *order[at:]]
    assert find_model(load_settings(home, {}, {}), "made").metadata["kl_divergence"] == GOOD["kl"]
    assert list((home / "conversions").iterdir()) == []


# -- the real thing ---------------------------------------------------------------------------------------------------


@pytest.fixture
def python(tmp_path: Path) -> str:
    """An interpreter with what a conversion needs: this one, or the one that HOSTLER_CONVERT_PYTHON names."""
    path = os.environ.get("HOSTLER_CONVERT_PYTHON") or sys.executable
    asked = {"packages": ["torch", "transformers", "accelerate", "gguf", "onnx", "onnx-ir"]}
    found = run_step(path, "tools", asked, log=tmp_path / "tools.log", show=Lines().show)
    missing = sorted(set(asked["packages"]) - set(found["packages"]))
    if missing or not found["builder"]:
        pytest.skip(
            f"{path} lacks {', '.join(missing) or 'the builder'}; pip install 'hostler-onnxgenai[cpu,convert]' there, or name "
            "another interpreter by HOSTLER_CONVERT_PYTHON"
        )
    return path


@pytest.mark.slow
@pytest.mark.weights
def test_the_default_model_is_converted_and_answers(home: Path, python: str, smollm2_path: Path) -> None:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "hostler", "--home", str(home), *arguments],
            env=hostler_environment(), capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("import", str(smollm2_path), "--id", "smollm2-q4")

    lines = [json.loads(line) for line in run("convert", "smollm2-q4", "--python", python, "--json").splitlines()]

    made = lines[-1]["model"]
    assert made["id"] == "smollm2-q4-onnx-int4"
    assert 0 < made["check"]["kl"] < 0.7
    assert made["check"]["same_tokens"]
    shown = json.loads(run("show", made["id"], "--json"))
    assert (shown["source_url"], shown["engine"]) == ("convert:smollm2-q4", "onnxgenai")
    assert (shown["metadata"]["quantization"], shown["metadata"]["base_quantization"]) == ("int4", "Q4_1")
    question = "What is the capital of France? Answer in one sentence."
    assert "Paris" in run("run", made["id"], "--temperature", "0", "--max-tokens", "24", question)
    measured = json.loads(run("bench", "smollm2-q4", made["id"], "--rounds", "1", "--tokens", "8", "--json"))
    assert [model["engine"] for model in measured["models"]] == ["llamacpp", "onnxgenai"]
    run("rm", made["id"])
