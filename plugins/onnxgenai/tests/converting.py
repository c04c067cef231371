"""Sources of conversions, and steps that need no torch: they write what the real ones would."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostler_onnxgenai import tinymodel
from hostler_onnxgenai.conversion.child import StepFailed
from library.gguf_files import LLAMA_TENSORS, llama_metadata, write_gguf

TOOLS = {
    "python": "3.11.7",
    "packages": {
        "torch": "2.9", "transformers": "5.0", "onnx": "1.20", "onnx-ir": "1.0", "accelerate": "1.0", "gguf": "0.19",
        "onnxruntime-genai": "0.18.0", "llama-cpp-python": "0.3.36",
    },
    "builder": "/site/onnxruntime_genai/models/builder.py",
    "architectures": ["LlamaForCausalLM"],
    "options": ["algo_config"],
}  # fmt: skip
GOOD = {
    "kl": 0.2,
    "kl_decode": 0.3,
    "kl_max": 1.0,
    "top1": 0.8,
    "n_same": 5,
    "n_new": 24,
    "same_tokens": True,
    "continuation": " Paris.",
}


def write_source(folder: Path, name: str = "small.Q4_1.gguf") -> Path:
    """A GGUF file with a sound header and no weights to speak of."""
    folder.mkdir(parents=True, exist_ok=True)
    return write_gguf(folder / name, llama_metadata(), LLAMA_TENSORS)


def write_safetensors(path: Path, shapes: dict[str, list[int]]) -> Path:
    """A safetensors file of float32 zeros."""
    header, offset = {}, 0
    for name, shape in shapes.items():
        size = 4
        for dim in shape:
            size *= dim
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(offset))
    return path


def write_folder(folder: Path, **config: Any) -> Path:
    """A safetensors folder as transformers writes it."""
    folder.mkdir(parents=True)
    write_safetensors(folder / "model.safetensors", {"model.embed_tokens.weight": [100, 8], "model.norm.weight": [8]})
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": True, "dtype": "bfloat16", **config})
    )
    return folder


class Steps:
    """Stands for `child.run_step`."""

    def __init__(self, *failing: str, check: dict[str, Any] | None = None, tools: dict[str, Any] | None = None) -> None:
        self.failing = set(failing)
        self.check = {**GOOD, **(check or {})}
        self.tools = tools or TOOLS
        self.ran: list[str] = []
        self.arguments: dict[str, dict[str, Any]] = {}

    def __call__(
        self, python: str, step: str, arguments: dict[str, Any], *, log: Path, show: Callable[[str, float | None], None]
    ) -> dict[str, Any]:
        self.arguments[step] = {**arguments, "python": python}
        if step == "tools":
            return self.tools
        self.ran.append(step)
        show(f"doing {step}", 0.5)
        if step in self.failing:
            raise StepFailed(f"{step} failed: no coal; its log is {log}")
        result: dict[str, Any] = getattr(self, f"do_{step}")(arguments)
        return result

    def do_load(self, arguments: dict[str, Any]) -> dict[str, Any]:
        folder = Path(arguments["folder"])
        (folder / "model.safetensors").write_bytes(bytes(1000))
        return {"architecture": "LlamaForCausalLM", "context_length": 512, "has_template": True, "size_bytes": 1000}

    def do_reference(self, arguments: dict[str, Any]) -> dict[str, Any]:
        Path(arguments["folder"], "logits.npy").write_bytes(b"logits")
        return {"tokens": [1, 2, 3], "bos": None, "greedy": [4] * arguments["n_new"], "continuation": " Paris, of course."}

    def do_build(self, arguments: dict[str, Any]) -> dict[str, Any]:
        folder = Path(arguments["folder"])
        tinymodel.write_llama(folder)
        return {"size_bytes": sum(path.stat().st_size for path in folder.iterdir())}

    def do_compare(self, arguments: dict[str, Any]) -> dict[str, Any]:
        assert Path(arguments["folder"], "genai_config.json").is_file()
        return self.check


class Told:
    """A display that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: list[tuple[str, str, bool]] = []
        self._step = ""

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, step: str, number: int, of: int) -> None:
        self._step = f"{number}/{of} {step}"

    def show(self, text: str, fraction: float | None) -> None:
        pass

    def end(self, summary: str, *, was_done: bool = False) -> float:
        self.ended.append((self._step, summary, was_done))
        return 0.0
