"""One table of settings: name, type, default, unit, environment name. The CLI's flags and docs/configuration.md are made
from it.

Floor 0; runs wherever a process starts. Order: command-line flag, then HOSTLER_* in the environment, then
HOME/config.toml, then the default here. Settings of a model (ctx_len, ngl, ...) are not here: they belong to the model.
"""

from __future__ import annotations

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostler.errors import ConfigError, InvalidRequest
from hostler.subscription import Subscription, read_subscriptions

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    name: str
    type: type
    """bool, int, float, str, list (of strings; comma-separated in the environment), or Subscription (a list of them)."""
    default: Any
    unit: str
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """Of text: the only words allowed; empty: any."""

    @property
    def environment(self) -> str:
        """The variable that sets it."""
        return f"HOSTLER_{self.name.upper()}"

    @property
    def flag(self) -> str:
        """The flag of `hostler serve` that sets it."""
        return "--" + self.name.replace("_", "-")

    def parse(self, value: Any, origin: str) -> Any:
        """Turn text or a TOML value into this setting's type.

        Raises:
            ConfigError: Naming the setting, the value, where it came from and what would be accepted.
        """
        try:
            parsed = self._convert(value)
        except InvalidRequest as error:
            # Not with the value: it holds a secret.
            raise ConfigError(f"{origin}: {error.message}", param=error.param or self.name) from error
        except (TypeError, ValueError, OverflowError) as error:
            raise ConfigError(
                f"{origin} sets {self.name} to {value!r}, which is not {_TYPE_WORDS[self.type]}", param=self.name
            ) from error
        too_small = self.minimum is not None and parsed < self.minimum
        too_large = self.maximum is not None and parsed > self.maximum
        if too_small or too_large or (self.choices and parsed not in self.choices):
            raise ConfigError(f"{origin} sets {self.name} to {parsed!r}; allowed: {self.limits}", param=self.name)
        return parsed

    @property
    def limits(self) -> str:
        """The values allowed, in words; empty when the type says it all."""
        if self.choices:
            return ", ".join(self.choices)
        if self.minimum is None or self.maximum is None:
            low = "" if self.minimum is None else f"at least {self.minimum:g}"
            return low if self.maximum is None else f"at most {self.maximum:g}"
        return f"{self.minimum:g} to {self.maximum:g}"

    def _convert(self, value: Any) -> Any:
        if self.type is bool:
            if isinstance(value, bool):
                return value
            word = str(value).strip().lower()
            if word in _TRUE:
                return True
            if word in _FALSE:
                return False
            raise ValueError(word)
        if self.type is list:
            if isinstance(value, str):
                return tuple(part.strip() for part in value.split(",") if part.strip())
            if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
                return tuple(value)
            raise TypeError(value)
        if self.type is Subscription:
            return read_subscriptions(value)
        if self.type is str:
            if not isinstance(value, str):
                raise TypeError(value)
            return value
        if isinstance(value, bool):
            raise TypeError(value)
        parsed = self.type(value)
        # int(1.5) is 1, and nan passes every limit.
        if not math.isfinite(parsed) or (isinstance(value, float) and parsed != value):
            raise ValueError(value)
        return parsed


_TYPE_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    list: "a list of strings",
}

MIB = 1024 * 1024

SETTINGS: tuple[Setting, ...] = (
    # -- address and access
    Setting("host", str, "127.0.0.1", "", "Address to listen on; on loopback both 127.0.0.1 and ::1 are served."),
    Setting("port", int, 1337, "", "Port to listen on; 0 takes a free one and prints it.", 0, 65535),
    Setting("api_key", list, (), "", "Keys that clients must send; none: open on loopback, refused elsewhere."),
    Setting("allow_open_bind", bool, False, "", "Serve a non-loopback address without a key; anyone who reaches it can use it."),
    Setting("allowed_hosts", list, (), "", "Further names accepted in the Host header; localhost names and IP literals always pass."),
    Setting("allowed_origins", list, (), "", "Further web origins accepted; those of localhost always pass; `*` accepts all."),
    Setting("max_body_bytes", int, 32 * MIB, "bytes", "Largest request body; over it 413.", 1024),
    Setting("max_file_bytes", int, 512 * MIB, "bytes", "Largest file that POST /v1/files takes; over it 413.", 1024),
    # -- requests
    Setting("max_requests", int, 128, "requests", "Everything that holds a thread: running and queued generations over all models, blocking starts and downloads, event streams; past it 429.", 1, 4096),
    Setting("queue_len", int, 64, "requests", "Generations that may wait for a slot, per model; past it 429.", 0, 4096),
    Setting("stall_timeout_s", float, 60.0, "s", "A reader that takes nothing for so long loses its request.", 1),
    # -- models
    Setting("default_model", str, "smollm2", "", "Model that a download request without a name means, and `serve` suggests."),
    Setting("model", list, (), "", "Models to start with the server."),
    Setting("autostart", bool, True, "", "Start a downloaded model when a request names it."),
    Setting("keep_alive_s", float, 0.0, "s", "Stop a model that was idle for so long; 0: keep it until memory is needed.", 0),
    Setting("max_loaded_models", int, 0, "models", "Models running at once; 0: as many as memory has room for.", 0),
    Setting("memory_budget_bytes", int, 0, "bytes", "Memory that all models together may take; 0: what the machine has available.", 0),
    Setting("start_timeout_s", float, 300.0, "s", "A load that makes no progress for so long is given up.", 1),
    Setting("step_timeout_s", float, 120.0, "s", "A worker whose loop stands still for so long while it has work is killed as stalled.", 1),
    Setting("stop_timeout_s", float, 10.0, "s", "How long a worker may take for an orderly stop before SIGTERM, and again before SIGKILL.", 0.1),
    Setting("drain_timeout_s", float, 30.0, "s", "How long running requests may finish when the server is told to stop.", 0),
    Setting("model_cache_bytes", int, 0, "bytes", "Weight files kept mapped and warm; 0: a quarter of memory.", 0),
    # -- prefix cache
    Setting("cache_ram_bytes", int, 4096 * MIB, "bytes", "Memory for the prefix cache of a model whose cache_ram_mib is auto, at most a tenth of the machine's; 0: none.", 0),
    Setting("cache_disk_bytes", int, 8192 * MIB, "bytes", "Disk that the kept prefixes of all models take together; 0: none are kept.", 0),
    Setting("cache_folder", str, "", "", "Folder of the kept prefixes; empty: HOME/cache/prefixes."),
    # -- downloads
    Setting("allow_file_sources", bool, False, "", "Accept file: sources and import paths over HTTP (the CLI always does)."),
    Setting("proxy", str, "", "", "HTTP proxy for downloads; empty: the environment's."),
    Setting("huggingface_token", str, "", "", "Token for gated models; empty: huggingface_hub's own."),
    Setting("allow_insecure_downloads", bool, False, "", "Honour ignoreSSL and proxy of a download request."),
    # -- records
    Setting("database", str, "", "", "Where assistants, threads, messages, files and runs are kept: postgresql://user:password@host/name, or sqlite:///file; empty: HOME/hostler.db."),
    # -- webhooks
    Setting("webhooks", Subscription, (), "", "Where events are sent: a URL, or with a secret and a choice of events a table of its own."),
    # -- logs
    Setting("log_level", str, "info", "", "debug, info, warning or error.", choices=("debug", "info", "warning", "error")),
    Setting("log_json", bool, False, "", "One JSON object per log line."),
)  # fmt: skip
BY_NAME = {setting.name: setting for setting in SETTINGS}

EXTRA_THREADS = 8
"""waitress threads beyond `max_requests`, so that health and lists always find one."""


@dataclass(frozen=True)
class Settings:
    """All settings with their values; `settings.port` reads one."""

    home: Path
    values: Mapping[str, Any] = field(repr=False)
    """Not in the repr: keys and tokens are among them."""
    origins: Mapping[str, str] = field(default_factory=dict)
    """Where each value came from: a flag, a variable, the file, or `default`."""

    def __getattr__(self, name: str) -> Any:
        # Not self.values: while copy or pickle makes one, it is not there yet, and asking for it would come back here.
        values = self.__dict__.get("values", {})
        if name not in values:
            raise AttributeError(f"there is no setting named {name!r}")
        return values[name]

    def replace(self, **values: Any) -> Settings:
        """A copy with some values changed, each parsed."""
        parsed = {name: BY_NAME[name].parse(value, "replace") for name, value in values.items()}
        return Settings(self.home, {**self.values, **parsed}, self.origins)


def default_home(environ: Mapping[str, str] | None = None) -> Path:
    """The data folder: HOSTLER_HOME, else the platform's place for user data."""
    environ = os.environ if environ is None else environ
    if environ.get("HOSTLER_HOME"):
        return Path(environ["HOSTLER_HOME"]).expanduser().absolute()
    import platformdirs  # late: only needed when the user did not say

    return Path(platformdirs.user_data_dir("hostler", appauthor=False))


def load_settings(
    home: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read all settings once.

    Args:
        home: Data folder; None: HOSTLER_HOME or the platform's.
        flags: Values given on the command line; None values count as not given.
        environ: The environment; None: the process's.

    Raises:
        ConfigError: For a bad value or an unknown name in config.toml, with the place it came from.
    """
    environ = os.environ if environ is None else environ
    home = default_home(environ) if home is None else home
    values: dict[str, Any] = {setting.name: setting.default for setting in SETTINGS}
    origins = dict.fromkeys(values, "default")

    def take(name: str, value: Any, origin: str) -> None:
        values[name] = BY_NAME[name].parse(value, origin)
        origins[name] = origin

    path = home / "config.toml"
    for name, value in _read_toml(path).items():
        if name not in BY_NAME:
            raise ConfigError(f"{path} sets {name!r}, which is no setting; docs/configuration.md lists them all", param=name)
        take(name, value, str(path))
    for setting in SETTINGS:
        if setting.environment in environ:
            take(setting.name, environ[setting.environment], setting.environment)
    for name, value in (flags or {}).items():
        if value is not None and value != ():
            take(name, value, BY_NAME[name].flag)
    return Settings(home, values, origins)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
