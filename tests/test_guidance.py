"""Forms and what they allow, with a vocabulary of bytes, pairs of bytes, and an end; whatever they allow is in the form."""

from __future__ import annotations

import json
import random
import time
from typing import Any

import jsonschema
import pytest

from hostler.domain import FormatKind, OutputFormat
from hostler.engine import TokenTable
from hostler.errors import EngineFailed, InvalidRequest, UnsupportedParameter
from hostler.guidance import MAX_GRAMMAR_BYTES, MAX_SOURCE_BYTES, Guide, TokenConstraint

PAIRS = [bytes([one, other]) for one in range(32, 127) for other in range(32, 127)]
CONTROL, END, OTHER_END = 256, 257, 258
PIECES = [*(bytes([byte]) for byte in range(256)), b"", b"", b"", *PAIRS]
TABLE = TokenTable(PIECES, (END, OTHER_END))
HOSTILE_S = 3.0
"""What the worst form may take here to be made or refused; the desk in the worker gives it 10."""


@pytest.fixture(scope="module")
def guide() -> Guide:
    return Guide(TABLE)


def form(kind: str, source: Any = "") -> OutputFormat:
    text = source if isinstance(source, str) else json.dumps(source)
    return OutputFormat(FormatKind(kind), text, "response_format.json_schema.schema")


def allowed(constraint: TokenConstraint) -> list[int]:
    mask = constraint.mask()
    assert len(mask) == 4 * -(-len(PIECES) // 32)
    return [token for token in range(len(PIECES)) if mask[token >> 3] >> (token & 7) & 1]


def say(constraint: TokenConstraint, text: str) -> bool:
    """Say a text byte by byte; False where a byte is not allowed."""
    for byte in text.encode():
        if not constraint.allows(byte):
            return False
        assert constraint.accept(byte)
    return True


def ramble(constraint: TokenConstraint, seed: int, n_tokens: int = 200) -> str | None:
    """Any answer in the form; None when none came to its end in time."""
    chance = random.Random(seed)
    said = b""
    for _ in range(n_tokens):
        tokens = allowed(constraint)
        ends = [token for token in tokens if token in (END, OTHER_END)]
        # Whatever closes something is likelier, or few answers would ever end.
        closing = [token for token in tokens if PIECES[token][:1] in (b'"', b"}", b"]")]
        token = ends[0] if ends else chance.choice(closing if closing and chance.random() < 0.5 else tokens)
        assert constraint.allows(token)
        if ends:
            return said.decode()
        assert constraint.accept(token)
        said += PIECES[token]
        if constraint.must_end:
            assert constraint.may_end
            return said.decode()
    return None


SCHEMAS = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False},
    {"type": "object", "properties": {"a": {"enum": ["x", "y", 3, None]}, "b": {"type": "boolean"}}, "required": ["b"]},
    {"type": "array", "items": {"type": "integer", "minimum": -5, "maximum": 17}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,4}$"},
    {"type": "string", "format": "date"},
    {"$defs": {"n": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
     "required": ["next"], "additionalProperties": False}}, "$ref": "#/$defs/n"},
    {"oneOf": [{"type": "object", "properties": {"kind": {"const": kind}}, "required": ["kind"]} for kind in "ab"]},
]  # fmt: skip


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_whatever_a_schema_allows_is_valid_by_it(guide: Guide, schema: dict[str, Any]) -> None:
    constraint = guide.compile(form("json_schema", schema))

    texts = [ramble(constraint.fork(), seed) for seed in range(30)]

    whole = [text for text in texts if text is not None]
    assert len(whole) >= 10
    for text in whole:
        jsonschema.validate(json.loads(text), schema, format_checker=jsonschema.FormatChecker())


@pytest.mark.parametrize(
    ("kind", "source", "yes", "no"),
    [
        ("json_object", "", '{"a": [1, {"b": null}]}', "[1]"),
        ("json_object", "", '{\n  "a": 1\n}', '{\n\n"a": 1}'),
        ("regex", r"\d{3}-[a-z]+/x", "123-abc/x", "12-"),
        ("choice", ["yes", "no", 'a "quote" \\ \n'], 'a "quote" \\ \n', "maybe"),
        ("gbnf", 'root ::= greeting " " name "!"\ngreeting ::= "Hi" | "Hello"\nname ::= [A-Z] [a-z]+\n', "Hello Ann!", "Hey"),
        ("lark", 'start: "I am " NUMBER\nNUMBER: /[0-9]{1,3}/', "I am 42", "I am x"),
        ("lark", '%llguidance {"no_forcing": false}\nstart: "a" "b"', "ab", "ba"),
    ],
)
def test_each_language_says_what_may_be_said(guide: Guide, kind: str, source: Any, yes: str, no: str) -> None:
    constraint = guide.compile(form(kind, source))

    one, other = constraint.fork(), constraint.fork()
    assert say(one, yes)
    assert one.may_end
    assert not say(other, no)


def test_an_end_is_allowed_where_the_answer_is_whole_and_by_every_token_that_ends(guide: Guide) -> None:
    constraint = guide.compile(form("regex", "ab?"))

    assert not constraint.allows(END)
    assert say(constraint, "a")

    assert constraint.allows(END)
    assert constraint.allows(OTHER_END)
    assert allowed(constraint) == [ord("b"), END, OTHER_END]
    assert (constraint.may_end, constraint.must_end) == (True, False)
    assert say(constraint, "b")
    assert (constraint.may_end, constraint.must_end) == (True, True)
    assert allowed(constraint) == [END, OTHER_END]


def test_control_tokens_and_halves_of_characters_are_never_part_of_an_answer(guide: Guide) -> None:
    constraint = guide.compile(form("json_schema", {"type": "string"}))
    assert say(constraint, '"')

    tokens = allowed(constraint)

    assert CONTROL not in tokens
    assert 0x80 not in tokens  # no character begins so
    assert 0xC3 in tokens
    assert constraint.accept(0xC3)
    assert set(allowed(constraint)) == set(range(0x80, 0xC0))


def test_what_is_not_allowed_is_not_accepted_and_nothing_is_afterwards(guide: Guide) -> None:
    constraint = guide.compile(form("regex", "ab"))

    assert not constraint.accept(ord("x"))
    assert not constraint.accept(ord("a"))
    with pytest.raises(EngineFailed, match="left the form"):
        constraint.mask()


def test_forks_go_their_own_ways(guide: Guide) -> None:
    constraint = guide.compile(form("regex", "(ab|cd)"))
    one, other = constraint.fork(), constraint.fork()

    assert say(one, "ab")
    assert say(other, "cd")
    assert ord("a") in allowed(constraint)


REFUSED = [
    ("json_schema", {"not": {"type": "string"}}, "not"),
    ("json_schema", {"type": "array", "uniqueItems": True}, "uniqueItems"),
    ("json_schema", {"type": "object", "properties": {"a": {"if": {}, "then": {}}}}, "if"),
    ("json_schema", {"$ref": "https://example.com/schema.json"}, "example.com"),
    ("json_schema", {"$ref": "#/$defs/missing"}, "missing"),
    ("json_schema", {"$ref": "#"}, "no answer"),
    ("json_schema", {"type": "banana"}, "banana"),
    ("json_schema", {"enum": []}, ""),
    ("json_schema", {"type": "string", "format": "ipv7"}, "ipv7"),
    ("json_schema", {"type": "string", "pattern": "^(?=a)b"}, "look"),
    ("json_schema", {"type": "string", "pattern": "("}, "unclosed"),
    ("json_schema", {"oneOf": [{"type": "string", "pattern": "^a*$"}, {"type": "string", "pattern": "^b*$"}]}, "oneOf"),
    ("json_schema", {"type": "integer", "multipleOf": 10**6}, "multipleOf"),
    ("json_schema", {"type": "object", "x-guidance": {"lenient": True}, "properties": {"a": {"not": {}}}}, "not"),
    ("json_schema", {"type": "object", "properties": {"a": False}, "required": ["a"]}, "nsatisfiable"),
    ("regex", "(a", "unclosed"),
    ("gbnf", 'root ::= "a', "end of input"),
    ("gbnf", "root ::= other", "other"),
    ("gbnf", 'start ::= "a"', "root"),
    ("gbnf", r'root ::= "\u0041"', "GBNF"),
    ("gbnf", "root ::= [a&&b]", "GBNF"),
    ("lark", "start: nothing", "nothing"),
    ("lark", "start: <|end|>", ""),
]


@pytest.mark.parametrize(("kind", "source", "said"), REFUSED, ids=str)
def test_what_cannot_be_enforced_is_refused_with_the_field_and_the_reason(
    guide: Guide, kind: str, source: Any, said: str
) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        guide.compile(form(kind, source))

    assert said in caught.value.message
    assert caught.value.param == "response_format.json_schema.schema"
    assert caught.value.message.startswith("response_format.json_schema.schema cannot be enforced")
    assert "backtrace" not in caught.value.message
    assert "x-guidance" not in caught.value.message


def bomb(levels: int) -> dict[str, Any]:
    """References that make a hundred million schemas if each is written out."""
    steps = {f"d{n}": {"type": "array", "items": [{"$ref": f"#/$defs/d{n + 1}"}] * 10} for n in range(levels)}
    return {"$defs": {**steps, f"d{levels}": {"type": "string"}}, "$ref": "#/$defs/d0"}


def deep(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


HOSTILE = [
    ("json_schema", deep(90)),
    ("json_schema", deep(5_000)),
    ("json_schema", bomb(20)),
    ("json_schema", {"enum": [f"value {n}" for n in range(10_000)]}),
    ("json_schema", {"enum": [f"value {n}" for n in range(100_000)]}),
    ("json_schema", {"const": "x" * (MAX_SOURCE_BYTES - 100)}),
    ("json_schema", {"type": "string", "minLength": 10**6, "maxLength": 10**9}),
    ("json_schema", {"type": "array", "items": {"type": "integer"}, "minItems": 10**9}),
    ("json_schema", {"type": "string", "pattern": "^(a|b)*a(a|b){1000}$"}),
    ("json_schema", {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}),
    ("json_schema", {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(5_000)}}),
    ("json_schema", {"anyOf": [{"type": "object", "properties": {f"p{n}": {}}, "required": [f"p{n}"]} for n in range(3_000)]}),
    ("json_schema", {"allOf": [{"anyOf": [{"properties": {f"p{n}{m}": {}}} for m in range(4)]} for n in range(12)]}),
    ("json_schema", {"type": "number", "minimum": 0.123456789, "maximum": 987654321.987}),
    ("gbnf", "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000),
    ("gbnf", "x" * (MAX_GRAMMAR_BYTES + 1)),
    ("lark", 'start: ("x"){100000}'),
    ("regex", "(" * 5_000 + "a" + ")" * 5_000),
]


@pytest.mark.parametrize(("kind", "source"), HOSTILE, ids=lambda value: str(value)[:40])
def test_a_hostile_form_is_made_or_refused_in_little_time_and_its_steps_are_short(
    guide: Guide, kind: str, source: Any
) -> None:
    started = time.process_time()
    try:
        constraint = guide.compile(form(kind, source))
    except UnsupportedParameter:
        constraint = None
    assert time.process_time() - started < HOSTILE_S

    chance = random.Random(0)
    n_steps, started = 0, time.process_time()
    while constraint is not None and n_steps < 20 and not constraint.must_end:
        try:
            token = chance.choice(allowed(constraint))
        except InvalidRequest:
            break  # too complex to go on: the request ends with that
        if token in (END, OTHER_END) or not constraint.accept(token):
            break
        n_steps += 1
    assert time.process_time() - started < 0.1 * (n_steps + 1)
