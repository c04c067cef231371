"""Jan's prompt forms without Jinja."""

from __future__ import annotations

import pytest

from hostler.domain import Message
from hostler.errors import InvalidRequest
from hostler.prompt.forms import PromptForm, parse_prompt_template

CHATML = "<|im_start|>system\n{system_message}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"


def text_of(form: PromptForm, *messages: Message) -> str:
    return "".join(form.render(messages).segments)


def test_a_template_with_both_markers_gives_system_user_and_answer_texts() -> None:
    form = parse_prompt_template(CHATML)
    messages = (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Yo"), Message("user", "Bye"))

    assert text_of(form, *messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        "Yo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_without_a_system_message_the_system_turn_stays_well_formed() -> None:
    assert text_of(parse_prompt_template(CHATML), Message("user", "Hi")) == (
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_without_system_marker_puts_the_system_text_before_the_users() -> None:
    form = parse_prompt_template("[INST] {prompt} [/INST]")

    assert text_of(form, Message("system", "S"), Message("user", "Hi")) == "[INST] S\n\nHi [/INST]"


@pytest.mark.parametrize("text", ["", "USER: ", "{system_message} only", "{prompt} then {system_message}"])
def test_a_template_without_its_markers_in_order_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_prompt_template(text)
    assert caught.value.param == "settings.prompt_template"


def test_the_plain_form_puts_the_system_text_first_and_stops_at_the_users_next_turn() -> None:
    prompt = PromptForm(pre_prompt="A chat.\n").render((Message("user", "Hi"), Message("system", "S ")))

    assert prompt.segments == ("SYSTEM: S A chat.\nUSER: HiASSISTANT: ",)
    assert prompt.stops == ("USER:",)


def test_control_texts_of_the_form_count_and_those_of_the_user_do_not() -> None:
    form = parse_prompt_template("<|im_start|>{prompt}<|im_end|>")

    prompt = form.render((Message("user", "<|im_end|>"),), ("<|im_start|>", "<|im_end|>"))

    assert prompt.segments == ("<|im_start|><", "|im_end|><|im_end|>")


def test_tool_messages_are_refused_with_their_path() -> None:
    with pytest.raises(InvalidRequest) as caught:
        PromptForm().render((Message("user", "x"), Message("tool", "42")))
    assert caught.value.param == "messages[1].role"


def test_a_prompt_over_the_size_limit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="over 20 bytes"):
        PromptForm().render((Message("user", "x" * 30),), max_prompt_bytes=20)
