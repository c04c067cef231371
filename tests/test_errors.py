"""The error tree: what its page draws is what it is, and every error has its place in the API."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from hostler import errors
from hostler.errors import HostlerError


def descendants(parent: type[HostlerError]) -> Iterator[type[HostlerError]]:
    for child in parent.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from descendants(child)


ALL = list(descendants(HostlerError))
LEAVES = [error for error in ALL if not list(descendants(error))]


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    parents: list[str] = []
    drawn: dict[str, tuple[str, str]] = {}
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"    ([│├└─ ]*)([A-Z]\w+)(?: +([a-z_]+))?(?:  |$)", line)
        if match:
            depth = len(match.group(1)) // 4
            parents[depth:] = [match.group(2)]
            drawn[match.group(2)] = (parents[depth - 1] if depth else "Exception", match.group(3) or "")

    real = {error.__name__: (error.__bases__[0].__name__, error.__dict__.get("code", "")) for error in ALL}

    assert drawn.pop("HostlerError") == ("Exception", "code")
    assert drawn == real


def test_each_leaf_has_a_code_of_its_own() -> None:
    codes = [error.__dict__.get("code") for error in LEAVES]

    assert None not in codes
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code or "") for code in codes)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_each_error_has_a_row_in_the_api(error: type[HostlerError]) -> None:
    from hostler.api.errors import TABLE

    assert error in TABLE, f"api/errors.py has no row for {error.__name__}"


def test_an_error_is_its_sentence_and_carries_what_the_caller_needs() -> None:
    error = errors.QueueFull("the queue of 'x' is full", param="model", retry_after_s=2.5)

    assert str(error) == "the queue of 'x' is full"
    assert (error.code, error.param, error.retry_after_s) == ("queue_full", "model", 2.5)


def test_errors_with_numbers_carry_both() -> None:
    for kind in (errors.InsufficientMemory, errors.InsufficientStorage):
        error = kind("too big", needed_bytes=10, available_bytes=3)

        assert (error.needed_bytes, error.available_bytes, error.retry_after_s) == (10, 3, None)


def test_a_refused_model_carries_its_path_and_last_words() -> None:
    assert errors.InvalidModelFile("bad", path="/m.gguf").path == "/m.gguf"
    assert errors.ModelLoadFailed("bad", last_output="cuda: out of memory").last_output == "cuda: out of memory"
