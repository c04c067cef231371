"""A data folder of Jan's, read: its assistants and threads in hostler's form, its models by their folders.

Floor 6; the process of one command. Reads only. Nothing in there is fatal: what cannot be read is reported with its place
and left out. Jan has changed its form over the years, and all of these are met with:

    assistants/ID/assistant.json   `model` may be `*`: whichever; times in seconds, milliseconds, or with a fraction
    threads/ID/thread.json         `assistants` are ids, objects with `assistant_id`, or whole assistants (`id`, `name`)
    threads/ID/messages.jsonl      `content` is a string or a list of parts
    models/ID/model.json           its weights beside it, or where `sources` says; often none: it was only offered
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hostler.api.schema.metadata import MAX_KEY_LENGTH, MAX_KEYS, MAX_VALUE_LENGTH
from hostler.api.schema.records import problem_of
from hostler.api.schema.threads import MAX_TITLE_LENGTH
from hostler.cli.lines import ASSISTANT, MAX_LINE_BYTES, MESSAGE, THREAD, BrokenLine, Item, decode, read_lines
from hostler.library.fields import tolerated, validate_parameters, validate_settings
from hostler.library.manifest import BrokenManifest, read_manifest
from hostler.library.names import path_of_file_url
from hostler.records.objects import DEFAULT_ASSISTANT
from hostler.records.times import unix_time, whole_seconds

LOCAL_ENGINES = {"nitro", "cortex", "cortex.llamacpp", "llama-cpp", "llamacpp"}
"""Jan's names of its one local engine: here they mean no choice."""
STATUSES = {"ready": "completed", "completed": "completed"}
"""Every other status means that nothing more will come."""
REASONS = {"stopped": "run_cancelled"}

Report = Callable[[str, str], None]


class JanModel(NamedTuple):
    """A model of the folder."""

    place: str
    id: str
    name: str
    paths: tuple[Path, ...]
    """What to import: the first of these that holds a model; empty: its weights are not here."""
    source_url: str
    settings: dict[str, Any]
    parameters: dict[str, Any]


class JanFolder:
    """One data folder; used by one thread."""

    def __init__(self, path: Path, report: Report) -> None:
        """Remember where it is.

        Args:
            report: Takes the place of what is left out, and why.
        """
        self.path = path
        self.report = report
        self.notes: Counter[str] = Counter()
        """What of objects that were taken hostler cannot keep, and how often."""

    # -- assistants -----------------------------------------------------------------------------------------------------

    def assistants(self) -> Iterator[Item]:
        """Its assistants, the oldest first."""
        found = [self._assistant(path, raw) for path, raw in self._documents("assistants", "assistant.json")]
        yield from filter(self._is_good, sorted(found, key=lambda item: int(item.value["created_at"])))

    def _assistant(self, path: Path, raw: dict[str, Any]) -> Item:
        created = _created(raw) or _modified(path)
        events = _dict(raw.get("events"))
        value = {
            "id": _id(raw, path),
            "object": ASSISTANT,
            "created_at": created,
            "version": raw["version"] if isinstance(raw.get("version"), int) else 1,
            "name": _text(raw.get("name")),
            "description": _text(raw.get("description")),
            "avatar": _text(raw.get("avatar")),
            "model": _assistant_model(raw),
            "instructions": _text(raw.get("instructions")),
            "tools": self._tools(raw.get("tools")),
            "parameters": _good_parameters(raw.get("parameters")),
            "events": {name: _texts(events.get(name)) for name in ("in", "out")},
            "file_ids": _texts(raw.get("file_ids")),
            "thread_location": _text(raw.get("thread_location")),
            "metadata": self._metadata(raw.get("metadata")),
        }
        return Item(self._place(path), value, 0)

    # -- threads --------------------------------------------------------------------------------------------------------

    def threads(self) -> Iterator[Item]:
        """Its threads, the oldest first, each followed by its messages in their order."""
        found = [(self._thread(path, raw), path) for path, raw in self._documents("threads", "thread.json")]
        for item, path in sorted(found, key=lambda pair: int(pair[0].value["created_at"])):
            if self._is_good(item):
                yield item
                yield from self._messages(item.value, path.with_name("messages.jsonl"))

    def _thread(self, path: Path, raw: dict[str, Any]) -> Item:
        created = _created(raw) or _modified(path)
        assistants: dict[str, dict[str, Any]] = {}
        for entry in _list(raw.get("assistants")):
            assistant = self._thread_assistant(entry, raw)
            if assistant is not None:
                assistants.setdefault(assistant["assistant_id"], assistant)
        value = {
            "id": _id(raw, path),
            "object": THREAD,
            "created_at": created,
            "updated": max(created, whole_seconds(raw.get("updated")) or created),
            "title": self._title(_text(raw.get("title")) or _text(raw.get("summary")) or ""),
            "assistants": list(assistants.values()),
            "metadata": self._metadata(raw.get("metadata")),
        }
        return Item(self._place(path), value, 0)

    def _title(self, title: str) -> str:
        if len(title) <= MAX_TITLE_LENGTH:
            return title
        self.notes[f"titles were cut to {MAX_TITLE_LENGTH} characters"] += 1
        return f"{title[: MAX_TITLE_LENGTH - 1]}…"

    def _thread_assistant(self, entry: Any, thread: dict[str, Any]) -> dict[str, Any] | None:
        if isinstance(entry, str):
            return {"assistant_id": entry} if entry else None
        if not isinstance(entry, dict):
            return None
        chosen = _dict(entry.get("model")) or _dict(thread.get("model"))
        engine = _text(chosen.get("engine") or chosen.get("provider"))
        value: dict[str, Any] = {
            "assistant_id": _text(entry.get("assistant_id")) or _text(entry.get("id")) or DEFAULT_ASSISTANT,
            "assistant_name": _text(entry.get("assistant_name")) or _text(entry.get("name")) or "Jan",
            "instructions": _text(entry.get("instructions")) or None,
            "model": {
                "id": _unless_any(_text(chosen.get("id"))) or _assistant_model(entry),
                "settings": _good_settings(chosen.get("settings")),
                "parameters": _good_parameters(chosen.get("parameters")) or _good_parameters(entry.get("parameters")),
                "engine": None if engine in LOCAL_ENGINES else engine,
            },
        }
        tools = self._tools(entry.get("tools") or entry.get("tool"))
        return {**value, "tools": tools} if tools else value

    def _messages(self, thread: dict[str, Any], path: Path) -> Iterator[Item]:
        if path.exists() and not path.is_file():  # a pipe would never end
            self.report(self._place(path), "this is no file")
            return
        try:
            with path.open("rb") as stream:
                lines = list(read_lines(stream, self._place(path), self.report))
        except FileNotFoundError:
            return
        except OSError as error:
            self.report(self._place(path), f"this cannot be read: {error.strerror}")
            return
        # Jan keeps them as they came. Where every message has a time the times decide: files made by hand differ.
        moments = [unix_time(line.value.get("created") or line.value.get("created_at")) for line in lines]
        if None not in moments:
            lines = [line for _, line in sorted(zip(moments, lines, strict=True), key=lambda pair: pair[0] or 0.0)]
        found: dict[str, Item] = {}
        for line in lines:
            item = self._message(thread, line)
            if item is not None and self._is_good(item):
                # A message that is there twice was written again: the later one counts, at the place of the first.
                found[item.value["id"]] = item
        yield from found.values()

    def _message(self, thread: dict[str, Any], line: Item) -> Item | None:
        raw = line.value
        role = raw.get("role")
        if role not in ("user", "assistant"):
            self.report(line.place, f"a message of the role {role!r} has no place in a thread: only user and assistant do")
            return None
        content = list(self._content(raw.get("content")))
        if not content:
            self.notes["messages without any content were left out"] += 1
            return None
        created = _created(raw) or int(thread["created_at"])
        word = _text(raw.get("status")) or "ready"
        status = STATUSES.get(word, "incomplete")
        is_whole = status == "completed"
        assistants = [assistant["assistant_id"] for assistant in thread["assistants"]]
        metadata = _dict(raw.get("metadata"))
        value = {
            "id": _text(raw.get("id")) or _made_id(thread["id"], line),
            "object": MESSAGE,
            "created_at": created,
            "thread_id": thread["id"],
            "role": role,
            "content": content,
            "file_ids": _texts(raw.get("file_ids")),
            "attachments": [entry for entry in _list(raw.get("attachments")) if isinstance(entry, dict)],
            "assistant_id": _text(raw.get("assistant_id")) or next(iter(assistants), None) if role == "assistant" else None,
            "run_id": _text(raw.get("run_id")),
            "metadata": self._metadata({**metadata, "error_code": raw.get("error_code")}),
            "status": status,
            "completed_at": (whole_seconds(raw.get("completed_at")) or created) if is_whole and role == "assistant" else None,
            "incomplete_at": None if is_whole else created,
            "incomplete_details": None if is_whole else {"reason": REASONS.get(word, "run_failed")},
        }
        return Item(line.place, value, line.n_bytes)

    def _content(self, content: Any) -> Iterator[dict[str, Any]]:
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        elif isinstance(content, dict):
            content = [content]
        for part in _list(content):
            if isinstance(part, str):
                part = {"type": "text", "text": part}
            if isinstance(part, dict):
                yield from self._part(part)

    def _part(self, part: dict[str, Any]) -> Iterator[dict[str, Any]]:
        kind = _text(part.get("type")) or "text"
        inner = _dict(part.get("text")) or {"value": part.get("text")}
        text = _text(inner.get("value")) or ""
        annotations = _list(inner.get("annotations"))
        if kind == "text":
            if text:
                yield _text_part(text, annotations)
        elif kind == "reasoning":
            if text:
                # Jan itself wrote it so before it had a kind for it, and chat templates know to leave it out.
                yield _text_part(f"<think>\n{text}\n</think>\n", [])
        elif kind in {"image", "image_url"}:
            image = part.get("image_url")
            urls = [image] if image else annotations
            for url in urls:
                found = url if isinstance(url, dict) else {"url": url}
                if _text(found.get("url")):
                    yield {"type": "image_url", "image_url": found}
        else:
            self.notes[f"parts of messages of the kind {kind} were left out"] += 1

    # -- models ---------------------------------------------------------------------------------------------------------

    def models(self) -> Iterator[JanModel]:
        """Its models, those without weights included."""
        for path in self._files("models", "model.json"):
            place = self._place(path)
            try:
                manifest = read_manifest(path.parent)
            except BrokenManifest as error:
                self.report(place, str(error).removeprefix(f"{path}: ").removeprefix(f"{path} "))
                continue
            except OSError as error:
                self.report(place, f"this cannot be read: {error.strerror}")
                continue
            paths: list[Path] = []
            if manifest.files:
                paths = [path.parent, path.parent / manifest.files[0].path]
            elif manifest.sources:
                # A model imported by its path: Jan has the path as the source's URL.
                url = manifest.sources[0].url
                elsewhere = Path(path_of_file_url(url) if url.startswith("file:") else url)
                paths = [elsewhere] if elsewhere.is_absolute() and elsewhere.is_file() else []
            yield JanModel(
                place, manifest.id, manifest.name, tuple(paths), manifest.source_url, manifest.settings, manifest.parameters
            )

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _files(self, kind: str, name: str) -> list[Path]:
        folder = self.path / kind
        try:
            return sorted(path for path in folder.glob(f"*/{name}") if path.is_file())
        except OSError as error:
            self.report(kind, f"this cannot be read: {error.strerror}")
            return []

    def _documents(self, kind: str, name: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        for path in self._files(kind, name):
            try:
                with path.open("rb") as stream:
                    data = stream.read(MAX_LINE_BYTES)
                yield path, decode(data.removeprefix(b"\xef\xbb\xbf"))
            except BrokenLine as broken:
                self.report(self._place(path), str(broken))
            except OSError as error:
                self.report(self._place(path), f"this cannot be read: {error.strerror}")

    def _is_good(self, item: Item) -> bool:
        """Whether the server would take it; else its neighbours would be left out with it."""
        problem = problem_of(item.value)
        if problem is not None:
            self.report(item.place, problem.message)
        return problem is None

    def _place(self, path: Path) -> str:
        return _readable(path.relative_to(self.path).as_posix())

    def _tools(self, tools: Any) -> list[dict[str, Any]]:
        kept = []
        for tool in _list(tools):
            if not isinstance(tool, dict) or tool.get("enabled") is False:
                continue
            if tool.get("type") == "retrieval":
                self.notes["tools for retrieval were left out: hostler has none"] += 1
            else:
                kept.append(tool)
        return kept

    def _metadata(self, metadata: Any) -> dict[str, str]:
        kept: dict[str, str] = {}
        for key, value in _dict(metadata).items():
            if value is None or value in ({}, []):
                continue
            text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
            if len(key) > MAX_KEY_LENGTH or len(text) > MAX_VALUE_LENGTH or len(kept) == MAX_KEYS:
                self.notes[f"metadata was left out: over {MAX_KEYS} keys or {MAX_VALUE_LENGTH} characters"] += 1
            else:
                kept[key] = text
        return kept


# -- values ---------------------------------------------------------------------------------------------------------------


def _created(raw: Mapping[str, Any]) -> int | None:
    return whole_seconds(raw.get("created"), raw.get("created_at"))


def _modified(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 1


def _id(raw: Mapping[str, Any], path: Path) -> str:
    return _text(raw.get("id")) or _readable(path.parent.name)


def _readable(name: str) -> str:
    """A file's name as text: bytes that are none, and what would command a terminal, become a mark."""
    text = name.encode(errors="surrogateescape").decode(errors="replace")
    return "".join(one if one.isprintable() else "\ufffd" for one in text)


def _made_id(thread_id: str, line: Item) -> str:
    """An id for a message that has none: the same whenever the same line is imported."""
    data = msgspec.json.encode([thread_id, line.place, line.value.get("content")])
    return f"msg_{hashlib.sha256(data).hexdigest()[:24]}"


def _assistant_model(raw: Mapping[str, Any]) -> str:
    models = _list(raw.get("models"))
    first = models[0].get("model_id") if models and isinstance(models[0], dict) else None
    return _unless_any(_text(raw.get("model")) or _text(first))


def _unless_any(model: str | None) -> str:
    """Jan's `*` means whichever model the user has chosen."""
    return "" if model in {None, "*"} else str(model)


def _text_part(text: str, annotations: list[Any]) -> dict[str, Any]:
    return {"type": "text", "text": {"value": text, "annotations": annotations}}


def _good_settings(values: Any) -> dict[str, Any]:
    return tolerated(values, validate_settings)


def _good_parameters(values: Any) -> dict[str, Any]:
    return tolerated(values, validate_parameters)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: Any) -> list[str]:
    return [item for item in _list(value) if isinstance(item, str)]


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def is_jan_folder(path: Path) -> bool:
    """Whether a folder looks like a data folder of Jan's."""
    return any(next(path.glob(f"{kind}/*/{name}"), None) for kind, name in _KINDS)


_KINDS: Iterable[tuple[str, str]] = (("threads", "thread.json"), ("assistants", "assistant.json"), ("models", "model.json"))
