"""What chats and completions share: an id, the log line, and one way to answer, streamed or whole.

Floor 5; on the waitress thread of the request.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import falcon
import msgspec

from hostler.api.answers import (
    Answer,
    AnswerStream,
    Events,
    FrameMaker,
    client_watch,
    collect,
    common_reason,
    total_timings,
    total_usage,
)
from hostler.api.log import GenerationRecord
from hostler.api.sse import CONTENT_TYPE, FINGERPRINT, usage_body

Render = Callable[[Answer], dict[str, Any]]


def new_id(prefix: str) -> str:
    """`chatcmpl-` and 24 hexadecimal digits."""
    return f"{prefix}{secrets.token_hex(12)}"


def open_record(req: falcon.Request, generation_id: str, model: str) -> GenerationRecord:
    """Say that this request asks a model to answer: its errors have inference's statuses."""
    req.context.is_inference = True
    record = GenerationRecord(req.context.request_id, generation_id, req.context.accepted_at)
    record.model = model
    return record


def name_model(resp: falcon.Response, model_id: str) -> None:
    """Say in a header which model answers; an id may hold what a header may not."""
    resp.set_header("x-hostler-model", quote(model_id, safe="/:@!$&'()*+,;=~ "))


def answer(
    req: falcon.Request,
    resp: falcon.Response,
    generate: Callable[[], Events],
    record: GenerationRecord,
    *,
    object_name: str,
    frames: Callable[[Events], FrameMaker] | None,
    render: Render,
    n_prompts: int,
    n: int,
    keep_alive_s: float,
) -> None:
    """Run a generation and make it the answer.

    Args:
        generate: Admits the request.
        object_name: `object` of a whole answer.
        frames: Makes the frames of a stream; None: one whole answer.
        render: One choice of a whole answer, without index and finish_reason.
        n_prompts: Prompts in the request, each answered `n` times.
        keep_alive_s: Silence after which a stream gets a comment.

    Raises:
        HostlerError: Before the response began.
    """
    req.context.has_own_line = True
    try:
        with _closing_on_error(generate()) as generation:
            record.model = generation.model.manifest.id
            name_model(resp, record.model)
            if frames is not None:
                _stream(req, resp, generation, frames(generation), record, n_prompts * n, n, keep_alive_s)
                return
            answers, finishes = collect(generation, n_prompts * n, record, client_watch(req))
    except Exception as error:
        record.write(getattr(error, "code", "internal_error"))
        raise
    usage, timings = total_usage(finishes, n), total_timings(finishes)
    record.write(common_reason(finishes), usage, timings)
    choices = [{"index": index, **render(one), "finish_reason": one.finish.reason.value} for index, one in enumerate(answers)]
    resp.content_type = falcon.MEDIA_JSON
    resp.data = msgspec.json.encode(
        {
            "id": generation.id,
            "object": object_name,
            "created": generation.created,
            "model": record.model,
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            "usage": usage_body(usage),
            "timings": timings,
        }
    )


@contextmanager
def _closing_on_error(generation: Events) -> Iterator[Events]:
    """Close the generation when the block raises; a stream keeps it open beyond the block."""
    try:
        yield generation
    except BaseException:
        generation.close()
        raise


def _stream(
    req: falcon.Request,
    resp: falcon.Response,
    generation: Events,
    frames: FrameMaker,
    record: GenerationRecord,
    n_choices: int,
    n: int,
    keep_alive_s: float,
) -> None:
    record.is_stream = True
    stream = AnswerStream(generation, frames, record, client_watch(req), n_choices=n_choices, n=n, keep_alive_s=keep_alive_s)
    stream.start()
    resp.content_type = CONTENT_TYPE
    resp.set_header("cache-control", "no-cache")
    resp.set_header("x-accel-buffering", "no")
    resp.stream = stream
