"""What `/openapi.json` says of the routes of threads, messages, assistants and files.

Floor 5; pure values, apart from `routes.py` so that the table there stays one to read. Ids and tags are Jan's where its
reference has the operation (spec/API.md section 14), OpenAI's otherwise.
"""

from __future__ import annotations

from msgspec import Struct

from hostler.api.operation import Operation, Query
from hostler.api.schema.assistants import AssistantBody
from hostler.api.schema.messages import MessageBody, MessageChanges
from hostler.api.schema.paging import PAGING
from hostler.api.schema.records import ImportAnswer, ImportBody
from hostler.api.schema.threads import AssistantChanges, ThreadBody, ThreadChanges
from hostler.api.upload import UploadForm
from hostler.records.objects import OCTETS, Assistant, Deleted, File, Message, MessageFile, Page, Thread

THREADS, MESSAGES, ASSISTANTS, FILES, RECORDS = "Threads", "Messages", "Assistants", "Files", "Records"


def _operation(
    id: str,
    tag: str,
    summary: str,
    answer: object,
    *,
    body: type[Struct] | None = None,
    query: tuple[Query, ...] = (),
    statuses: tuple[int, ...] = (),
) -> Operation:
    is_bad = (400,) if body is not None or query else ()
    return Operation(id, tag, summary, body=body, answer=answer, query=query, statuses=(*is_bad, *statuses))


# -- threads ------------------------------------------------------------------------------------------------------------

CREATE_THREAD = _operation("createThread", THREADS, "Create thread", Thread, body=ThreadBody)
LIST_THREADS = _operation("listThreads", THREADS, "List threads", Page[Thread], query=PAGING)
GET_THREAD = _operation("getThread", THREADS, "Retrieve thread", Thread, statuses=(404,))._replace(
    spellings=(("/v1/threads/{thread_id}/", "listThreadMessage"),)
)
MODIFY_THREAD = _operation("modifyThread", THREADS, "Modify thread", Thread, body=ThreadChanges, statuses=(404, 409))
PATCH_THREAD = _operation("patchThread", THREADS, "Modify thread", Thread, body=ThreadChanges, statuses=(404, 409))
DELETE_THREAD = _operation("deleteThread", THREADS, "Delete thread", Deleted, statuses=(404,))
GET_THREAD_ASSISTANTS = _operation(
    "getThreadAssistants", THREADS, "Get Thread.Assistants: the whole thread", Thread, statuses=(404,)
)
POST_THREAD_ASSISTANTS = _operation(
    "postThreadAssistants",
    THREADS,
    "Modify Thread.Assistants: merge into what the thread says of one assistant",
    Thread,
    body=AssistantChanges,
    statuses=(404,),
)

# -- messages -----------------------------------------------------------------------------------------------------------

LIST_MESSAGES = _operation(
    "listMessages",
    MESSAGES,
    "List messages",
    Page[Message],
    query=(*PAGING, Query("run_id", str, "Only messages of this run.")),
    statuses=(404,),
)
CREATE_MESSAGE = _operation("createMessage", MESSAGES, "Create message", Message, body=MessageBody, statuses=(404,))
GET_MESSAGE = _operation("retrieveMessage", MESSAGES, "Retrieve message", Message, statuses=(404,))
MODIFY_MESSAGE = _operation("modifyMessage", MESSAGES, "Modify message", Message, body=MessageChanges, statuses=(404,))
PATCH_MESSAGE = _operation("patchMessage", MESSAGES, "Modify message", Message, body=MessageChanges, statuses=(404,))
DELETE_MESSAGE = _operation("deleteMessage", MESSAGES, "Delete message", Deleted, statuses=(404,))
LIST_MESSAGE_FILES = _operation(
    "listMessageFiles", MESSAGES, "List message files", Page[MessageFile], query=PAGING, statuses=(404,)
)
GET_MESSAGE_FILE = _operation("retrieveMessageFile", MESSAGES, "Retrieve message file", MessageFile, statuses=(404,))

# -- assistants ---------------------------------------------------------------------------------------------------------

LIST_ASSISTANTS = _operation("listAssistants", ASSISTANTS, "List assistants", Page[Assistant], query=PAGING)
CREATE_ASSISTANT = _operation("createAssistant", ASSISTANTS, "Create assistant", Assistant, body=AssistantBody)
GET_ASSISTANT = _operation("getAssistant", ASSISTANTS, "Retrieve assistant", Assistant, statuses=(404,))
MODIFY_ASSISTANT = _operation(
    "modifyAssistant",
    ASSISTANTS,
    "Modify assistant; an id that is not there is created, 201, unless the header is sent",
    Assistant,
    body=AssistantBody,
    query=(Query("OpenAI-Beta", str, "`assistants=v2`, as OpenAI's clients send it: never create.", "header"),),
    statuses=(404,),
)._replace(further=(201,))
PATCH_ASSISTANT = _operation(
    "AssistantsController_update", ASSISTANTS, "Modify assistant", Assistant, body=AssistantBody, statuses=(404,)
)
DELETE_ASSISTANT = _operation("deleteAssistant", ASSISTANTS, "Delete assistant", Deleted, statuses=(404, 409))

# -- files --------------------------------------------------------------------------------------------------------------

CREATE_FILE = Operation(
    "createFile",
    FILES,
    "Upload file",
    body=UploadForm,
    answer=File,
    statuses=(400, 413),
    body_media="multipart/form-data",
)
LIST_FILES = _operation(
    "listFiles", FILES, "List files", Page[File], query=(*PAGING, Query("purpose", str, "Only files of this purpose."))
)
GET_FILE = _operation("retrieveFile", FILES, "Retrieve file", File, statuses=(404,))
DELETE_FILE = _operation("deleteFile", FILES, "Delete file", Deleted, statuses=(404,))
GET_FILE_CONTENT = Operation(
    "downloadFile", FILES, "Retrieve file content, or a range of it", statuses=(404, 416), media=(OCTETS,), further=(206,)
)

# -- records from elsewhere -----------------------------------------------------------------------------------------------

IMPORT_RECORDS = _operation(
    "importRecords", RECORDS, "Import records with their ids and times; the command line's", ImportAnswer, body=ImportBody,
    statuses=(403,),
)  # fmt: skip
