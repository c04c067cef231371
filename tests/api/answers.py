"""What tests read in an answer."""

from __future__ import annotations

from typing import Any


def error_of(answer: Any) -> tuple[int, str, str | None]:
    """Status, code and param of an error in OpenAI's form, which has no other fields."""
    error = answer.json["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    return answer.status_code, error["code"], error["param"]
