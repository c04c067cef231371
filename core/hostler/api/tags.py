"""The tags of /openapi.json in their groups: the seed's, and hostler's own. Floor 5; pure values."""

from __future__ import annotations

MODELS = "Models"
CHAT = "Chat Completion"
COMPLETIONS = "Completions"
EMBEDDINGS = "Embeddings"
RESPONSES = "Responses"
ASSISTANTS = "Assistants"
MESSAGES = "Messages"
THREADS = "Threads"
RUNS = "Runs"
FILES = "Files"
RECORDS = "Records"
REQUESTS = "Requests"
WEBHOOKS = "Webhooks"
EVENTS = "Events"
PLUGINS = "Plugins"
ENGINES = "Engines"
HARDWARE = "Hardware"
SERVER = "Server"

TAG_GROUPS: dict[str, dict[str, str]] = {
    "Endpoints": {
        MODELS: "What is on this machine or can be: list, download, start, stop, change, delete.",
        CHAT: "The next turn of a conversation, whole or streamed.",
        COMPLETIONS: "Text that goes on from a prompt, whole or streamed.",
        EMBEDDINGS: "Texts as vectors.",
        RESPONSES: "OpenAI's newer form of a chat.",
    },
    "Chat": {
        ASSISTANTS: "Instructions, a model and its parameters under one name.",
        MESSAGES: "The turns of a thread.",
        THREADS: "Conversations that are kept.",
        RUNS: "An assistant's answer in a thread.",
        FILES: "Uploads, for messages to name.",
        RECORDS: "All of them at once, for the command line.",
    },
    "Server": {
        REQUESTS: "What is being generated now.",
        WEBHOOKS: "Who is told of what happens.",
        EVENTS: "What happens, as a stream.",
        PLUGINS: "What brings engines, model sources and more.",
        ENGINES: "What runs the models.",
        HARDWARE: "What this machine has.",
        SERVER: "The server itself.",
    },
}
"""Group -> tag -> what it is about. The five tags of the seed and their two groups are the seed's."""
