"""The order in which a run is resolved: request over thread over assistant, field by field."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from hostler.domain import FormatKind, OutputFormat
from hostler.errors import InvalidRequest, UnsupportedParameter
from hostler.records.objects import Assistant, ThreadAssistant, ThreadModel
from hostler.runplan import NewThread, RunPlan, RunRequest, assistant_of, resolve, with_assistant

ASSISTANT = Assistant("asst_1", 1, 1, name="Tutor")
TOOL = {"type": "function", "function": {"name": "look_up"}}


def plan(
    request: dict[str, Any] | None = None,
    entry: dict[str, Any] | None = None,
    assistant: dict[str, Any] | None = None,
    default_model: str = "of-server",
) -> RunPlan:
    model = ThreadModel(**(entry or {}).pop("model", {}))
    others = ThreadAssistant("asst_other", instructions="not these", model=ThreadModel("not-this", {}, {"seed": 1}))
    entries = [others, ThreadAssistant("asst_1", model=model, **(entry or {}))]
    return resolve(RunRequest(**(request or {})), entries, structs.replace(ASSISTANT, **(assistant or {})), default_model)


@pytest.mark.parametrize(
    ("request_id", "thread", "expected"),
    [("asst_9", ["asst_1"], "asst_9"), (None, ["asst_1", "asst_2"], "asst_1"), (None, [], "jan")],
)
def test_the_assistant_is_whom_the_request_names_else_the_threads_first_else_the_default(
    request_id: str | None, thread: list[str], expected: str
) -> None:
    assert assistant_of(RunRequest(assistant_id=request_id), [ThreadAssistant(id) for id in thread]) == expected


LEVELS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("model", {"model": "of-request"}, {"model": {"id": "of-thread"}}, {"model": "of-assistant"}),
    ("instructions", {"instructions": "of-request"}, {"instructions": "of-thread"}, {"instructions": "of-assistant"}),
]


@pytest.mark.parametrize(("field", "request_level", "thread_level", "assistant_level"), LEVELS, ids=lambda v: str(v)[:12])
def test_each_level_wins_over_those_below(
    field: str, request_level: dict[str, Any], thread_level: dict[str, Any], assistant_level: dict[str, Any]
) -> None:
    def of(*levels: dict[str, Any]) -> str:
        return str(getattr(plan(*(dict(level) for level in levels)), field))

    assert of(request_level, thread_level, assistant_level) == "of-request"
    assert of({}, thread_level, assistant_level) == "of-thread"
    assert of({}, {}, assistant_level) == "of-assistant"
    assert of({}, {}, {}) == ("of-server" if field == "model" else "")


@pytest.mark.parametrize("any_model", ["", "*"])
def test_a_level_that_names_any_model_names_none(any_model: str) -> None:
    assert plan({}, {"model": {"id": any_model}}, {"model": any_model}).model == "of-server"
    assert plan({}, {"model": {"id": any_model}}, {"model": "of-assistant"}).model == "of-assistant"
    assert plan({}, {}, {}, default_model="").model == ""


def test_empty_instructions_are_instructions_and_additional_ones_are_appended() -> None:
    assert plan({"instructions": ""}, {"instructions": "of-thread"}).instructions == ""
    assert plan({"additional_instructions": "And more."}, {}, {"instructions": "Be brief."}).instructions == (
        "Be brief.\n\nAnd more."
    )
    assert plan({"additional_instructions": "And more."}).instructions == "And more."


def test_parameters_are_merged_one_by_one_in_that_order() -> None:
    parameters = plan(
        {"parameters": {"temperature": 0.1}},
        {"model": {"id": "m", "parameters": {"temperature": 0.2, "top_p": "0.2", "seed": 2}}},
        {"temperature": 0.3, "top_p": 0.3, "parameters": {"temperature": 1.3, "seed": 3, "top_k": 3}},
    ).parameters

    assert parameters == {"temperature": 0.1, "top_p": 0.2, "seed": 2, "top_k": 3}


def test_settings_are_the_threads_and_wait_for_a_start() -> None:
    assert plan({}, {"model": {"id": "m", "settings": {"ctx_len": "4096", "unknown": 1}}}).settings == {"ctx_len": 4096}


def test_a_kept_value_that_cannot_be_meant_is_blamed_where_it_is_kept() -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan({}, {"model": {"id": "m", "parameters": {"temperature": 9}}})
    assert caught.value.param == "assistants[1].model.parameters.temperature"
    with pytest.raises(InvalidRequest) as caught:
        plan({}, {}, {"parameters": {"top_k": -9}})
    assert caught.value.param == "assistant.parameters.top_k"


@pytest.mark.parametrize(
    ("levels", "owner"),
    [
        ([{"tools": [TOOL]}], "the request"),
        ([{}, {"tools": [TOOL]}], "the thread's assistant"),
        ([{}, {}, {"tools": [TOOL]}], "assistant asst_1"),
    ],
)
def test_tools_of_any_level_are_refused_unless_the_choice_is_none(levels: list[dict[str, Any]], owner: str) -> None:
    with pytest.raises(UnsupportedParameter, match=owner) as caught:
        plan(*(dict(level) for level in levels))
    assert caught.value.param == "tools"

    levels[0] = {**levels[0], "tool_choice": "none"}
    assert plan(*(dict(level) for level in levels)).tools == [TOOL]


def test_an_empty_list_of_tools_takes_the_assistants_away() -> None:
    assert plan({"tools": []}, {}, {"tools": [TOOL]}).tools == []
    assert plan({}, {"tools": []}, {"tools": [TOOL]}).tools == []


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look_up"}}])
def test_a_tool_cannot_be_demanded_where_there_is_none(choice: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan({"tool_choice": choice})
    assert caught.value.param == "tool_choice"


@pytest.mark.parametrize("form", ["auto", {"type": "text"}, None])
def test_text_is_a_response_format(form: Any) -> None:
    assert plan({"response_format": form}).response_format == (form or "auto")


@pytest.mark.parametrize("level", [0, 2])
def test_a_form_holds_wherever_it_comes_from(level: int) -> None:
    levels: list[dict[str, Any]] = [{}, {}, {}]
    levels[level] = {"response_format": {"type": "json_object"}}

    assert plan(*levels).output_format == OutputFormat(FormatKind.JSON_OBJECT)


@pytest.mark.parametrize("level", [0, 2])
def test_a_form_that_cannot_be_meant_is_refused_wherever_it_comes_from(level: int) -> None:
    levels: list[dict[str, Any]] = [{}, {}, {}]
    levels[level] = {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}

    with pytest.raises(InvalidRequest) as caught:
        plan(*levels)
    assert caught.value.param == "response_format.json_schema.schema"


def test_a_thread_made_for_a_run_gets_its_assistant_unless_it_names_its_own() -> None:
    assert with_assistant(NewThread(), ASSISTANT).assistants == [ThreadAssistant("asst_1", "Tutor")]
    own = NewThread(assistants=[ThreadAssistant("asst_2")])
    assert with_assistant(own, ASSISTANT) == own
