"""The seed's schemas of models, in the tests' own words: field -> type, required ones first."""

from __future__ import annotations

from typing import Any

URI = str
MODEL_REQUIRED = {
    "type": str, "version": str, "id": str, "name": str, "created": int, "state": (str, type(None)), "format": str,
    "source_url": URI, "settings": dict, "parameters": dict,
}  # fmt: skip
MODEL_OPTIONAL = {"owned_by": str, "description": str, "metadata": dict, "assets": list}
GET_REQUIRED = {
    "id": str, "object": str, "created": int, "owned_by": str, "state": str, "source_url": URI, "parameters": dict,
    "metadata": dict,
}  # fmt: skip
GET_PARAMETERS = {
    "ctx_len": int, "ngl": int, "embedding": bool, "n_parallel": int, "temperature": str, "token_limit": str,
    "top_k": str, "top_p": str,
}  # fmt: skip
CHANGED_STATE = {"id": str, "object": str, "state": str}


def check(value: dict[str, Any], fields: dict[str, Any]) -> None:
    """Fail unless every field is there and of its type."""
    for name, kind in fields.items():
        assert name in value, f"{name} is missing"
        assert isinstance(value[name], kind), f"{name} is {value[name]!r}"
        assert kind is not int or not isinstance(value[name], bool)
