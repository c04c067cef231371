"""`tools`, as assistants, threads and runs have them: kept as given, once they are of a known kind.

Floor 5; pure. Whether a model can use one is the run's question.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from msgspec import Meta

from hostler.api.schema.convert import required, shown
from hostler.api.schema.marks import exactly
from hostler.errors import InvalidRequest

MAX_TOOLS = 128
KINDS = ("code_interpreter", "file_search", "function", "retrieval")
"""OpenAI's, and Jan's old name for file_search."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")

ToolsBody = Annotated[
    list[dict[str, Any]],
    Meta(max_length=MAX_TOOLS),
    exactly(
        {
            "type": "array",
            "maxItems": MAX_TOOLS,
            "description": "Tools: code_interpreter, file_search, retrieval, or a function with its name and parameters.",
            "items": {
                "anyOf": [
                    {
                        "type": "object",
                        "required": ["type", "function"],
                        "properties": {
                            "type": {"const": "function"},
                            "function": {
                                "type": "object",
                                "required": ["name"],
                                "properties": {
                                    "name": {"type": "string", "pattern": f"^{_NAME.pattern}$"},
                                    "description": {"type": ["string", "null"]},
                                    "parameters": {"type": ["object", "null"]},
                                },
                            },
                        },
                    },
                    {
                        "type": "object",
                        "required": ["type"],
                        "properties": {"type": {"enum": [kind for kind in KINDS if kind != "function"]}},
                    },
                ]
            },
        }
    ),
]
"""As sent."""


def read_tools(tools: list[dict[str, Any]], path: str = "tools") -> list[dict[str, Any]]:
    """Check each one's kind, and a function's name.

    Raises:
        InvalidRequest, MissingParameter: With the path of the field, such as `tools[1].function.name`.
    """
    for index, tool in enumerate(tools):
        _check(tool, f"{path}[{index}]")
    return tools


def _check(tool: dict[str, Any], path: str) -> None:
    kind = required(tool.get("type"), f"{path}.type")
    if kind not in KINDS:
        raise InvalidRequest(f"{path}.type is {shown(kind)}; allowed: {', '.join(KINDS)}", param=f"{path}.type")
    if kind != "function":
        return
    function = required(tool.get("function"), f"{path}.function")
    if not isinstance(function, dict):
        raise InvalidRequest(f"{path}.function is {shown(function)}; expected an object", param=f"{path}.function")
    name = required(function.get("name"), f"{path}.function.name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidRequest(
            f"{path}.function.name is {shown(name)}; allowed: 1 to 64 letters, digits, underscores, points and dashes",
            param=f"{path}.function.name",
        )
    for field, kind, word in (("parameters", dict, "an object"), ("description", str, "a string")):
        value = function.get(field)
        if value is not None and not isinstance(value, kind):
            place = f"{path}.function.{field}"
            raise InvalidRequest(f"{place} is {shown(value)}; expected {word}", param=place)
