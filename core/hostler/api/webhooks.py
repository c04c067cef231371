"""`/v1/webhooks`: who is told of events. Source: spec/API.md section 10. Floor 5; on the waitress thread of the request."""

from __future__ import annotations

from typing import TYPE_CHECKING

import falcon
import msgspec

from hostler.api.body import read_object
from hostler.api.schema.paging import read_page
from hostler.api.schema.webhooks import read_webhook
from hostler.records.objects import Deleted

if TYPE_CHECKING:
    from hostler.runtime import Runtime


class Webhooks:
    """Webhooks, those of the configuration among them."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def create(self, req: falcon.Request, resp: falcon.Response) -> None:
        """createWebhook."""
        wanted = read_webhook(read_object(req))
        resp.data = msgspec.json.encode(self._runtime.webhooks.create(wanted))

    def list_all(self, req: falcon.Request, resp: falcon.Response) -> None:
        """listWebhooks."""
        resp.data = msgspec.json.encode(self._runtime.webhooks.page(read_page(req.get_param)))

    def get(self, req: falcon.Request, resp: falcon.Response, webhook_id: str) -> None:
        """retrieveWebhook: with the oldest events that it has not taken yet."""
        del req
        resp.data = msgspec.json.encode(self._runtime.webhooks.get(webhook_id))

    def delete(self, req: falcon.Request, resp: falcon.Response, webhook_id: str) -> None:
        """deleteWebhook."""
        del req
        self._runtime.webhooks.delete(webhook_id)
        resp.data = msgspec.json.encode(Deleted(webhook_id, "webhook.deleted"))

    def test(self, req: falcon.Request, resp: falcon.Response, webhook_id: str) -> None:
        """testWebhook: 200 whatever the receiver says; its answer is the answer."""
        del req
        with self._runtime.hold("webhook test"):
            resp.data = msgspec.json.encode(self._runtime.webhooks.test(webhook_id))
