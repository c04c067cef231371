"""Data folders as Jan has written them over the years, made small: the forms are Jan's, the words are not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support.tiny_gguf import tiny_gguf

THREAD_ID = "jan_1700123404"
"""As Jan named threads: the assistant and the second."""


CATALOGUED = "tinyllama-1.1b"
"""A model that hostler's catalogue offers, too, under Jan's id and from the same place."""
CATALOGUED_URL = (
    "https://huggingface.co/TheBloke/TinyLlama-1.1B-Chat-v1.0-GGUF/resolve/main/tinyllama-1.1b-chat-v1.0.Q4_K_M.gguf"
)


def text_part(value: str) -> dict[str, Any]:
    return {"type": "text", "text": {"value": value, "annotations": []}}


def message(id: str, role: str, content: Any, created: float, **more: Any) -> dict[str, Any]:
    """As of early 2024: `created` in milliseconds, `status` in Jan's words."""
    return {
        "id": id,
        "thread_id": THREAD_ID,
        "type": "Thread",
        "role": role,
        "content": content,
        "status": "ready",
        "created": created,
        "updated": created,
        "object": "thread.message",
        **more,
    }


def thread(id: str = THREAD_ID, **more: Any) -> dict[str, Any]:
    """As of early 2024."""
    return {
        "id": id,
        "object": "thread",
        "title": "Rome in three days",
        "assistants": [
            {
                "assistant_id": "jan",
                "assistant_name": "Jan",
                "tools": [{"type": "retrieval", "enabled": False, "settings": {"top_k": 2}}],
                "model": {
                    "id": "tinyllama-1.1b",
                    "settings": {"ctx_len": 4096, "ngl": "many"},
                    "parameters": {"temperature": 0.5, "max_tokens": 2048, "stop": ["</s>"], "top_p": 99},
                    "engine": "nitro",
                },
                "instructions": "Be brief.",
            }
        ],
        "created": 1700123404,
        "updated": 1700123500000,
        "metadata": {"lastMessage": "Bring water.", "nested": {"a": [1]}, "null": None},
        **more,
    }


MESSAGES = (
    message("01HF9ZQ4C0A", "user", [text_part("What should I see in Rome?")], 1700123405001),
    message("01HF9ZQ4C0B", "assistant", [text_part("The Forum.\nBring water.")], 1700123405900),
    message("01HF9ZQ4C0C", "user", "An old plain text", 1700123407000),
    message("01HF9ZQ4C0D", "assistant", [text_part("Half an ans")], 1700123408000, status="stopped"),
)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_thread(folder: Path, thread: dict[str, Any], *lines: dict[str, Any] | str) -> Path:
    """A thread's folder; lines that are text are written as they are."""
    home = folder / "threads" / str(thread["id"])
    write_json(home / "thread.json", thread)
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (home / "messages.jsonl").write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return home


def write_assistant(folder: Path, id: str = "jan", **more: Any) -> None:
    """As of 2025: `model` is whichever, times have a fraction."""
    value = {
        "avatar": "👋",
        "id": id,
        "object": "assistant",
        "created_at": 1750945742.536,
        "name": "Jan",
        "description": "Helps.",
        "model": "*",
        "instructions": "Answer in verse.",
        "tools": [{"type": "retrieval", "enabled": True, "useTimeWeightedRetriever": False, "settings": {}}],
        "file_ids": [],
        **more,
    }
    write_json(folder / "assistants" / id / "assistant.json", value)


def write_model(folder: Path, id: str, *, has_weights: bool = True, **more: Any) -> Path:
    """As of 2024: weights beside it, or only offered."""
    home = folder / "models" / id
    filename = f"{id}.gguf"
    value = {
        "sources": [{"filename": filename, "url": f"https://example.test/{filename}"}],
        "id": id,
        "object": "model",
        "name": id.title(),
        "version": "1.0",
        "description": "Small.",
        "format": "gguf",
        "settings": {"ctx_len": 2048},
        "parameters": {"temperature": 0.3},
        "metadata": {"author": "somebody", "tags": ["Tiny"], "size": 669000000},
        "engine": "nitro",
        **more,
    }
    write_json(home / "model.json", value)
    if has_weights:
        (home / filename).write_bytes(tiny_gguf())
    return home


def jan_folder(path: Path) -> Path:
    """A whole folder: two threads, the assistant and another, a model with weights and one without."""
    write_thread(path, thread(), *MESSAGES)
    write_thread(path, thread("jan_1700200000", title="Later", created=1700200000000))
    write_assistant(path)
    write_assistant(path, "poet", created_at=1700000000, model="tinyllama-1.1b")
    write_model(path, CATALOGUED, sources=[{"filename": f"{CATALOGUED}.gguf", "url": CATALOGUED_URL}])
    write_model(path, "offered-7b", has_weights=False)
    return path
