"""What `hostler doctor` finds, in particular of engines that misbehave."""

from __future__ import annotations

import json

from click.testing import CliRunner

from hostler.cli import cli
from hostler.cli.doctor import check_home, check_library, check_plugins, check_settings, probe_engine
from hostler.engine import EngineSpec
from hostler.plugins import PluginInfo, PluginProblem, Plugins


def engine(tmp_path, monkeypatch, body):
    (tmp_path / "probed.py").write_text(body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return EngineSpec(name="odd", formats=("gguf",), engine="probed:Engine", probe="probed:probe")


GOOD = """
from hostler.engine import DeviceProbe, EngineProbe
def probe():
    print("noise of the library")
    return EngineProbe("1.2", (DeviceProbe("cpu", True, "2 threads"), DeviceProbe("cuda", False, "no driver")))
"""


def test_probe_tells_devices_whatever_the_library_prints(tmp_path, monkeypatch):
    finding = probe_engine(engine(tmp_path, monkeypatch, GOOD))

    assert finding.state == "ok"
    assert finding.detail == "1.2: cpu (2 threads); cuda not available (no driver)"


def test_probe_that_dies_costs_only_its_own_row(tmp_path, monkeypatch):
    finding = probe_engine(engine(tmp_path, monkeypatch, "import os\ndef probe(): os.kill(os.getpid(), 9)"))

    assert finding.state == "failed"
    assert "signal 9" in finding.detail


def test_probe_that_raises_shows_its_last_words(tmp_path, monkeypatch):
    finding = probe_engine(engine(tmp_path, monkeypatch, "def probe(): raise OSError('libcuda.so is missing')"))

    assert finding.state == "failed"
    assert "libcuda.so is missing" in finding.detail


def test_probe_that_hangs_is_given_up(tmp_path, monkeypatch):
    finding = probe_engine(
        engine(tmp_path, monkeypatch, "import threading\ndef probe(): threading.Event().wait()"), timeout_s=2.0
    )

    assert finding.state == "failed"
    assert "did not end within 2 s" in finding.detail


def test_probe_without_any_device_fails(tmp_path, monkeypatch):
    body = "from hostler.engine import EngineProbe\ndef probe(): return EngineProbe('1', ())"

    assert probe_engine(engine(tmp_path, monkeypatch, body)).state == "failed"


def test_home_that_is_a_file_fails(tmp_path):
    (tmp_path / "home").write_text("")

    assert check_home(tmp_path / "home").state == "failed"


def test_bad_settings_fail_and_changed_ones_are_named(tmp_path):
    (tmp_path / "config.toml").write_text("port = 1\n")
    assert "port" in check_settings(tmp_path).detail

    (tmp_path / "config.toml").write_text("port = [\n")
    assert check_settings(tmp_path).state == "failed"


def test_folder_that_is_no_model_is_named(tmp_path):
    (tmp_path / "models" / "broken").mkdir(parents=True)
    (tmp_path / "models" / "broken" / "model.json").write_text("{")

    count, problem = check_library(tmp_path, Plugins())

    assert count.detail == "0 models here"
    assert (problem.subject, problem.state) == ("model folder broken", "warning")


def test_plugins_that_are_disabled_or_slow_to_import_are_shown():
    plugins = Plugins()
    plugins.left_out.append(PluginInfo("off", "made_up_off", state="disabled"))
    plugins.infos.append(PluginInfo("slow", "made_up_slow", import_s=1.25, brought=("numpy", "torch")))
    plugins.infos.append(PluginInfo("quick", "made_up_quick", import_s=0.001))

    disabled, slow, verdict = check_plugins(plugins)

    assert (disabled.subject, disabled.state) == ("plugin off", "ok")
    assert "hostler plugins enable off" in disabled.detail
    assert (slow.subject, slow.state) == ("plugin slow", "warning")
    assert "its import takes 1.2 s with numpy, torch" in slow.detail
    assert verdict.state == "failed"


def test_plugins_without_an_engine_fail_with_what_to_install():
    plugins = Plugins()
    plugins.problems.append(PluginProblem("bad", "plugin 'bad' cannot be imported"))

    problem, verdict = check_plugins(plugins)

    assert problem.state == "warning"
    assert verdict.state == "failed"
    assert "pip install hostler-llamacpp" in verdict.detail


def test_doctor_prints_json_and_exits_by_what_it_found(tmp_path):
    (tmp_path / "config.toml").write_text("port = [\n")

    done = CliRunner().invoke(cli, ["doctor", "--json", "--home", str(tmp_path)], env={"HOSTLER_LOAD_PLUGINS": ""})

    assert done.exit_code == 1
    subjects = {finding["subject"]: finding["state"] for finding in json.loads(done.stdout)}
    assert subjects["settings"] == "failed"
    assert subjects["home"] == "ok"
