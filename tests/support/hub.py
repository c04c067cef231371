"""Web servers for pull tests: one that serves bytes with bad manners on demand, and one that speaks the hub's protocol.

Source of the protocol: huggingface_hub 2.4, hf_api.py (`model_info`) and file_download.py (`hf_hub_url`), and what the hub
sends with a file: a redirect to another host, X-Linked-Etag and X-Linked-Size.
"""

from __future__ import annotations

import hashlib
import json
import sys
import threading
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit


@dataclass
class Served:
    """One file and its manners."""

    content: bytes
    etag: str | None = None
    last_modified: float | None = None
    has_ranges: bool = True
    status: int = 200
    """Anything else is answered instead of the content."""
    status_times: int = 10**9
    """How often `status` is answered before the content is."""
    drop_after: int | None = None
    """Cut the connection after so many bytes of the body."""
    drop_times: int = 10**9
    """How often the connection is cut."""
    hold_after: int | None = None
    """Wait for `released` after so many bytes of the body."""
    released: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    """Set once `hold_after` bytes were sent."""
    headers: dict[str, str] = field(default_factory=dict)
    is_length_told: bool = True
    location: str | None = None
    """Redirect there."""


@dataclass(frozen=True)
class Asked:
    """One request that arrived."""

    path: str
    headers: dict[str, str]


class _QuietServer(ThreadingHTTPServer):
    """Clients that leave in the middle are what these tests are about."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class FileServer:
    """Serves `files` by path on a free port of 127.0.0.1; use it in a `with` block."""

    def __init__(self) -> None:
        self.files: dict[str, Served] = {}
        self.asked: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.asked.append(Asked(self.path, {key.lower(): value for key, value in self.headers.items()}))
                try:
                    server.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = _QuietServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for served in self.files.values():
            served.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    @property
    def url(self) -> str:
        """http://127.0.0.1:PORT"""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(self, path: str, content: bytes, **manners: object) -> Served:
        """Serve bytes at a path."""
        served = Served(content, **manners)  # type: ignore[arg-type]
        self.files[path] = served
        return served

    def ranges(self, path: str) -> list[str | None]:
        """The Range header of each request for a path, in order."""
        return [asked.headers.get("range") for asked in self.asked if urlsplit(asked.path).path == path]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one GET."""
        served = self.files.get(unquote(urlsplit(handler.path).path))
        if served is None:
            send_status(handler, 404)
        else:
            send_file(handler, served)


def send_status(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str] | None = None) -> None:
    """An answer without a body."""
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def send_json(handler: BaseHTTPRequestHandler, document: object) -> None:
    """An answer with a JSON body."""
    body = json.dumps(document).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def send_file(handler: BaseHTTPRequestHandler, served: Served) -> None:
    """A file, with its manners."""
    if served.location is not None:
        send_status(handler, 302, {"Location": served.location, **served.headers})
        return
    if served.status != 200 and served.status_times > 0:
        served.status_times -= 1
        send_status(handler, served.status, served.headers)
        return
    start, status = _start_of(handler, served), 200
    if start is not None:
        status = 206
    if start is not None and start >= len(served.content):
        send_status(handler, 416, {"Content-Range": f"bytes */{len(served.content)}"})
        return
    body = memoryview(served.content)[start or 0 :]
    handler.send_response(status)
    for name, value in served.headers.items():
        handler.send_header(name, value)
    if served.etag:
        handler.send_header("ETag", served.etag)
    if served.last_modified is not None:
        handler.send_header("Last-Modified", formatdate(served.last_modified, usegmt=True))
    if status == 206:
        handler.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
    if served.is_length_told:
        handler.send_header("Content-Length", str(len(body)))
    else:
        handler.send_header("Connection", "close")
        handler.close_connection = True
    handler.end_headers()
    if served.drop_after is not None and served.drop_times > 0:
        served.drop_times -= 1
        handler.wfile.write(body[: served.drop_after])
        handler.close_connection = True
        return
    if served.hold_after is not None and not served.released.is_set():
        handler.wfile.write(body[: served.hold_after])
        handler.wfile.flush()
        served.held.set()
        served.released.wait(60)
        body = body[served.hold_after :]
    handler.wfile.write(body)


def _start_of(handler: BaseHTTPRequestHandler, served: Served) -> int | None:
    asked = handler.headers.get("Range")
    if asked is None or not served.has_ranges:
        return None
    condition = handler.headers.get("If-Range")
    if condition is not None:
        dated = formatdate(served.last_modified, usegmt=True) if served.last_modified is not None else None
        if condition not in {served.etag, dated}:
            return None
    return int(asked.removeprefix("bytes=").removesuffix("-"))


@dataclass
class Repository:
    """One model repository."""

    files: dict[str, bytes]
    commit: str = "0123456789abcdef0123456789abcdef01234567"
    token: str | None = None
    """Who reads it must send this token."""
    is_gated: bool = False
    wrong_sha256: dict[str, str] = field(default_factory=dict)
    """File -> the hash that the hub claims instead of the true one."""


class FakeHub(FileServer):
    """Speaks the hub's protocol; the bytes come from a second server, as the hub's come from its CDN."""

    def __init__(self) -> None:
        super().__init__()
        self.cdn = FileServer()
        self.repositories: dict[str, Repository] = {}

    def __enter__(self):
        self.cdn.__enter__()
        return super().__enter__()

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self.cdn.__exit__()

    def add_repository(self, name: str, files: dict[str, bytes], **manners: object) -> Repository:
        """Serve a repository's files."""
        repository = Repository(files, **manners)  # type: ignore[arg-type]
        self.repositories[name] = repository
        for content in files.values():
            digest = hashlib.sha256(content).hexdigest()
            self.cdn.add(f"/{digest}", content, etag=f'"{digest}"')
        return repository

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        segments = [unquote(segment) for segment in parts.path.split("/") if segment]
        if segments[:2] == ["api", "models"]:
            self._answer_info(handler, segments[2:], "blobs" in parse_qs(parts.query))
        elif len(segments) >= 5 and segments[2] == "resolve":
            self._answer_file(handler, f"{segments[0]}/{segments[1]}", segments[3], "/".join(segments[4:]))
        else:
            send_status(handler, 404)

    def _answer_info(self, handler: BaseHTTPRequestHandler, segments: list[str], has_blobs: bool) -> None:
        name, revision = "/".join(segments[:2]), segments[3] if len(segments) > 3 else "main"
        repository = self.repositories.get(name)
        if repository is None or not self._may_read(handler, repository):
            # The hub does not say which of the two it is.
            send_status(handler, 401 if repository else 404, {"X-Error-Code": "RepoNotFound"})
            return
        if revision not in {"main", repository.commit}:
            send_status(handler, 404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return
        siblings = []
        for path, content in repository.files.items():
            sibling: dict[str, object] = {"rfilename": path}
            if has_blobs:
                digest = repository.wrong_sha256.get(path) or hashlib.sha256(content).hexdigest()
                sibling |= {"size": len(content), "blobId": "0" * 40}
                sibling |= {"lfs": {"size": len(content), "sha256": digest, "pointerSize": 135}}
            siblings.append(sibling)
        document = {"id": name, "modelId": name, "author": name.split("/")[0], "sha": repository.commit}
        send_json(handler, {**document, "gated": "manual" if repository.is_gated else False, "siblings": siblings})

    def _answer_file(self, handler: BaseHTTPRequestHandler, name: str, revision: str, path: str) -> None:
        repository = self.repositories.get(name)
        if repository is None or not self._may_read(handler, repository):
            send_status(handler, 401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif repository.is_gated:
            headers = {"X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {name} is restricted"}
            send_status(handler, 403, headers)
        elif revision not in {"main", repository.commit}:
            send_status(handler, 404, {"X-Error-Code": "RevisionNotFound"})
        elif path not in repository.files:
            send_status(handler, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            content = repository.files[path]
            digest = hashlib.sha256(content).hexdigest()
            send_status(
                handler,
                302,
                {
                    "Location": f"{self.cdn.url}/{digest}?signature={quote('secret token')}",
                    "X-Repo-Commit": repository.commit,
                    "X-Linked-Size": str(len(content)),
                    "X-Linked-Etag": f'"{digest}"',
                },
            )

    def _may_read(self, handler: BaseHTTPRequestHandler, repository: Repository) -> bool:
        return repository.token is None or handler.headers.get("Authorization") == f"Bearer {repository.token}"
