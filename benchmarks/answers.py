"""Answers of OpenAI servers, taken apart after the clock has stopped: HTTP framing, SSE, JSON.

Works on what a client noted, (time, bytes) for each read of a socket, and touches no socket itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

Pieces = list[tuple[float, bytes]]


@dataclass
class Reply:
    """One answer as the client saw it. Times are in seconds of the monotonic clock."""

    sent_s: float
    """Before the connection was opened."""
    ended_s: float = 0.0
    """When the last byte had come."""
    status: int = 0
    arrival_s: list[float] = field(default_factory=list)
    """Reads that brought new text: one entry a read, however many SSE chunks it held."""
    n_chunks: int = 0
    """SSE chunks with text in them."""
    text: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    is_counted: bool = False
    """The server counted the tokens (`usage`); else `completion_tokens` is the number of chunks."""
    timings: dict[str, float] | None = None
    """The server's own clock, where it tells it."""
    error: str | None = None
    is_cut: bool = False
    """The client closed the connection before the end, as it had been told to; what had come by then counts."""


class IncompleteAnswer(ValueError):
    """What came stops short of what the answer's framing promised."""


def parse_http(pieces: Pieces, is_cut: bool = False) -> tuple[int, dict[str, str], Pieces]:
    """Split an answer that ended with its connection into status, headers (names lowered) and the timed body.

    Raises:
        IncompleteAnswer: Its head stops short, or its body does and the client has not cut it.
        ValueError: What came is no HTTP answer.
    """
    head, end, n_read = b"", -1, 0
    while end < 0:
        if n_read == len(pieces):
            raise IncompleteAnswer(f"the answer has no complete head: {head[:80]!r}")
        head += pieces[n_read][1]
        end = head.find(b"\r\n\r\n")
        n_read += 1
    lines = head[:end].decode("latin-1").split("\r\n")
    words = lines[0].split(" ", 2)
    if len(words) < 2 or not words[0].startswith("HTTP/") or not words[1].isdigit():
        raise ValueError(f"the answer begins with {lines[0][:80]!r}, not with an HTTP status line")
    pairs = (line.partition(":") for line in lines[1:])
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    body = [(pieces[n_read - 1][0], head[end + 4 :]), *pieces[n_read:]]
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = list(_dechunk(body, is_cut))
    elif "content-length" in headers:
        n_bytes = sum(len(data) for _, data in body)
        if n_bytes < int(headers["content-length"]) and not is_cut:
            raise IncompleteAnswer(f"the body ended after {n_bytes} of {headers['content-length']} bytes")
    return int(words[1]), headers, [(time_s, data) for time_s, data in body if data]


def _dechunk(pieces: Pieces, is_cut: bool) -> Iterator[tuple[float, bytes]]:
    """Remove chunked framing (RFC 9112 section 7.1); trailers are ignored."""
    buffer, n_left = b"", -1  # n_left: bytes of the current chunk still to come; -1: a size line comes next
    for time_s, data in pieces:
        buffer += data
        content = []
        while buffer:
            if n_left < 0:
                line, newline, rest = buffer.partition(b"\r\n")
                if not newline:
                    break
                if line:  # empty: the line end behind the last chunk
                    n_left = int(line.split(b";")[0], 16)
                    if n_left == 0:
                        yield time_s, b"".join(content)
                        return
                buffer = rest
            else:
                content.append(buffer[:n_left])
                n_left -= len(content[-1])
                buffer = buffer[len(content[-1]) :]
                if n_left == 0:
                    n_left = -1
        if content:
            yield time_s, b"".join(content)
    if not is_cut:
        raise IncompleteAnswer("the chunked body was cut before its last chunk")


def parse_sse(body: Pieces) -> Iterator[tuple[float, bytes]]:
    """Yield each event's data with the arrival time of the event's last byte; comments and other fields are skipped."""
    buffer = b""
    data: list[bytes] = []
    for time_s, piece in body:
        lines = (buffer + piece).split(b"\n")
        buffer = lines.pop()
        for line in lines:
            line = line.rstrip(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield time_s, b"\n".join(data)
                data = []


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None


class _Answer(msgspec.Struct):
    """The part of a completion, or of a chunk of one, that is looked at."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: dict[str, Any] | None = None
    error: Any = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def read_reply(pieces: Pieces, sent_s: float, ended_s: float, failure: str | None, is_cut: bool = False) -> Reply:
    """Take an answer apart.

    Args:
        pieces: What each read of the socket brought, with its time.
        failure: What went wrong while it came, or None.
        is_cut: The client left early: that the end is missing is no error then.
    """
    reply = Reply(sent_s, ended_s, error=failure, is_cut=is_cut)
    try:
        reply.status, headers, body = parse_http(pieces, is_cut)
        if "text/event-stream" in headers.get("content-type", ""):
            _read_stream(reply, body)
        else:
            content = b"".join(data for _, data in body)
            if reply.status != 200:
                raise ValueError(f"status {reply.status}: {content[:300].decode('utf-8', 'replace')}")
            _read_whole(reply, content)
    except IncompleteAnswer as error:
        if not is_cut:
            reply.error = reply.error or str(error)
    except (ValueError, msgspec.MsgspecError) as error:
        reply.error = reply.error or str(error)
    if not reply.is_counted:
        reply.completion_tokens = reply.n_chunks
    return reply


def _read_whole(reply: Reply, content: bytes) -> None:
    try:
        answer = _decode_answer(content)
    except msgspec.DecodeError as error:
        if reply.is_cut:
            raise IncompleteAnswer(str(error)) from error
        raise
    _take(reply, answer)


def _read_stream(reply: Reply, body: Pieces) -> None:
    texts, is_done = [], False
    for time_s, data in parse_sse(body):
        if data == b"[DONE]":
            is_done = True
            continue
        if text := _take(reply, _decode_answer(data)):
            texts.append(text)
            reply.n_chunks += 1
            if not reply.arrival_s or reply.arrival_s[-1] != time_s:
                reply.arrival_s.append(time_s)
    reply.text = "".join(texts)
    if not is_done and not reply.error and not reply.is_cut:
        reply.error = "the stream ended without [DONE]"


def _take(reply: Reply, answer: _Answer) -> str:
    """Note what an answer or chunk says; return its text."""
    if answer.error:
        reply.error = f"error event: {json.dumps(answer.error)[:300]}"
    if answer.usage:
        reply.prompt_tokens, reply.completion_tokens = answer.usage.prompt_tokens, answer.usage.completion_tokens
        if answer.usage.prompt_tokens_details:
            reply.cached_tokens = answer.usage.prompt_tokens_details.cached_tokens or 0
        reply.is_counted = True
    if answer.timings:
        reply.timings = {k: v for k, v in answer.timings.items() if isinstance(v, int | float)}
    text = ""
    for choice in answer.choices:
        reply.finish_reason = choice.finish_reason or reply.finish_reason
        part = choice.delta or choice.message
        text += choice.text or ((part.content or part.reasoning_content or "") if part else "")
    reply.text = text or reply.text
    return text
