"""`POST /v1/chat/completions`. Source: spec/API.md section 6. Floor 5; on the waitress thread of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import falcon

from hostler.api.answers import KEEP_ALIVE_S, Answer, Events
from hostler.api.body import read_object
from hostler.api.inference import answer, new_id, open_record
from hostler.api.logprobs import chat_logprobs
from hostler.api.schema.chat import read_chat
from hostler.api.sse import ChatFrames
from hostler.domain import GenerateRequest
from hostler.library.sampling import sampling_params

if TYPE_CHECKING:
    from hostler.runtime import Runtime


class Chat:
    """Conversations."""

    def __init__(self, runtime: Runtime, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._runtime = runtime
        self._keep_alive_s = keep_alive_s

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """createChatCompletion."""
        record = open_record(req, new_id("chatcmpl-"), "")
        call = read_chat(read_object(req))
        model = self._runtime.model(call.model).manifest
        record.model = model.id
        request = GenerateRequest(
            id=record.generation_id,
            model=model.id,
            params=sampling_params(
                model.parameters,
                call.parameters,
                logprobs=call.logprobs,
                logit_bias=call.logit_bias,
                output_format=call.output_format,
            ),
            messages=call.messages,
            n=call.n,
            cache_prompt=call.cache_prompt,
            priority=call.priority,
            template_kwargs=call.template_kwargs,
        )

        def frames(generation: Events) -> ChatFrames:
            return ChatFrames(generation.id, generation.created, model.id, include_usage=call.include_usage)

        def render(one: Answer) -> dict[str, Any]:
            logprobs = None
            if call.logprobs is not None:
                logprobs = {"content": chat_logprobs(one.logprobs), "refusal": None}
            return {"message": {"role": "assistant", "content": one.text, "refusal": None}, "logprobs": logprobs}

        answer(
            req,
            resp,
            lambda: self._runtime.generate(request),
            record,
            object_name="chat.completion",
            frames=frames if call.is_stream else None,
            render=render,
            n_prompts=1,
            n=call.n,
            keep_alive_s=self._keep_alive_s,
        )
