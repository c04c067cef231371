"""Step: a safetensors folder to a model folder, by the library's own builder, run as its own command line would."""

from __future__ import annotations

import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

BUILDER = "onnxruntime_genai.models.builder"


class Listener:
    """Stands for sys.stdout: passes on what the builder prints, and tells how far it is by the layers it names."""

    def __init__(self, stream: Any, n_layers: int, show: Callable[..., None]) -> None:
        self._stream = stream
        self._n_layers = max(1, n_layers)
        self._show = show

    def write(self, text: str) -> int:
        """As a text stream's."""
        layer = re.search(r"Reading (?:decoder )?layer (\d+)", text)
        if layer:
            self._show("reading layers", 0.5 * min(1.0, int(layer.group(1)) / self._n_layers))
        elif "Reading LM head" in text:
            self._show("quantizing and writing", 0.5)
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def speak_older_configs() -> None:
    """Give the builder a Gemma 3's rotary bases under the names that it looks for.

    transformers 5 has them by kind of layer; the builder of 0.18 knows that form of Gemma 4 alone, and of Gemma 3 the flat one
    of transformers 4. The check that follows every build would show a base gone wrong.
    """
    import transformers

    read = transformers.AutoConfig.from_pretrained

    def from_pretrained(*arguments: Any, **options: Any) -> Any:
        config = read(*arguments, **options)
        bases = getattr(config, "rope_parameters", None)
        if getattr(config, "model_type", "") == "gemma3_text" and isinstance(bases, dict) and "full_attention" in bases:
            config.rope_theta = bases["full_attention"]["rope_theta"]
            config.rope_local_base_freq = bases["sliding_attention"]["rope_theta"]
            config.rope_parameters = bases["full_attention"]
        return config

    transformers.AutoConfig.from_pretrained = from_pretrained


def run(arguments: dict[str, Any], show: Callable[..., None]) -> dict[str, Any]:
    """Build.

    Args:
        arguments: `source`, `folder`, `cache`: folders; `precision`, `device`: the builder's words; `options`: its further
            ones.
        show: Takes a text and a fraction.

    Returns:
        `size_bytes` of the result.
    """
    source, folder = Path(arguments["source"]), Path(arguments["folder"])
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    options = {"hf_token": "false", **arguments["options"]}
    sys.argv = [
        "builder",
        *("-i", str(source)),
        *("-m", str(source)),
        *("-o", str(folder)),
        *("-p", arguments["precision"]),
        *("-e", arguments["device"]),
        *("-c", arguments["cache"]),
        "--extra_options",
        *(f"{name}={value}" for name, value in options.items()),
    ]
    show("starting the builder")
    speak_older_configs()
    stdout = sys.stdout
    sys.stdout = Listener(stdout, int(config.get("num_hidden_layers") or 0), show)
    try:
        runpy.run_module(BUILDER, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            raise RuntimeError(f"the builder ended with {end.code}; the log says why") from end
    finally:
        sys.stdout = stdout
    if not (folder / "genai_config.json").is_file():
        raise RuntimeError("the builder ended well and wrote no genai_config.json")
    return {"size_bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())}
