"""The echo engine: it keeps the contract, says what it is told, and its vocabulary and probabilities are sound."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hostler import (
    EngineFailed,
    EngineSettings,
    FinishReason,
    InvalidModelFile,
    ModelFiles,
    ModelLoadFailed,
    SamplingParams,
    UnsupportedParameter,
)
from hostler.testing import EngineContract, RecordingSequence, contract_checks, drive
from hostler_echo.engine import EchoEngine, probe
from hostler_echo.vocabulary import CONTROL_TEXTS, Vocabulary, decode, last_user_text, piece_of, token_of

WriteModel = Callable[..., ModelFiles]
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture
def write_model(tmp_path: Path) -> WriteModel:
    def write(**content: Any) -> ModelFiles:
        path = tmp_path / "m.echo"
        path.write_text(json.dumps(content))
        return ModelFiles(str(path), "echo")

    return write


def load(files: ModelFiles, **settings: Any) -> EchoEngine:
    engine = EchoEngine()
    engine.load(files, EngineSettings(**{"ctx_len": 1024, "n_parallel": 2, **settings}), lambda _: True)
    return engine


def ask(engine: EchoEngine, prompt: str, params: SamplingParams = GREEDY, **options: Any) -> RecordingSequence:
    tokens = engine.tokenize(prompt, add_special=True, parse_special=True)
    sequence = RecordingSequence(tokens, params, **options)
    drive(engine, [sequence])
    assert sequence.violations == []
    return sequence


# -- contract ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[1, 2, 3], ids="bytes_per_token={}".format)
def contract(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineContract]:
    path = tmp_path_factory.mktemp("models") / "parrot.echo"
    path.write_text(json.dumps({"bytes_per_token": request.param}))
    settings = EngineSettings(ctx_len=512, n_parallel=4, n_batch=64)
    with EngineContract(EchoEngine, ModelFiles(str(path), "echo"), settings) as contract:
        yield contract


@pytest.mark.parametrize("name", contract_checks())
def test_echo_keeps_the_engine_contract(contract: EngineContract, name: str) -> None:
    contract.check(name)


# -- what it says -----------------------------------------------------------------------------------------------------


def test_echo_repeats_a_prompt_and_ends(write_model: WriteModel) -> None:
    sequence = ask(load(write_model()), "Grüße aus dem Schuppen 🦙")

    assert sequence.text == "Grüße aus dem Schuppen 🦙"
    assert (sequence.reason, sequence.is_ended_by_engine) == (FinishReason.STOP, True)


def test_echo_repeats_the_last_user_message_of_a_chat(write_model: WriteModel) -> None:
    prompt = "<|system|>Be brief.<|end|><|user|>one<|end|><|assistant|>one<|end|><|user|>two<|end|><|assistant|>"

    assert ask(load(write_model()), prompt).text == "two"


def test_echo_plays_its_script_whatever_it_is_asked(write_model: WriteModel) -> None:
    assert ask(load(write_model(script="All aboard!")), "Where to?").text == "All aboard!"


def test_an_empty_user_message_gets_an_empty_answer(write_model: WriteModel) -> None:
    sequence = ask(load(write_model()), "<|user|><|end|><|assistant|>")

    assert (sequence.token_ids, sequence.reason) == ([], FinishReason.STOP)


def test_echo_starts_over_where_it_may_not_end(write_model: WriteModel) -> None:
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=7)

    assert ask(load(write_model()), "abc", params).text == "abcabca"
    assert len(ask(load(write_model()), "<|user|><|end|><|assistant|>", params).token_ids) == 7


def test_the_chat_template_renders_what_the_engine_reads(write_model: WriteModel) -> None:
    import jinja2.sandbox

    engine = EchoEngine()
    info = engine.load(write_model(), EngineSettings(ctx_len=512), lambda _: True)
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(info.chat_template or "")
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "Hello there."}]

    prompt = template.render(messages=messages, add_generation_prompt=True)

    assert prompt == "<|system|>s<|end|><|user|>Hello there.<|end|><|assistant|>"
    assert ask(engine, prompt).text == "Hello there."


def test_a_file_may_say_that_it_has_no_template(write_model: WriteModel) -> None:
    info = EchoEngine().load(write_model(chat_template=None), EngineSettings(ctx_len=512), lambda _: True)

    assert info.chat_template is None


# -- sampling ---------------------------------------------------------------------------------------------------------


def test_letters_go_wrong_with_the_probability_that_the_readme_states(write_model: WriteModel) -> None:
    engine = load(write_model(n_ctx=10000), ctx_len=8000)
    params = SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0, seed=5, max_tokens=4000)

    tokens = Counter(ask(engine, "o" * 3000, params, n_ctx=8000).token_ids)

    total = sum(tokens.values())
    assert math.isclose(tokens[ord("o")] / total, 0.9, abs_tol=0.03)
    assert math.isclose(tokens[ord("O")] / total, 0.08, abs_tol=0.03)


@pytest.mark.parametrize(
    "truncation", [{"top_k": 1}, {"top_p": 0.5, "min_p": 0.0}, {"min_p": 0.5, "top_p": 1.0}], ids=lambda item: next(iter(item))
)
def test_truncation_keeps_the_text_right_at_any_temperature(write_model: WriteModel, truncation: dict[str, Any]) -> None:
    params = SamplingParams(temperature=2.0, seed=1, **truncation)

    assert ask(load(write_model()), "the very same letters", params).text == "the very same letters"


@pytest.mark.parametrize("penalty", [{"frequency_penalty": 2.0}, {"presence_penalty": 3.0}, {"repeat_penalty": 30.0}], ids=str)
def test_a_penalty_drives_letters_out_that_were_said_before(write_model: WriteModel, penalty: dict[str, float]) -> None:
    engine = load(write_model())

    assert ask(engine, "oooo", SamplingParams(temperature=0, **penalty)).text != "oooo"
    assert ask(engine, "oooo", SamplingParams(temperature=0, repeat_last_n=0, **penalty)).text == "oooo"
    assert ask(engine, "é世🚂" * 9, SamplingParams(temperature=0, **penalty)).text == "é世🚂" * 9


@pytest.mark.parametrize(
    ("calm", "is_always_right"),
    [
        ({"typ_p": 0.5}, True),
        ({"mirostat": 1, "mirostat_tau": 0.1}, True),
        ({"mirostat": 2, "mirostat_tau": 0.1}, True),
        ({"dynatemp_range": 0.9}, False),
    ],
    ids=str,
)
def test_typical_mirostat_and_a_range_of_temperatures_keep_more_letters_right(
    write_model: WriteModel, calm: dict[str, Any], is_always_right: bool
) -> None:
    engine = load(write_model())
    usual = SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0, seed=3)

    n_wrong = [
        sum(said != "o" for said in ask(engine, "o" * 200, params).text)
        for params in (usual, msgspec.structs.replace(usual, **calm))
    ]

    assert n_wrong[1] < n_wrong[0]
    assert not is_always_right or n_wrong[1] <= 3


def test_mirostat_surprises_as_much_as_it_is_told_to(write_model: WriteModel) -> None:
    engine = load(write_model(n_ctx=10000), ctx_len=8000)
    usual = SamplingParams(temperature=2.0, top_p=1.0, min_p=0.0, seed=3, max_tokens=3000, mirostat=2)

    n_wrong = [
        sum(said != "o" for said in ask(engine, "o" * 3000, params, n_ctx=8000).text)
        for params in (msgspec.structs.replace(usual, mirostat_tau=tau) for tau in (0.3, 1.0, 4.0))
    ]

    assert n_wrong == sorted(set(n_wrong))


def test_characters_beyond_ascii_never_go_wrong(write_model: WriteModel) -> None:
    params = SamplingParams(temperature=2.0, top_p=1.0, min_p=0.0, seed=1)

    assert ask(load(write_model()), "世界🦙🚂", params).text == "世界🦙🚂"


# -- cache ------------------------------------------------------------------------------------------------------------


def test_conversations_in_two_slots_keep_their_prefixes_side_by_side(write_model: WriteModel) -> None:
    engine = load(write_model(), n_parallel=2)
    red, blue = "red " * 50, "blue " * 50
    assert [ask(engine, text).n_cached for text in (red, blue)] == [0, 0]

    second = [ask(engine, text + "and more") for text in (red, blue)]

    assert [sequence.n_cached for sequence in second] == [len(red), len(blue)]


def test_a_repeated_prompt_evaluates_its_last_token_again(write_model: WriteModel) -> None:
    engine = load(write_model())
    ask(engine, "same again")

    assert ask(engine, "same again").n_cached == len("same again") - 1


# -- model files and settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("not json", "is no echo model"),
        ('{"skript": "x"}', "unknown field `skript`"),
        ('{"manners": {"di": 9}}', "unknown field `di`"),
        ('{"bytes_per_token": 4}', "sets bytes_per_token to 4; allowed: 1 to 3"),
        ('{"n_ctx": 1}', "sets n_ctx to 1; allowed: at least 2"),
        ('{"script": "' + "x" * 2**20 + '"}', "is over 1048576 bytes"),
    ],
)
def test_a_bad_file_is_refused_with_path_and_reason(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "bad.echo"
    path.write_text(content)

    with pytest.raises(InvalidModelFile) as caught:
        load(ModelFiles(str(path), "echo"))

    assert str(path) in str(caught.value)
    assert reason in str(caught.value)


def test_a_blank_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "blank.echo"
    path.write_text("\n")

    assert ask(load(ModelFiles(str(path), "echo")), "hi").text == "hi"


def test_a_device_it_does_not_have_is_refused(write_model: WriteModel) -> None:
    with pytest.raises(ModelLoadFailed, match="echo runs on the CPU only, so device 'cuda' cannot be had"):
        load(write_model(), device="cuda")


def test_what_has_no_effect_is_said_in_the_warnings(write_model: WriteModel) -> None:
    engine = EchoEngine()

    info = engine.load(write_model(n_ctx=100), EngineSettings(ctx_len=200, extra={"colour": "red"}), lambda _: True)

    assert info.n_ctx == 100
    assert info.warnings == (
        "the setting 'colour' means nothing to echo",
        "ctx_len 200 is over the model's 100, which holds",
    )


def test_a_model_that_cannot_embed_says_so(write_model: WriteModel) -> None:
    engine = load(write_model(embedding=False))

    with pytest.raises(UnsupportedParameter, match="cannot embed"):
        next(engine.embed([[1]]))


def test_a_vector_counts_kinds_of_tokens_and_a_long_input_takes_several_pieces(write_model: WriteModel) -> None:
    engine = load(write_model(), n_batch=4)

    pieces = list(engine.embed([[1, 1, 65], list(range(10))]))

    assert [len(vectors) for vectors in pieces] == [1, 0, 0, 1]
    assert pieces[0][0][:3] == [0.0, 3.0, 0.0]
    assert sum(pieces[3][0]) == 10


@pytest.mark.parametrize(("directive", "text"), [("fail='no more ideas'", "no more ideas"), ("dance=1", "dance")])
def test_an_input_can_ask_for_bad_manners_as_a_prompt_can(write_model: WriteModel, directive: str, text: str) -> None:
    engine = load(write_model())

    with pytest.raises(EngineFailed, match=text):
        next(engine.embed([engine.tokenize(f"[[echo: {directive}]] x", add_special=True, parse_special=False)]))


def test_the_probe_finds_the_processor() -> None:
    assert [(device.name, device.is_available) for device in probe().devices] == [("cpu", True)]


# -- vocabulary -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_piece_has_a_token_of_its_own(width: int) -> None:
    pieces = [bytes([7] * length) for length in range(1, width + 1)] + [b"\xff" * width, b"\0" * width]

    tokens = [token_of(piece) for piece in pieces]

    assert len(set(tokens)) == len(set(pieces))
    assert [piece_of(token) for token in tokens] == pieces
    assert max(tokens) < Vocabulary(width).n_vocab


def test_control_tokens_are_one_token_and_no_text() -> None:
    vocabulary = Vocabulary(2)

    tokens = vocabulary.tokenize("ab<|end|>c", parse_special=True)

    assert (len(tokens), decode(tokens)) == (3, b"abc")
    assert decode(vocabulary.tokenize("ab<|end|>c", parse_special=False)) == b"ab<|end|>c"
    assert len({tuple(vocabulary.tokenize(text, parse_special=True)) for text in CONTROL_TEXTS}) == len(CONTROL_TEXTS)


def test_the_last_user_text_ends_at_the_next_control_token() -> None:
    tokens = Vocabulary(1).tokenize("<|user|>a<|end|><|user|>b<|tool|>c", parse_special=True)

    assert last_user_text(tokens) == b"b"
