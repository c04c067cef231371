"""The whole app held to its own document by schemathesis: data that the document allows and data that it does not, on every
operation, and stories of several requests that follow its links. Over a real runtime: records in a fresh home, the engine
without weights.

What it looks for: a 5xx but 501 and 503, a status or a content type that is not documented, an answer that its schema does not
allow, bad data that is taken, good data that is refused, a method that is not there and not refused.
"""

from __future__ import annotations

import copy
import itertools
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    allow_header_conformance,
    negative_data_rejection,
    positive_data_acceptance,
    unsupported_method,
)

from api.conftest import Client
from api.document import document
from hostler.api.app import create_app
from hostler.config import load_settings
from hostler.library.catalogue import Catalogue
from hostler.plugins import Plugins
from hostler.runtime import Runtime
from hostler.server import HttpServer, open_sockets, url_of

pytestmark = pytest.mark.slow

EXAMPLES = 15
"""Beside the cases that the coverage phase makes of every schema."""
STORIES = 40
ENDLESS = "/events"
"""A stream without an end; its own tests read it."""

UNSEEN = re.compile(
    r"(context_length_exceeded|unsupported_parameter|embeddings_disabled) .*"  # depends on the model and its engine
    r"|invalid_value (createCompletion|createEmbedding) (prompt|input)\S*"  # empty, without a BOS; a token the model has not
    r"|invalid_value \w+ logit_bias"  # a token the model has not
    r"|invalid_value \w+ (json_schema|grammar|guided_\w+|structured_outputs\S*)"  # a text that is no schema or no grammar
    r"|invalid_value createChatCompletion messages\[\d+\]\.role"  # the model's template has no place for tools
    r"|invalid_value (createChatCompletion|createRun|createThreadAndRun) messages"  # nothing was said yet, by anybody
    r"|\S+ \w+ (after|before)"  # an id, but none of this list's
    r"|\S+ createWebhook (secret|None)"  # base64 behind whsec_, no blank at an end; there are too many already
    r"|\S+ ModelsController_importModel (model|modelPath)"  # a path that is here, a new id
    r"|\S+ (downloadModel|ModelsController_pullModel) (id|source_url)"
    r"|\S+ \w+ (thread\.)?assistants\[\d+\]"  # named twice
    r"|\S+ \w+ models\[0\]\.model_id"  # not the same as `model`
    r"|\S+ \w+ (settings\.)?(llama_model_path|mmproj)"  # none of the model's files
    r"|\S+ modifyAssistant assistant_id"  # a new one is made of a few characters only
    r"|\S+ submitToolOuputsToRun run_id"  # no run of this release waits for any
    r"|\S+ getModelStatus None"  # Cortex's no is a 400
)
"""`CODE OPERATION PARAM` of a 400 to data that its schema allows, where the broken rule is none that JSON Schema has."""

KNOWN: dict[str, str] = {}
"""Parameter of a path -> one that exists."""
SHARES = {"startModel": (1,), "startModelPost": ()}
"""Each of these spawns a process, and they are the same: how many of four random ids are replaced, by their length."""
ASKING = {"createChatCompletion", "createCompletion", "createEmbedding"}
"""Whatever model they name, they mean the one that is there."""
ENDS = ("delete", "cancel")
"""Begin the ids of operations after which something would be gone that the other tests need."""


@contextmanager
def serving(folder: Path, fill: Callable[[Client], None]) -> Iterator[str]:
    """A real server over a real runtime with the model `parrot`; gives its URL."""
    chosen = load_settings(folder / "home", environ={}).replace(
        stop_timeout_s=2, max_body_bytes=1 << 20, default_model="parrot", memory_budget_bytes=1 << 30, allow_file_sources=True
    )
    plugins = Plugins()
    plugins.load_installed()  # engines only: without sources and catalogue nothing is ever fetched
    runtime = Runtime(chosen, plugins)
    runtime.library.catalogue = Catalogue(())
    (folder / "parrot.echo").write_text("{}")
    runtime.import_model(str(folder / "parrot.echo"))
    app = create_app(runtime, chosen)
    fill(Client(app))
    sockets = open_sockets("127.0.0.1", 0)
    server = HttpServer(app, sockets, chosen)
    server.start()
    try:
        yield url_of(sockets)
    finally:
        runtime.close(0)
        server.close()
        for listener in sockets:
            listener.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server in which every kind of thing is there once."""
    with serving(tmp_path_factory.mktemp("filled"), fill) as made:
        yield made


def fill(client: Client) -> None:
    """Make what the parameters of paths name."""

    def made(path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = client.simulate_post(path, json=body)
        assert answer.status_code == 200, answer.text
        return dict(answer.json)

    client.simulate_patch("/v1/models/parrot", json={"ctx_len": 512})
    form = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\nHello\r\n--edge--\r\n'
    file = client.simulate_post("/v1/files", body=form, headers={"Content-Type": "multipart/form-data; boundary=edge"}).json
    message = {"role": "user", "content": "Hello", "file_ids": [file["id"]]}
    thread = made("/v1/threads", {"messages": [message]})
    run = made(f"/v1/threads/{thread['id']}/runs", {"assistant_id": "jan", "model": "parrot", "stream": False})
    run_path = f"/v1/threads/{thread['id']}/runs/{run['id']}"
    deadline = time.monotonic() + 60
    while client.simulate_get(run_path).json["status"] in ("queued", "in_progress"):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (step,) = client.simulate_get(f"{run_path}/steps").json["data"]
    hook = made("/v1/webhooks", {"url": "http://127.0.0.1:9/hook"})
    KNOWN.update(model_id="parrot", thread_id=thread["id"], message_id=thread["messages"][0], file_id=file["id"])
    KNOWN.update(run_id=run["id"], step_id=step["id"], webhook_id=hook["id"], name="echo")
    KNOWN.update(assistant_id="jan", assistants_id="jan")


CONFIG = schemathesis.Config.from_dict(
    {
        "generation": {"deterministic": True, "database": "none"},
        "checks": {
            "not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "501", "503"]},
            "negative_data_rejection": {"expected-statuses": ["4xx", "5xx"]},  # 413, too: too long may be far too long
        },
    }
)
# A copy: schemathesis writes the links that it finds into the document.
schema = schemathesis.openapi.from_dict(copy.deepcopy(document()), config=CONFIG)


def check(case: Any, response: Any, **recorded: Any) -> None:
    """All of schemathesis's checks, save where one of them cannot know better."""
    excluded = [positive_data_acceptance]  # instead: good_data_is_taken
    if case.path.endswith("/"):
        # One resource under two spellings; the document shows but one method of it under this one.
        excluded += [allow_header_conformance, unsupported_method]
    if response.status_code == 500 and response.json()["error"]["code"] == "model_load_failed":
        # spec/API.md section 3. What an engine will not do with a demand such as `device` is the engine's to know.
        excluded.append(not_a_server_error)
    if case.media_type == "multipart/form-data":
        excluded.append(negative_data_rejection)  # the fields of a form have no types: every value is text
    if isinstance(response.request.body, bytes) and not response.request.body.strip():
        excluded.append(negative_data_rejection)  # blanks are an empty body, which is `{}`
    case.validate_response(response, excluded_checks=excluded, additional_checks=[good_data_is_taken], **recorded)


def good_data_is_taken(context: Any, response: Any, case: Any) -> bool | None:
    """As positive_data_acceptance, but for rules that no schema can say."""
    if response.status_code == 400:
        error = response.json()["error"]
        if UNSEEN.fullmatch(f"{error['code']} {operation_id(case)} {error['param']}"):
            return None
    return positive_data_acceptance(context, response, case)


def operation_id(case: Any) -> str:
    return str(case.operation.definition.raw["operationId"])


def base_of(case: Any) -> str:
    """Where the operation's path begins: the document's server, or the operation's own."""
    servers = case.operation.definition.raw.get("servers") or document()["servers"]
    return str(servers[0]["url"]).rstrip("/")


@schema.exclude(path=ENDLESS).parametrize()
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_an_operation_does_what_the_document_says(case: Any, url: str) -> None:
    if not operation_id(case).startswith(ENDS):
        # Random ids reach nothing but a 404: those that are there take the place of all but a few.
        for key, value in dict(case.path_parameters or {}).items():
            if key in KNOWN and len(value) % 4 in SHARES.get(operation_id(case), (1, 2, 3)):
                case.path_parameters[key] = KNOWN[key]
    if operation_id(case) in ASKING and isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = KNOWN["model_id"]
    check(case, case.call(base_url=url + base_of(case)))


Machine = schema.exclude(path=ENDLESS).as_state_machine()


def test_a_story_along_the_links_goes_as_the_document_says(tmp_path: Path) -> None:
    seen: set[str] = set()
    numbers = itertools.count()

    class Story(Machine):  # type: ignore[misc, valid-type]
        """Requests of which each takes what an earlier one gave; each story in a home of its own, so that all begin alike."""

        def setup(self) -> None:
            super().setup()
            folder = tmp_path / str(next(numbers))
            folder.mkdir()
            self.stack = ExitStack()
            self.url = self.stack.enter_context(serving(folder, lambda client: None))

        def teardown(self) -> None:
            self.stack.close()
            super().teardown()

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": self.url + base_of(case)}

        def validate_response(self, response: Any, case: Any, additional_checks: Any = None, **kwargs: Any) -> None:
            if response.status_code == 200 and "{" in case.path:
                seen.add(operation_id(case))
            check(case, response, recorder=self.recorder, transport_kwargs=kwargs or None)

    run_state_machine_as_test(
        Story,
        settings=settings(
            max_examples=STORIES,
            stateful_step_count=10,
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )

    assert len(seen) >= 4, f"hardly a story got beyond its first page: {seen}"
