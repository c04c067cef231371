"""`POST /v1/completions`. Source: spec/API.md section 7. Floor 5; on the waitress thread of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import falcon

from hostler.api.answers import KEEP_ALIVE_S, Answer, Events
from hostler.api.body import read_object
from hostler.api.fanout import ManyPrompts
from hostler.api.inference import answer, new_id, open_record
from hostler.api.logprobs import LegacyLogprobs
from hostler.api.schema.completions import DEFAULT_MAX_TOKENS, CompletionCall, read_completion
from hostler.api.sse import CompletionFrames
from hostler.domain import GenerateRequest
from hostler.library.sampling import sampling_params

if TYPE_CHECKING:
    from hostler.runtime import Runtime


class Completions:
    """Text that goes on."""

    def __init__(self, runtime: Runtime, keep_alive_s: float = KEEP_ALIVE_S) -> None:
        self._runtime = runtime
        self._keep_alive_s = keep_alive_s

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Complete one prompt or several."""
        record = open_record(req, new_id("cmpl-"), "")
        call = read_completion(read_object(req))
        model = self._runtime.model(call.model).manifest
        record.model = model.id
        params = sampling_params(
            model.parameters,
            call.parameters,
            logprobs=call.logprobs,
            logit_bias=call.logit_bias,
            default_max_tokens=DEFAULT_MAX_TOKENS,
            output_format=call.output_format,
        )

        def generate(index: int) -> Events:
            return self._runtime.generate(
                GenerateRequest(
                    id=record.generation_id if index == 0 else f"{record.generation_id}-{index}",
                    model=model.id,
                    params=params,
                    prompt=call.prompts[index],
                    n=call.n,
                    cache_prompt=call.cache_prompt,
                    priority=call.priority,
                )
            )

        def generate_all() -> Events:
            n_prompts = len(call.prompts)
            return generate(0) if n_prompts == 1 else ManyPrompts(generate, n_prompts, call.n)

        echoes = _echoes(call)

        def frames(generation: Events) -> CompletionFrames:
            return CompletionFrames(
                generation.id, generation.created, model.id, include_usage=call.include_usage, echoes=echoes
            )

        def render(one: Answer) -> dict[str, Any]:
            logprobs = None if call.logprobs is None else LegacyLogprobs().render(one.logprobs)
            echo = echoes[one.finish.index] if echoes else ""
            return {"text": echo + one.text, "logprobs": logprobs}

        answer(
            req,
            resp,
            generate_all,
            record,
            object_name="text_completion",
            frames=frames if call.is_stream else None,
            render=render,
            n_prompts=len(call.prompts),
            n=call.n,
            keep_alive_s=self._keep_alive_s,
        )


def _echoes(call: CompletionCall) -> tuple[str, ...]:
    """The text that each choice begins with; only text prompts get past the schema with echo."""
    if not call.is_echo:
        return ()
    return tuple(prompt for prompt in call.prompts if isinstance(prompt, str) for _ in range(call.n))
