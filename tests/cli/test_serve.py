"""Flags of `hostler serve` against the table of settings."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from hostler.cli.serve import GROUPS, grouped_settings, serve
from hostler.config import BY_NAME, SETTINGS


@pytest.fixture
def started(monkeypatch):
    """Catches the settings that would be served."""
    caught = []

    def catch(settings, *, announce):
        caught.append(settings)
        return 0

    monkeypatch.setattr("hostler.server.serve", catch)
    return caught


def run(arguments, environ=None):
    return CliRunner().invoke(serve, arguments, env=dict.fromkeys(_variables()) | (environ or {}))


def _variables():
    return [setting.environment for setting in SETTINGS] + ["HOSTLER_HOME"]


def test_every_setting_has_a_flag_and_a_place_in_the_help():
    done = CliRunner().invoke(serve, ["--help"])

    for setting in SETTINGS:
        assert f"  {setting.flag} " in done.output
    for title, _ in GROUPS:
        assert f"\n{title}:\n" in done.output


def test_groups_cover_the_table_in_its_own_order():
    assert [setting for _, group in grouped_settings() for setting in group] == list(SETTINGS)
    assert all(name in BY_NAME for _, name in GROUPS)


def test_flag_wins_over_environment_and_file_and_what_is_not_given_does_not(tmp_path, started):
    (tmp_path / "config.toml").write_text('port = 1\nqueue_len = 2\nlog_level = "debug"\n')

    done = run(["--home", str(tmp_path), "--port", "3"], {"HOSTLER_QUEUE_LEN": "5"})

    assert done.exit_code == 0, done.output
    (settings,) = started
    assert (settings.port, settings.queue_len, settings.log_level) == (3, 5, "debug")
    assert settings.home == tmp_path


def test_lists_may_be_given_several_times_and_switches_both_ways(tmp_path, started):
    run(["--home", str(tmp_path), "--model", "a", "--model", "b", "--no-autostart", "--log-json"])

    (settings,) = started
    assert settings.model == ("a", "b")
    assert settings.autostart is False
    assert settings.log_json is True


def test_bad_value_of_the_environment_fails_with_1_and_names_the_variable(tmp_path, started):
    with pytest.raises(Exception, match="HOSTLER_PORT sets port to 'x'"):
        CliRunner().invoke(serve, ["--home", str(tmp_path)], env={"HOSTLER_PORT": "x"}, catch_exceptions=False)
    assert started == []


def test_exit_code_of_the_server_is_the_command_s(tmp_path, monkeypatch):
    monkeypatch.setattr("hostler.server.serve", lambda settings, *, announce: 0)

    assert isinstance(serve, click.Command)
    assert run(["--home", str(tmp_path)]).exit_code == 0
