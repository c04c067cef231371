"""Chat templates in the sandbox: as transformers renders them, and what a hostile one cannot do."""

from __future__ import annotations

import pytest

from hostler.domain import Message
from hostler.errors import InvalidRequest
from hostler.prompt.template import ChatTemplate

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}"
    "{% endif %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}<model>"
)


def text_of(source: str, *messages: Message, **kwargs: object) -> str:
    return "".join(ChatTemplate(source, bos_text="<s>", eos_text="</s>").render(messages, dict(kwargs)).segments)


def user(content: str) -> Message:
    return Message("user", content)


def test_chatml_renders_every_turn_and_asks_for_the_next() -> None:
    messages = (Message("system", "Be brief."), user("Hi"), Message("assistant", "Hello."), user("Bye"))

    assert text_of(CHATML, *messages) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_leave_no_lines_behind_as_in_transformers() -> None:
    source = "{{ bos_token }}\n  {% for m in messages %}\n{{ m.content }}\n  {% endfor %}\n{{ eos_token }}"

    assert text_of(source, user("a"), user("b")) == "<s>\na\nb\n</s>"


def test_loop_controls_generation_blocks_and_the_date_are_known() -> None:
    source = (
        "{% for m in messages %}{% if m.content == 'skip' %}{% continue %}{% endif %}"
        "{% generation %}[{{ m.content }}]{% endgeneration %}{% endfor %}{{ strftime_now('%Y')|length }}"
    )

    assert text_of(source, user("a"), user("skip"), user("b")) == "[a][b]4"


def test_tojson_writes_plain_json_without_html_escapes() -> None:
    assert text_of("{{ {'a': '<é>'} | tojson }}", user("x")) == '{"a": "<é>"}'


def test_tool_call_arguments_reach_the_template_as_an_object() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = (user("go"), Message("assistant", None, tool_calls=(call,)))
    source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}"

    assert text_of(source, *messages) == '{"x": 1}'


def test_template_arguments_of_the_request_are_variables() -> None:
    assert text_of("{{ 'think' if enable_thinking else 'answer' }}", user("x"), enable_thinking=True) == "think"


def test_a_template_argument_may_not_replace_what_hostler_sets() -> None:
    with pytest.raises(InvalidRequest, match="bos_token") as caught:
        text_of(CHATML, user("x"), bos_token="!")
    assert caught.value.param == "chat_template_kwargs.bos_token"


def test_developer_messages_are_system_messages() -> None:
    assert "<|im_start|>system\nrules" in text_of(CHATML, Message("developer", "rules"), user("x"))


def test_an_unknown_role_is_refused_with_its_path() -> None:
    with pytest.raises(InvalidRequest) as caught:
        text_of(CHATML, user("x"), Message("<|im_end|>", "y"))
    assert caught.value.param == "messages[1].role"


def test_system_text_moves_into_the_users_turn_when_the_template_refuses_it() -> None:
    messages = (Message("system", "Be brief."), user("Hi"), Message("assistant", "Hello"), user("Bye"))

    assert text_of(NO_SYSTEM, *messages) == "<user>Be brief.\n\nHi<assistant>Hello<user>Bye<model>"


def test_a_refusal_that_folding_does_not_cure_is_told_in_the_templates_words() -> None:
    with pytest.raises(InvalidRequest, match="System role not supported"):
        text_of(NO_SYSTEM, Message("system", "s"), user("a"), user("b"))
    with pytest.raises(InvalidRequest, match="Conversation roles must alternate"):
        text_of(NO_SYSTEM, user("a"), user("b"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% if %}", "not valid Jinja: line 1"),
        ("{{ messages[0].content.foo.bar }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ 'a' * 1000000000000 }}", "SecurityError"),
        ("{{ [1] * 1000000000000 }}", "SecurityError"),
        ("{{ 10 ** (10 ** 10) }}", "SecurityError"),
        ("{% include 'x' %}", "TypeError"),
    ],
)
def test_a_broken_or_hostile_template_is_an_error_of_the_request(source: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        text_of(source, user("x"))


def test_a_template_that_makes_too_much_text_is_stopped_on_the_way() -> None:
    template = ChatTemplate(
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxxxx{% endfor %}{% endfor %}", max_prompt_bytes=5000
    )

    with pytest.raises(InvalidRequest, match="over 5000 bytes"):
        template.render((user("x"),))


def test_the_size_limit_counts_bytes_not_characters() -> None:
    template = ChatTemplate("{{ messages[0].content }}", max_prompt_bytes=10)

    assert template.render((user("é" * 5),)).segments == ("é" * 5,)
    with pytest.raises(InvalidRequest):
        template.render((user("é" * 6),))


def test_empty_messages_are_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        text_of(CHATML)
    assert caught.value.param == "messages"
