"""`/v1/assistants`: instructions, a model and its parameters under one name. Source: spec/API.md section 9.

Floor 5; on the waitress thread of the request.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import falcon
import msgspec

from hostler.api.body import read_object
from hostler.api.schema.assistants import one_model, read_assistant
from hostler.api.schema.convert import shown
from hostler.api.schema.paging import read_page
from hostler.errors import AssistantNotFound, InvalidRequest, RecordExists
from hostler.records.objects import Assistant

if TYPE_CHECKING:
    from hostler.records.assistants import AssistantStore
    from hostler.runtime import Runtime

BETA_HEADER = "openai-beta"
_BETA = re.compile(r"\s*assistants\s*=\s*v\d+\s*")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,127}")


class Assistants:
    """Assistants; `jan` is always among them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """createAssistant."""
        resp.data = msgspec.json.encode(self._create(read_assistant(read_object(req))))

    def list_all(self, req: falcon.Request, resp: falcon.Response) -> None:
        """listAssistants."""
        resp.data = msgspec.json.encode(self._assistants.list(read_page(req.get_param)))

    def get(self, req: falcon.Request, resp: falcon.Response, assistant_id: str) -> None:
        """getAssistant."""
        del req
        resp.data = msgspec.json.encode(self._assistants.get(assistant_id))

    def modify_or_create(self, req: falcon.Request, resp: falcon.Response, assistant_id: str) -> None:
        """modifyAssistant; Cortex's older clients make an assistant of their own id this way, OpenAI's never mean that."""
        fields = read_assistant(read_object(req))
        try:
            changed = self._modify(assistant_id, fields)
        except AssistantNotFound:
            if _is_openais(req.get_header(BETA_HEADER)):
                raise
            try:
                changed = self._create(fields, assistant_id)
            except RecordExists:  # somebody else made it between these lines
                changed = self._modify(assistant_id, fields)
            else:
                resp.status = falcon.HTTP_201
        resp.data = msgspec.json.encode(changed)

    def modify(self, req: falcon.Request, resp: falcon.Response, assistant_id: str) -> None:
        """AssistantsController_update."""
        resp.data = msgspec.json.encode(self._modify(assistant_id, read_assistant(read_object(req))))

    def delete(self, req: falcon.Request, resp: falcon.Response, assistant_id: str) -> None:
        """deleteAssistant; threads that name it go on naming it."""
        del req
        resp.data = msgspec.json.encode(self._assistants.delete(assistant_id))

    # -- inside ---------------------------------------------------------------------------------------------------------

    def _create(self, fields: dict[str, Any], assistant_id: str | None = None) -> Assistant:
        if assistant_id is not None and not _ID.fullmatch(assistant_id):
            raise InvalidRequest(
                f"assistant_id is {shown(assistant_id)}; a new one has at most 128 letters, digits, _, -, ., : and @",
                param="assistant_id",
            )
        return self._assistants.create(**one_model(fields), id=assistant_id)

    def _modify(self, assistant_id: str, fields: dict[str, Any]) -> Assistant:
        if "model" in fields and "models" in fields:
            fields = one_model(fields, self._assistants.get(assistant_id))
        return self._assistants.modify(assistant_id, **fields)

    @property
    def _assistants(self) -> AssistantStore:
        return self._runtime.records.assistants


def _is_openais(header: str | None) -> bool:
    """Whether OpenAI's client asks: it names the beta with every request about assistants."""
    return any(_BETA.fullmatch(part) for part in (header or "").split(","))
