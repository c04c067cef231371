"""Settings: where each value comes from, and what a bad one is answered with."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from hostler.config import BY_NAME, SETTINGS, Setting, default_home, load_settings
from hostler.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def write_toml(home: Path, text: str) -> Path:
    path = home / "config.toml"
    path.write_text(text)
    return path


# -- order ------------------------------------------------------------------------------------------------------------


def test_every_setting_has_its_default_when_nobody_sets_it(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, environ={})

    assert {name: settings.values[name] for name in BY_NAME} == {setting.name: setting.default for setting in SETTINGS}
    assert set(settings.origins.values()) == {"default"}


def test_file_beats_default_environment_beats_file_flag_beats_environment(tmp_path: Path) -> None:
    path = write_toml(tmp_path, "port = 2000\n")

    from_file = load_settings(tmp_path, environ={})
    from_environment = load_settings(tmp_path, environ={"HOSTLER_PORT": "3000"})
    from_flag = load_settings(tmp_path, flags={"port": 4000}, environ={"HOSTLER_PORT": "3000"})

    assert (from_file.port, from_file.origins["port"]) == (2000, str(path))
    assert (from_environment.port, from_environment.origins["port"]) == (3000, "HOSTLER_PORT")
    assert (from_flag.port, from_flag.origins["port"]) == (4000, "--port")


@pytest.mark.parametrize("not_given", [None, ()])
def test_a_flag_that_was_not_given_leaves_the_others_their_say(tmp_path: Path, not_given: object) -> None:
    settings = load_settings(tmp_path, flags={"model": not_given}, environ={"HOSTLER_MODEL": "a,b"})

    assert settings.model == ("a", "b")


def test_a_flag_that_says_false_beats_an_environment_that_says_true(tmp_path: Path) -> None:
    assert load_settings(tmp_path, flags={"autostart": False}, environ={"HOSTLER_AUTOSTART": "1"}).autostart is False


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("port", "8080", 8080),
        ("port", 8080, 8080),
        ("port", 8080.0, 8080),
        ("keep_alive_s", "1.5", 1.5),
        ("keep_alive_s", 3, 3.0),
        ("autostart", "off", False),
        ("autostart", "YES", True),
        ("autostart", "", False),
        ("autostart", 1, True),
        ("api_key", "one, two,,", ("one", "two")),
        ("api_key", ["one", "two, three"], ("one", "two, three")),
        ("api_key", "", ()),
        ("host", "::1", "::1"),
        ("log_level", "debug", "debug"),
    ],
)
def test_text_and_toml_values_become_the_settings_type(name: str, value: object, expected: object) -> None:
    parsed = BY_NAME[name].parse(value, "a test")

    assert parsed == expected
    assert type(parsed) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("port", "http", "which is not a whole number"),
        ("port", 80.5, "which is not a whole number"),
        ("port", True, "which is not a whole number"),
        ("port", "", "which is not a whole number"),
        ("port", [80], "which is not a whole number"),
        ("port", float("inf"), "which is not a whole number"),
        ("keep_alive_s", "nan", "which is not a number"),
        ("keep_alive_s", "soon", "which is not a number"),
        ("autostart", "maybe", "which is not true or false"),
        ("autostart", 2, "which is not true or false"),
        ("host", 8, "which is not text"),
        ("api_key", [1], "which is not a list of strings"),
        ("api_key", {"a": 1}, "which is not a list of strings"),
        ("port", -1, "allowed: 0 to 65535"),
        ("port", 65536, "allowed: 0 to 65535"),
        ("stop_timeout_s", 0, "allowed: at least 0.1"),
        ("log_level", "loud", "allowed: debug, info, warning, error"),
    ],
)
def test_a_bad_value_is_refused_with_setting_value_and_origin(name: str, value: object, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BY_NAME[name].parse(value, "/home/me/config.toml")

    assert str(caught.value).startswith(f"/home/me/config.toml sets {name} to {value!r}")
    assert reason in str(caught.value)
    assert caught.value.param == name


def test_a_bad_value_names_the_variable_the_file_or_the_flag_it_stands_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^HOSTLER_MAX_BODY_BYTES sets max_body_bytes to 'big'"):
        load_settings(tmp_path, environ={"HOSTLER_MAX_BODY_BYTES": "big"})
    with pytest.raises(ConfigError, match=r"^--max-body-bytes sets max_body_bytes to 5"):
        load_settings(tmp_path, flags={"max_body_bytes": 5}, environ={})
    path = write_toml(tmp_path, 'log_level = "loud"')
    with pytest.raises(ConfigError, match=f"^{re.escape(str(path))} sets log_level to 'loud'"):
        load_settings(tmp_path, environ={})


def test_only_a_maximum_is_said_in_words() -> None:
    assert Setting("x", int, 0, "", "", maximum=5).limits == "at most 5"
    assert Setting("x", int, 0, "", "").limits == ""


def test_replace_parses_what_it_gets(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, environ={})

    assert settings.replace(port="99").port == 99
    assert settings.port == 1337
    with pytest.raises(ConfigError, match="port"):
        settings.replace(port="x")
    with pytest.raises(ConfigError, match="log_level"):
        settings.replace(log_level="loud")


# -- the file ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_in_the_file_is_refused_with_the_place(tmp_path: Path) -> None:
    path = write_toml(tmp_path, "prot = 80\n")

    with pytest.raises(ConfigError) as caught:
        load_settings(tmp_path, environ={})

    assert str(caught.value) == f"{path} sets 'prot', which is no setting; docs/configuration.md lists them all"


@pytest.mark.parametrize("content", [b"port = = 1", b"host = '\xff'"])
def test_a_file_that_is_no_toml_is_refused_with_the_place(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.toml").write_bytes(content)

    with pytest.raises(ConfigError, match=r"config\.toml is not valid TOML"):
        load_settings(tmp_path, environ={})


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()

    with pytest.raises(ConfigError, match=r"config\.toml cannot be read: Is a directory"):
        load_settings(tmp_path, environ={})


# -- home -------------------------------------------------------------------------------------------------------------


def test_the_home_folder_is_the_variables_or_the_platforms(tmp_path: Path) -> None:
    assert default_home({"HOSTLER_HOME": str(tmp_path)}) == tmp_path
    assert default_home({"HOSTLER_HOME": "~/models"}) == Path.home() / "models"
    assert default_home({}).name == "hostler"
    assert load_settings(environ={"HOSTLER_HOME": str(tmp_path)}).home == tmp_path


# -- the object -------------------------------------------------------------------------------------------------------


def test_keys_and_tokens_do_not_show_in_the_repr(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, flags={"api_key": ("sesame",), "huggingface_token": "hf_secret"}, environ={})

    assert "sesame" not in repr(settings)
    assert "hf_secret" not in repr(settings)


def test_an_unknown_setting_is_an_attribute_error_that_names_it(tmp_path: Path) -> None:
    settings = load_settings(tmp_path, environ={})

    with pytest.raises(AttributeError, match="there is no setting named 'colour'"):
        _ = settings.colour


@pytest.mark.parametrize("remake", [copy.copy, lambda settings: pickle.loads(pickle.dumps(settings))])
def test_settings_can_be_copied_and_pickled(tmp_path: Path, remake: Any) -> None:
    settings = load_settings(tmp_path, flags={"port": 5}, environ={})

    assert remake(settings).port == 5


# -- the table --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_row_of_the_table_is_complete(setting: Setting) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", setting.name)
    assert setting.help.endswith(".")
    assert setting.parse(setting.default, "the table") == setting.default
    for suffix, unit in (("_s", "s"), ("_bytes", "bytes")):
        if setting.name.endswith(suffix):
            assert setting.unit == unit


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_setting_is_documented_with_flag_and_variable(setting: Setting) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()

    section = re.search(rf"^### `{setting.name}`\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)

    assert section, f"docs/configuration.md has no heading for {setting.name}"
    assert setting.help in section.group(1)
    assert f"`{setting.flag}`" in section.group(1)
    assert f"`{setting.environment}`" in section.group(1)


def test_the_page_of_settings_has_no_setting_that_is_gone() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()

    assert set(re.findall(r"^### `(\w+)`$", page, re.MULTILINE)) == set(BY_NAME)
