"""`POST /v1/embeddings`. Source: spec/API.md section 7. Floor 5; on the waitress thread of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon

from hostler.api.answers import POLL_S, client_watch
from hostler.api.body import read_object
from hostler.api.inference import name_model, new_id, open_record
from hostler.api.schema.embeddings import EmbeddingCall, read_embeddings, render_embeddings
from hostler.domain import EmbedRequest, EmbedResult, Usage
from hostler.errors import InvalidRequest, RequestCancelled

if TYPE_CHECKING:
    from hostler.embedding import Embedding
    from hostler.runtime import Runtime


class Embeddings:
    """Texts as vectors."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """Embed one input or several."""
        record = open_record(req, new_id("embd-"), "")
        call = read_embeddings(read_object(req))
        record.model = model = self._runtime.model(call.model).manifest.id
        req.context.has_own_line = True
        try:
            request = EmbedRequest(record.generation_id, model, call.inputs, call.dimensions, call.priority)
            with self._runtime.embed(request) as embedding:
                result = _wait(embedding, req)
        except Exception as error:
            record.write(getattr(error, "code", "internal_error"))
            _name_input(error, call)
            raise
        name_model(resp, model)
        resp.content_type = falcon.MEDIA_JSON
        resp.data = render_embeddings(result, model, is_base64=call.is_base64)
        record.write("embedded", Usage(result.n_tokens, 0))


def _wait(embedding: Embedding, req: falcon.Request) -> EmbedResult:
    is_client_gone = client_watch(req)
    for _ in embedding.progress(POLL_S):
        if is_client_gone():
            raise RequestCancelled("The client has left")
    return embedding.result


def _name_input(error: Exception, call: EmbeddingCall) -> None:
    """Make an error name the input by the path that its client wrote."""
    if call.is_single and isinstance(error, InvalidRequest) and error.param is not None:
        error.param = error.param.replace("input[0]", "input", 1)
        error.message = error.message.replace("input[0]", "input")
