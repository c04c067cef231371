"""What `/openapi.json` says of the routes of runs. Floor 5; pure values. Ids are OpenAI's, its misspelling included."""

from __future__ import annotations

from hostler.api.operation import Operation
from hostler.api.runframes import MessageDelta
from hostler.api.schema.paging import PAGING
from hostler.api.schema.runs import RunBody, RunChanges, ThreadRunBody, ToolOutputsBody
from hostler.library.fields import PARAMETERS
from hostler.records.objects import Message, Page, Run, RunStep, Thread

RUNS = "Runs"
MEDIA = ("application/json", "text/event-stream")
EVENTS = (Run, RunStep, Message, MessageDelta)
REFUSED = (400, 404, 429, 499, 500, 504, 507)
"""What counting a prompt, and starting a model for it, may come to."""

CREATE_RUN = Operation(
    "createRun", RUNS, "Create run: an assistant answers the thread", body=RunBody, answer=Run, statuses=(*REFUSED, 409),
    media=MEDIA, fields=PARAMETERS, event=EVENTS,
)  # fmt: skip
CREATE_THREAD_AND_RUN = Operation(
    "createThreadAndRun", RUNS, "Create thread and run", body=ThreadRunBody, answer=Run, statuses=REFUSED, media=MEDIA,
    fields=PARAMETERS, event=(Thread, *EVENTS),
)  # fmt: skip
LIST_RUNS = Operation("listRuns", RUNS, "List runs", answer=Page[Run], query=PAGING, statuses=(400, 404))
GET_RUN = Operation("getRun", RUNS, "Retrieve run", answer=Run, statuses=(404,))
MODIFY_RUN = Operation("modifyRun", RUNS, "Modify run", body=RunChanges, answer=Run, statuses=(400, 404))
CANCEL_RUN = Operation(
    "cancelRun", RUNS, "Cancel run, in whatever phase it is", answer=Run, statuses=(400, 404, 409)
)
SUBMIT_TOOL_OUTPUTS = Operation(
    "submitToolOuputsToRun", RUNS, "Submit tool outputs to run: refused, no run asks for any", body=ToolOutputsBody,
    answer=Run, statuses=(400, 404),
)  # fmt: skip
LIST_RUN_STEPS = Operation("listRunSteps", RUNS, "List run steps", answer=Page[RunStep], query=PAGING, statuses=(400, 404))
GET_RUN_STEP = Operation("getRunStep", RUNS, "Retrieve run step", answer=RunStep, statuses=(404,))
