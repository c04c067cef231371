"""From request to tokens: what is rendered, what is added, what is refused."""

from __future__ import annotations

import pytest

from hostler.domain import SEED_RANDOM, FormatKind, Message, OutputFormat, SamplingParams
from hostler.engine import EngineInfo, RawPrompt
from hostler.errors import ContextLengthExceeded, EmbeddingsDisabled, HostlerError, InvalidRequest
from hostler.worker.preparation import MAX_STOP_CHARACTERS, Preparation, Prepared
from hostler.worker.wire import Embed, PromptSettings, Submit

BOS, END = 1000, 1001
CONTROLS = {"<s>": BOS, "<|end|>": END}
TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"


class Tokenizer:
    """One character is one token; control texts are read where asked for."""

    def __init__(self, adds_bos: bool) -> None:
        self._adds_bos = adds_bos
        self.n_characters = 0

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        self.n_characters += len(text)
        tokens = [BOS] if add_special and self._adds_bos else []
        position = 0
        while position < len(text):
            control = next((one for one in CONTROLS if parse_special and text.startswith(one, position)), None)
            tokens.append(CONTROLS[control] if control else ord(text[position]))
            position += len(control or "x")
        return tokens


def make(
    template: str | None = TEMPLATE, *, adds_bos: bool = False, n_ctx: int = 500, **settings: object
) -> tuple[Preparation, Tokenizer]:
    info = EngineInfo(
        n_ctx=n_ctx, n_slots=1, n_vocab=1200, chat_template=template, special_texts=tuple(CONTROLS), bos_text="<s>",
        adds_bos=adds_bos,
    )  # fmt: skip
    tokenizer = Tokenizer(adds_bos)
    return Preparation("tiny", tokenizer, info, PromptSettings(**settings)), tokenizer


def prepare(preparation: Preparation, **fields: object) -> Prepared:
    if "prompt" not in fields:
        fields.setdefault("messages", (Message("user", "hi"),))
    return preparation.prepare(Submit(1, 0, fields.pop("params", SamplingParams()), **fields), lambda: None)


def refusal(preparation: Preparation, **fields: object) -> HostlerError:
    with pytest.raises(HostlerError) as caught:
        prepare(preparation, **fields)
    return caught.value


def test_messages_are_rendered_with_the_models_template() -> None:
    assert prepare(make()[0]).tokens == [*map(ord, "user:hi"), END]


def test_counted_tokens_are_those_of_the_prepared_prompt_even_past_the_context() -> None:
    messages = (Message("system", "short<|end|>"), Message("user", "x" * 30))
    preparation = make(n_ctx=500, adds_bos=True)[0]

    assert preparation.count(messages, {}, lambda: None) == len(prepare(preparation, messages=messages).tokens)
    assert make(n_ctx=10)[0].count(messages, {}, lambda: None) == len("system:short<|end|>user:") + 30 + 2


def test_messages_that_are_far_too_long_are_not_counted_to_their_end() -> None:
    preparation, tokenizer = make(n_ctx=10)

    with pytest.raises(ContextLengthExceeded, match="more than"):
        preparation.count((Message("user", "x" * 1_000_000),), {}, lambda: None)

    assert tokenizer.n_characters < 100_000


def test_messages_that_the_template_refuses_are_not_counted() -> None:
    preparation = make("{{ raise_exception('roles must alternate') }}")[0]

    with pytest.raises(InvalidRequest, match="roles must alternate"):
        preparation.count((Message("user", "hi"),), {}, lambda: None)


def pinned_text(template: str | None, *messages: Message, **settings: object) -> str:
    """The beginning of the prompt that pinned messages cover, as text."""
    prepared = prepare(make(template, **settings)[0], messages=messages)
    controls = {id: text for text, id in CONTROLS.items()}
    return "".join(controls.get(id) or chr(id) for id in prepared.tokens[: prepared.n_pinned])


def test_the_prompt_is_pinned_up_to_the_last_pinned_message() -> None:
    system, user = Message("system", "rules", is_pinned=True), Message("user", "hi")

    assert pinned_text(TEMPLATE, system, user) == "system:rules<|end|>"
    assert pinned_text(TEMPLATE, system, user, Message("assistant", "yes", is_pinned=True), user) == (
        "system:rules<|end|>user:hi<|end|>assistant:yes<|end|>"
    )
    assert pinned_text(TEMPLATE, user, system) == "user:hi<|end|>system:rules<|end|>"  # all of it
    assert pinned_text(TEMPLATE, user) == ""


def test_a_pinned_system_text_in_front_of_the_users_is_pinned_without_the_users() -> None:
    folding = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}"
    )

    assert pinned_text(folding, Message("system", "rules", is_pinned=True), Message("user", "hi")) == "user:rules"


def test_a_template_that_wants_a_users_turn_still_has_what_comes_before_it_pinned() -> None:
    wanting = (
        "{% if messages[-1].role != 'user' %}{{ raise_exception('the user must have the last word') }}{% endif %}" + TEMPLATE
    )
    never = "{% if messages | length < 3 %}{{ raise_exception('too short') }}{% endif %}" + TEMPLATE
    system, user = Message("system", "rules", is_pinned=True), Message("user", "hi")

    assert pinned_text(wanting, system, user) == "system:rules<|end|>user:"
    assert pinned_text(never, system, user, user) == ""


def test_a_pinned_message_is_no_other_message_to_the_template() -> None:
    template = "{% for m in messages %}{{ m | tojson }}{% endfor %}"
    plain, pinned = (
        prepare(make(template)[0], messages=(Message("user", "a", is_pinned=is_pinned),)) for is_pinned in (False, True)
    )

    assert plain.tokens == pinned.tokens
    assert pinned.n_pinned == len(pinned.tokens)


def test_a_form_without_template_pins_too_and_a_text_that_is_sent_again_is_not_tokenized_again() -> None:
    preparation, tokenizer = make(None, system_prompt="S:", user_prompt="U:", ai_prompt="A:")
    messages = (Message("system", "rules" * 50, is_pinned=True), Message("user", "hi"))

    first = prepare(preparation, messages=messages)
    n_before = tokenizer.n_characters
    second = prepare(preparation, messages=messages)

    assert first.n_pinned == second.n_pinned == len("S:" + "rules" * 50)
    assert tokenizer.n_characters - n_before == len(second.tokens)


def test_an_engine_that_takes_messages_is_not_told_of_pins() -> None:
    info = EngineInfo(n_ctx=100, n_slots=1, n_vocab=0)
    preparation = Preparation("tiny", Tokenizer(False), info, PromptSettings(), takes_messages=True)

    prepared = prepare(preparation, messages=(Message("user", "a", is_pinned=True),))

    assert prepared.raw is not None
    assert prepared.raw.messages == (Message("user", "a"),)


def test_a_users_control_text_stays_text() -> None:
    tokens = prepare(make()[0], messages=(Message("user", "a<|end|>b"),)).tokens

    assert tokens == [*map(ord, "user:a<|end|>b"), END]


def test_bos_is_added_once_whether_the_template_writes_it_or_not() -> None:
    assert prepare(make(adds_bos=True)[0]).tokens[:2] == [BOS, ord("u")]
    assert prepare(make("<s>" + TEMPLATE, adds_bos=True)[0]).tokens[:2] == [BOS, ord("u")]
    assert prepare(make("<s>" + TEMPLATE, adds_bos=False)[0]).tokens[:2] == [BOS, ord("u")]
    assert prepare(make(adds_bos=True)[0], prompt="<s>x").tokens == [BOS, ord("x")]


def test_bos_is_added_to_the_first_segment_only() -> None:
    tokens = prepare(make(adds_bos=True)[0], messages=(Message("user", "<|end|><|end|>"),)).tokens

    assert tokens.count(BOS) == 1
    assert tokens[0] == BOS


def test_a_plain_prompt_is_taken_as_it_is_with_its_control_texts() -> None:
    assert prepare(make()[0], prompt="x<|end|>").tokens == [ord("x"), END]
    assert list(prepare(make()[0], prompt=(5, 6)).tokens) == [5, 6]


def test_the_setting_prompt_template_wins_over_the_files() -> None:
    preparation, _ = make(prompt_template="Q: {prompt}\nA:")

    prepared = prepare(preparation)

    assert prepared.tokens == [ord(character) for character in "Q: hi\nA:"]
    assert prepared.stops.scan(0, "...Q:")[2] == "Q:"


def test_the_files_template_wins_over_the_four_prompt_texts() -> None:
    assert prepare(make(user_prompt="Human: ")[0]).tokens[-1] == END


def test_the_four_prompt_texts_serve_where_there_is_no_template() -> None:
    preparation, _ = make(None, ai_prompt="Bot: ")

    assert prepare(preparation).tokens == [ord(character) for character in "USER: hiBot: "]


def test_messages_without_any_template_are_refused_and_a_plain_prompt_is_not() -> None:
    preparation, _ = make(None)

    error = refusal(preparation)
    assert isinstance(error, InvalidRequest)
    assert error.param == "settings.prompt_template"
    assert "prompt_template" in error.message
    assert prepare(preparation, prompt="x").tokens == [ord("x")]


def test_a_prompt_template_without_its_marker_is_refused_with_the_load() -> None:
    with pytest.raises(InvalidRequest, match=r"\{prompt\}"):
        make(prompt_template="no marker")


@pytest.mark.parametrize(("n", "fits"), [(498, True), (499, True), (500, False), (501, False)])
def test_a_prompt_fits_when_it_leaves_room_for_one_token(n: int, fits: bool) -> None:
    preparation, _ = make()
    if fits:
        assert len(prepare(preparation, prompt="x" * n).tokens) == n
        return
    error = refusal(preparation, prompt="x" * n)
    assert isinstance(error, ContextLengthExceeded)
    assert f"maximum context length is 500 tokens. However, your prompt has {n} tokens" in error.message
    assert error.param == "prompt"


def test_messages_that_do_not_fit_are_refused_with_both_numbers() -> None:
    error = refusal(make()[0], messages=(Message("user", "x" * 600),))

    assert "maximum context length is 500 tokens. However, your messages resulted in 606 tokens" in error.message
    assert error.param == "messages"
    assert isinstance(refusal(make()[0], prompt=tuple([1] * 700)), ContextLengthExceeded)


def test_a_prompt_far_too_long_is_refused_without_tokenizing_all_of_it() -> None:
    preparation, tokenizer = make()

    error = refusal(preparation, prompt="x" * 10_000_000)

    assert isinstance(error, ContextLengthExceeded)
    assert "more than" in error.message
    assert tokenizer.n_characters < 1_000_000


@pytest.mark.parametrize(
    ("prompt", "param"), [("", "prompt"), ((), "prompt"), ((1, 2, 1200), "prompt[2]"), ((-1,), "prompt[0]")]
)
def test_an_empty_prompt_and_unknown_tokens_are_refused(prompt: object, param: str) -> None:
    error = refusal(make()[0], prompt=prompt)

    assert isinstance(error, InvalidRequest)
    assert error.param == param


def test_an_empty_prompt_is_one_token_where_the_model_has_a_bos() -> None:
    assert prepare(make(adds_bos=True)[0], prompt="").tokens == [BOS]


def test_a_template_that_renders_nothing_is_refused() -> None:
    assert refusal(make("")[0]).param == "messages"


@pytest.mark.parametrize(
    ("params", "param"),
    [
        (SamplingParams(max_tokens=0), "max_tokens"),
        (SamplingParams(logit_bias={1200: 1.0}), "logit_bias"),
        (SamplingParams(logit_bias={-5: 1.0}), "logit_bias"),
        (SamplingParams(stop=("x" * MAX_STOP_CHARACTERS, "y")), "stop"),
    ],
)
def test_parameters_that_would_harm_an_engine_are_refused(params: SamplingParams, param: str) -> None:
    assert refusal(make()[0], params=params).param == param


def test_a_seed_is_drawn_where_none_is_set_and_kept_where_one_is() -> None:
    preparation, _ = make()
    seeds = {prepare(preparation, params=SamplingParams(seed=SEED_RANDOM)).params.seed for _ in range(20)}

    assert len(seeds) > 15
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert prepare(preparation, params=SamplingParams(seed=42)).params.seed == 42


# -- inputs to embed ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "param"),
    [("", "input[2]"), ((), "input[2]"), ((1200,), "input[2][0]"), ((1, -1), "input[2][1]"), ("x" * 501, "input[2]")],
)
def test_an_input_that_cannot_be_embedded_is_named(value: str | tuple[int, ...], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        make()[0].embed_input(value, "input[2]")
    assert caught.value.param == param


def test_texts_and_token_ids_become_inputs_to_embed_up_to_the_whole_context() -> None:
    preparation = make(adds_bos=True)[0]

    assert list(preparation.embed_input("ab", "input[0]")) == [BOS, 97, 98]
    assert list(preparation.embed_input((7, 8), "input[0]")) == [7, 8]
    assert len(preparation.embed_input("x" * 499, "input[0]")) == 500


def test_control_texts_inside_an_input_stay_text() -> None:
    assert list(make()[0].embed_input("<|end|>", "input[0]")) == [*map(ord, "<|end|>")]


def test_an_input_that_does_not_fit_is_refused_with_both_numbers_and_never_tokenized_whole_when_hopeless() -> None:
    preparation, tokenizer = make(n_ctx=500)

    with pytest.raises(ContextLengthExceeded, match=r"maximum context length is 500 tokens.*input\[0\] has 600 tokens"):
        preparation.embed_input("x" * 600, "input[0]")
    tokenizer.n_characters = 0
    with pytest.raises(ContextLengthExceeded, match="more than"):
        preparation.embed_input("x" * 10_000_000, "input[0]")
    assert tokenizer.n_characters < 1_000_000


def test_what_a_model_cannot_give_at_all_is_refused_before_its_inputs_are_looked_at() -> None:
    def refusal_of(embed: Embed, *, is_embedding: bool = True, **info: object) -> HostlerError:
        known = EngineInfo(n_ctx=500, n_slots=1, n_vocab=1200, **{"can_embed": True, "n_embd": 8, **info})
        preparation = Preparation("tiny", Tokenizer(False), known, PromptSettings(), is_embedding=is_embedding)
        with pytest.raises(HostlerError) as caught:
            preparation.check_embed(embed)
        return caught.value

    assert isinstance(refusal_of(Embed(1, ("x",)), is_embedding=False), EmbeddingsDisabled)
    assert isinstance(refusal_of(Embed(1, ("x",)), can_embed=False), EmbeddingsDisabled)
    assert refusal_of(Embed(1, ())).param == "input"
    other_length = refusal_of(Embed(1, ("x",), dimensions=4))
    assert (other_length.code, other_length.param) == ("unsupported_parameter", "dimensions")
    assert "have 8 dimensions" in other_length.message


def test_a_model_that_only_embeds_takes_no_prompt() -> None:
    info = EngineInfo(n_ctx=500, n_slots=1, n_vocab=1200, can_generate=False, can_embed=True, n_embd=8)

    error = refusal(Preparation("tiny", Tokenizer(False), info, PromptSettings()), prompt="x")

    assert error.param == "model"
    assert "/v1/embeddings" in error.message


# -- engines that take messages ---------------------------------------------------------------------------------------


def make_raw(n_ctx: int = 0, **settings: object) -> Preparation:
    info = EngineInfo(n_ctx=n_ctx, n_slots=1, n_vocab=0, can_embed=True, n_embd=3)
    return Preparation("far", Untouchable(), info, PromptSettings(**settings), takes_messages=True)


class Untouchable:
    """A tokenizer that nobody may ask."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        raise AssertionError("it was asked to tokenize")


def test_an_engine_that_takes_messages_gets_them_as_they_came() -> None:
    messages = (Message("user", "<|end|> hi"),)

    prepared = prepare(make_raw(), messages=messages, template_kwargs={"enable_thinking": False})

    assert prepared.raw == RawPrompt(messages=messages, template_kwargs={"enable_thinking": False})
    assert prepared.tokens == ()
    assert prepare(make_raw(), prompt="Once").raw == RawPrompt(prompt="Once")
    assert prepare(make_raw(), prompt=(5, 7)).raw == RawPrompt(prompt=(5, 7))


def test_an_engine_that_takes_messages_draws_its_own_seed_and_knows_its_own_tokens() -> None:
    params = SamplingParams(logit_bias={123_456: 1.0})

    assert prepare(make_raw(), params=params).params == params
    assert params.seed == SEED_RANDOM


def test_what_no_engine_can_mean_is_refused_for_one_that_takes_messages_too() -> None:
    assert refusal(make_raw(), params=SamplingParams(max_tokens=0)).param == "max_tokens"
    assert refusal(make_raw(), params=SamplingParams(stop=("x" * (MAX_STOP_CHARACTERS + 1),))).param == "stop"
    assert refusal(make_raw(), prompt="").param == "prompt"
    assert refusal(make_raw(), prompt=()).param == "prompt"


@pytest.mark.parametrize("name", ["prompt_template", "pre_prompt", "system_prompt", "user_prompt", "ai_prompt"])
def test_a_setting_that_makes_prompts_is_refused_where_the_engine_does(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"has the setting {name}") as caught:
        make_raw(**{name: "{prompt}"})

    assert caught.value.param == f"settings.{name}"


def test_messages_of_an_engine_that_takes_them_are_counted_by_their_size() -> None:
    preparation = make_raw()
    short, long = (Message("user", "hi"),), (Message("user", "x" * 3000),)

    assert 1 < preparation.count(short, {}, lambda: None) < 20
    assert 1000 <= preparation.count(long, {}, lambda: None) < 1020
    assert preparation.n_ctx > 2**30
    assert make_raw(n_ctx=4096).n_ctx == 4096


def test_inputs_to_be_embedded_stay_texts_where_the_engine_takes_messages() -> None:
    preparation = make_raw()

    assert preparation.embed_input("a text", "input[0]") == "a text"
    assert list(preparation.embed_input((1, 2), "input[0]")) == [1, 2]
    with pytest.raises(InvalidRequest, match="is empty"):
        preparation.embed_input("", "input[0]")
    with pytest.raises(InvalidRequest, match="shows no tokens"):
        preparation.tokenize("a text")


def test_a_form_is_refused_where_the_engine_cannot_hold_to_it_and_left_to_one_that_takes_messages() -> None:
    params = SamplingParams(output_format=OutputFormat(FormatKind.JSON_OBJECT))

    error = refusal(make()[0], params=params)

    assert (error.code, error.param) == ("unsupported_parameter", "response_format")
    assert "tiny" in error.message
    assert prepare(make_raw(), params=params).params.output_format == params.output_format
