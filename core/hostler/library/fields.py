"""The one table of a model's settings and parameters: name, type, default, range, other spellings.

Floor 1; pure values. The API, the CLI, docs and PATCH validate with it; the engine gets what it lets through.
Source: spec/API.md section 5.0. Settings of the server itself are in config.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hostler.errors import InvalidRequest

AUTO = "auto"
"""`ctx_len` and `device`: hostler chooses."""
LARGEST = 2**31 - 1
"""What engines can count; a larger setting would wrap around in some."""
TRUE_WORDS = frozenset({"true", "1", "yes", "on"})
FALSE_WORDS = frozenset({"false", "0", "no", "off"})


@dataclass(frozen=True)
class Field:
    """One row of the table."""

    name: str
    type: type
    """bool, int, float, str, list (of strings, a single one also bare) or dict (kept as it is)."""
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    """Of a string: what is allowed. Of a number: words allowed beside numbers."""
    aliases: tuple[str, ...] = ()
    """Other spellings, the strongest first: of several that are sent the first here wins, `name` itself comes last."""
    extra_values: tuple[int, ...] = ()
    """Numbers allowed below the minimum."""
    pattern: str = ""
    """What a string must match, for whoever describes requests; it is checked where its meaning is known."""
    is_name: bool = False
    """It names a file or a device; an empty text names none and means unset."""
    is_switch: bool = False
    """A number that some know as a boolean: true is 1, false is 0."""

    def parse(self, value: Any, param: str) -> Any:
        """Turn a JSON value, or its text (`"2048"`, `"true"`), into this field's type.

        Args:
            value: Not None.
            param: Path to blame.

        Raises:
            InvalidRequest: Saying what would be accepted.
        """
        try:
            parsed = self._convert(value)
        except (TypeError, ValueError, OverflowError, RecursionError):  # the last: text of thousands of brackets
            raise self._refused(value, param) from None
        if isinstance(parsed, int | float) and not isinstance(parsed, bool) and parsed not in self.extra_values:
            too_small = self.minimum is not None and parsed < self.minimum
            too_large = self.maximum is not None and parsed > self.maximum
            if too_small or too_large:
                raise self._refused(value, param)
        return parsed

    def _convert(self, value: Any) -> Any:
        if self.type is bool:
            return _parsed_bool(value)
        if self.type is str:
            if not isinstance(value, str) or (self.choices and value not in self.choices):
                raise ValueError(value)
            return value
        if self.type is list:
            items = [value] if isinstance(value, str) else value
            if not isinstance(items, list | tuple) or not all(isinstance(item, str) for item in items):
                raise TypeError(value)
            return list(items)
        if self.type is dict:
            value = json.loads(value) if isinstance(value, str) else value
            if not isinstance(value, dict):
                raise TypeError(value)
            return portable(value)
        if self.is_switch and (isinstance(value, bool) or (isinstance(value, str) and not _is_number(value))):
            return int(_parsed_bool(value))
        if isinstance(value, str):
            word = value.strip()
            if word in self.choices:
                return word
            value = json.loads(word)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(value)
        if self.type is int:
            if value != int(value):
                raise ValueError(value)
            return int(value)
        if not math.isfinite(value):
            raise ValueError(value)
        return float(value)

    def _refused(self, value: Any, param: str) -> InvalidRequest:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        return InvalidRequest(f"{param} is {shown}; allowed: {self.allowed}", param=param)

    @property
    def allowed(self) -> str:
        """The accepted values in words."""
        if self.type is bool:
            return "true or false"
        if self.type is str:
            return ", ".join(self.choices) if self.choices else "a string"
        if self.type is list:
            return "a string or a list of strings"
        if self.type is dict:
            return "an object"
        kind = "a whole number" if self.type is int else "a number"
        if self.minimum is not None and self.maximum is not None:
            limits = f" from {_shown(self.minimum)} to {_shown(self.maximum)}"
        else:
            limits = f", {_shown(self.minimum)} or more" if self.minimum is not None else ""
        words = [*(str(extra) for extra in self.extra_values), *(f'"{choice}"' for choice in self.choices)]
        return f"{kind}{limits}" + (f", or {' or '.join(words)}" if words else "")


INSIDE = r"^(?![/\\])(?!.:)(?!(.*[/\\])?\.\.([/\\]|$))(?![./\\]+$)[^\x00-\x1f\x7f]*(?![\s\S])"
"""A path that stays in the folder it begins in, or nothing; see manifest.check_member_path. Its end is written so that every
dialect means the end: Python's `$` lets a line end stand behind it."""


def _shown(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


SETTINGS: tuple[Field, ...] = (
    Field(
        "ctx_len",
        int,
        AUTO,
        "Tokens per slot; auto: the file's, at most 8192 and what memory allows; 0: the file's.",
        128,
        LARGEST,
        choices=(AUTO,),
        aliases=("ctx_size",),
        extra_values=(0,),
    ),
    Field("ngl", int, 100, "Layers on the GPU; at or above the layer count: all.", 0, LARGEST, aliases=("n_gpu_layers",)),
    Field("embedding", bool, True, "Whether /embeddings answers."),
    Field("n_parallel", int, 4, "Concurrent slots.", 1, 256),
    Field("cpu_threads", int, 0, "Threads; unset: the physical cores.", 1, 4096),
    Field("device", str, AUTO, "auto, cpu, cuda, ...; anything but auto is a demand.", is_name=True),
    Field("cont_batching", bool, True, "Always on; false is accepted with a warning."),
    Field("prompt_template", str, None, "Template with {system_message} (optional) and {prompt}; unset: the file's.", pattern=r"\{prompt\}"),
    Field("pre_prompt", str, "", "System text of a chat that has none; only without a template."),
    Field("system_prompt", str, "SYSTEM: ", "Text before a system message; only without a template."),
    Field("user_prompt", str, "USER: ", "Text before a user's message; only without a template."),
    Field("ai_prompt", str, "ASSISTANT: ", "Text before an answer; only without a template."),
    Field(
        "llama_model_path",
        str,
        None,
        "Weight file inside the model's folder; unset: its first file.",
        aliases=("model_path",),
        pattern=INSIDE,
        is_name=True,
    ),
    Field("mmproj", str, None, "Projector file inside the model's folder.", pattern=INSIDE, is_name=True),
    Field("vision_model", bool, False, "The model takes images."),
    Field("text_model", bool, True, "The model takes text."),
    Field("cache_type", str, "f16", "Type of the KV cache.", choices=("f16", "q8_0", "q4_0")),
    Field("caching_enabled", bool, True, "Reuse the KV cache of equal prompt beginnings."),
    Field(
        "cache_ram_mib",
        int,
        AUTO,
        "MiB of memory for prompts' beginnings that lie in no slot; auto: the server's cache_ram_bytes; 0: none.",
        0,
        LARGEST,
        choices=(AUTO,),
    ),
    Field("cache_disk_mib", int, 4096, "MiB of disk for them, found again after a restart; 0: none.", 0, LARGEST),
    Field("n_batch", int, 512, "Prompt tokens evaluated at once.", 1, 65536),
    Field(
        "max_itl_ratio",
        float,
        2.5,
        "How many times its usual time between tokens (ITL) a running answer may take while prompts are evaluated: "
        "small keeps answers even, large brings new ones sooner.",
        1.1,
        100,
    ),
    Field("flash_attn", bool, True, "Flash attention where the engine has it."),
    Field("speculation", str, AUTO, "auto: guess tokens in advance where that pays; off: never.", choices=(AUTO, "off")),
    Field(
        "draft_model",
        str,
        None,
        "Id of a small model of the same vocabulary that guesses tokens in advance; unset: only what stood before is guessed.",
        is_name=True,
    ),
    Field("n_draft_max", int, 32, "Most tokens guessed at once for one answer.", 1, 48, aliases=("draft_max",)),
    Field("use_mmap", bool, True, "Map weight files instead of reading them, where the engine does not know better."),
    Field("mlock", bool, False, "Keep weights from being swapped out."),
    Field("grp_attn_n", int, 1, "Self-extend: group size.", 1, LARGEST),
    Field("grp_attn_w", int, 512, "Self-extend: window.", 1, LARGEST),
    Field("grammar_file", str, None, "GBNF grammar inside the model's folder.", pattern=INSIDE, is_name=True),
    Field("extra", dict, None, "Settings that only one engine knows, passed to it as they are."),
)

PARAMETERS: tuple[Field, ...] = (
    Field("temperature", float, 0.7, "0 is greedy.", 0, 2),
    Field("token_limit", int, 2048, "Most tokens of an answer.", 1, aliases=("max_completion_tokens", "max_tokens")),
    Field("top_k", int, 0, "Sample among the k most likely tokens; 0 is off.", 0),
    Field("top_p", float, 0.95, "Nucleus sampling; 1 is off.", 0, 1),
    Field("stream", bool, True, "What user interfaces should do; never changes what a request means."),
    Field("stop", list, (), "Texts that end an answer."),
    Field("frequency_penalty", float, 0.0, "Penalty for each earlier occurrence.", -2, 2),
    Field("presence_penalty", float, 0.0, "Penalty for any earlier occurrence.", -2, 2),
    Field("seed", int, -1, "-1 draws one.", -1, 2**63 - 1),
    Field("min_p", float, 0.05, "Smallest probability relative to the best token's; 0 is off.", 0, 1),
    Field("typ_p", float, 1.0, "Locally typical sampling; 1 is off.", 0, 1),
    Field("tfs_z", float, 1.0, "Tail-free sampling; 1 is off.", 0),
    Field("repeat_penalty", float, 1.0, "1 is off.", 0),
    Field("repeat_last_n", int, 64, "Tokens the penalties see; 0: none, -1: the whole context.", -1),
    Field("dynatemp_range", float, 0.0, "Dynamic temperature; 0 is off.", 0),
    Field("dynatemp_exponent", float, 1.0, "", 0),
    # Cortex types it as a boolean, llama.cpp as 0, 1 or 2.
    Field("mirostat", int, 0, "0 or false is off, 1 (true) and 2 are its versions.", 0, 2, is_switch=True),
    Field("mirostat_tau", float, 5.0, "Wanted surprise.", 0),
    Field("mirostat_eta", float, 0.1, "Learning rate.", 0),
    Field("penalize_nl", bool, False, "Whether the penalties see line ends."),
    Field("ignore_eos", bool, False, "Go on past the end of the answer."),
    Field("n_probs", int, 0, "Probabilities of so many tokens with each one.", 0, 20),
    Field("min_keep", int, 0, "Candidates that truncation leaves at least.", 0),
)


def portable(value: Any) -> Any:
    """A JSON value that a worker can be sent: a whole number beyond 64 bits is a float, as most readers of JSON have it.

    Raises:
        OverflowError: For one that is no float either.
    """
    if isinstance(value, dict):
        return {key: portable(one) for key, one in value.items()}
    if isinstance(value, list):
        return [portable(one) for one in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return float(value)
    return value


def validate_settings(values: Mapping[str, Any], prefix: str = "settings") -> dict[str, Any]:
    """Settings as a client or a file gave them -> native types under their own names.

    Args:
        values: Unknown keys and null values are left out; other spellings are understood.
        prefix: Begins the path in an error: `settings.ctx_len`; empty: `ctx_len`.

    Raises:
        InvalidRequest: For a value that cannot be meant.
    """
    found = _validated(SETTINGS, values, prefix)
    template = found.get("prompt_template")
    if template is not None and "{prompt}" not in template:
        param = _path(prefix, "prompt_template")
        raise InvalidRequest(f"{param} has no {{prompt}} marker; put it where the user's message goes", param=param)
    return found


def validate_parameters(values: Mapping[str, Any], prefix: str = "parameters") -> dict[str, Any]:
    """Parameters as a client or a file gave them -> native types; as `validate_settings`."""
    return _validated(PARAMETERS, values, prefix)


def changes_of(fields: tuple[Field, ...], values: Mapping[str, Any]) -> dict[str, None]:
    """The fields that a change takes back to their defaults: those it sends as null, under whatever spelling."""
    return {
        field.name: None
        for field in fields
        if any(name in values and _is_unset(field, values[name]) for name in (*field.aliases, field.name))
    }


def settings_with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """All settings, complete: what was set over the defaults; a None default stands for "not set" and is left out."""
    return _with_defaults(SETTINGS, values)


def parameters_with_defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters, complete, as `settings_with_defaults`."""
    return _with_defaults(PARAMETERS, values)


def tolerated(values: Any, validate: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """What is good of a group in a file that somebody else wrote: a bad value is left out, none is fatal."""
    if not isinstance(values, Mapping):
        return {}
    # Each alone to find the bad ones, then all together, so that of several spellings the right one wins.
    return validate({key: value for key, value in values.items() if _is_good({key: value}, validate)})


def _is_good(values: Mapping[str, Any], validate: Callable[[Mapping[str, Any]], dict[str, Any]]) -> bool:
    try:
        validate(values)
    except InvalidRequest:
        return False
    return True


def _validated(fields: tuple[Field, ...], values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in fields:
        for spelling in (*field.aliases, field.name):
            if not _is_unset(field, values.get(spelling)):
                parsed = field.parse(values[spelling], _path(prefix, spelling))
                found.setdefault(field.name, parsed)
    return found


def _is_unset(field: Field, value: Any) -> bool:
    return value is None or (field.is_name and value == "")


def _with_defaults(fields: tuple[Field, ...], values: Mapping[str, Any]) -> dict[str, Any]:
    complete = {}
    for field in fields:
        value = values.get(field.name)
        if value is None:
            value = list(field.default) if field.type is list else field.default
        if value is not None:
            complete[field.name] = value
    return complete


def _path(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _is_number(text: str) -> bool:
    return text.strip()[:1] in set("-0123456789")


def _parsed_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON does not tell 1.0 from 1
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError(value)
