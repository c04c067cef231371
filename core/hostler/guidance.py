"""Answers that keep to a form: a schema or grammar becomes a Constraint, by the llguidance package.

Floor 2, in the worker and in the conformance kit; the host never needs it. llguidance (Rust, 8 MB) is imported with the first
request that wants a form. `Guide` belongs to one loaded model and is used by one thread at a time; the constraints it makes
go to the engine thread, each on its own.

What comes out always keeps to the form: what llguidance cannot enforce is refused here with its own words, and nothing is
approximated (`lenient` and `coerce_one_of` are off). Limits keep a hostile form from taking more than a second of one core, a
step from taking more than some milliseconds, and a tree of schemas from using up the stack. Whitespace between JSON's tokens
is a blank, or a line break with its indent: small models would go on with blank lines until their tokens are used up.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

import msgspec

from hostler.domain import FormatKind, OutputFormat
from hostler.engine import TokenTable
from hostler.errors import EngineFailed, HostlerError, InvalidRequest, UnsupportedParameter

if TYPE_CHECKING:
    from llguidance import LLMatcher

MAX_SOURCE_BYTES = 256 * 1024
"""Of a schema or a list of choices: ten thousand values of an enum are 90 KB."""
MAX_GRAMMAR_BYTES = 64 * 1024
"""Of a grammar or an expression."""
MAX_MULTIPLE = 10_000
"""Of `multipleOf`: the automaton has as many states, and a million of them take five seconds and 300 MB."""
_WHITESPACE = r"( |\n[ \t]{0,20})"
_LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 100_000,
    "step_max_items": 20_000,
    "max_lexer_states": 50_000,
    "max_grammar_size": 200_000,
    "verbose_errors": False,
}
"""The library's own save for the steps, the states and the size, which are a quarter of them: a step of 10 ms at worst, 100 MB
for one form at worst."""
_OPTIONS = re.compile(r"\A\s*%llguidance\s+(\{.*?\})\s*$", re.MULTILINE)
_NO_FORCING = {"no_forcing": True}
"""Texts that a form leaves no choice about are not looked for: with a constant of 200 KB that takes 0.1 s at each token."""


class TokenConstraint:
    """A hostler.engine.Constraint over one matcher. Engine thread only, once it is a sequence's."""

    def __init__(self, matcher: LLMatcher, end_tokens: frozenset[int], param: str) -> None:
        self._matcher = matcher
        self._end_tokens = end_tokens
        self.param = param
        """The request's field that asked for the form."""

    def fork(self) -> TokenConstraint:
        """The same form, for another sequence; 10 us."""
        return TokenConstraint(self._matcher.deep_copy(), self._end_tokens, self.param)

    def allows(self, token_id: int) -> bool:
        """See Constraint."""
        if token_id in self._end_tokens:
            return self.may_end
        return self._matcher.validate_tokens([token_id]) == 1

    def mask(self) -> bytes:
        """See Constraint."""
        mask = self._matcher.compute_bitmask()
        # The library says that something went wrong by a mask that allows the end.
        if self._matcher.is_error():
            raise self.error()
        return mask

    def accept(self, token_id: int) -> bool:
        """Move on; False: it was not allowed, and nothing more is."""
        return self._matcher.consume_token(token_id)

    def error(self) -> HostlerError:
        """Why it cannot go on: what was said is not in the form, or the form has become too complex for the limits."""
        reason = _reason(self._matcher.get_error())
        if "Too many" in reason or "too complex" in reason.lower() or "limit" in reason:
            return InvalidRequest(
                f"The answer cannot go on in the form that {self.param} asks for: {reason}. Make it simpler", param=self.param
            )
        return broken(self.param)

    @property
    def may_end(self) -> bool:
        """What was said so far is whole."""
        return self._matcher.is_accepting()

    @property
    def must_end(self) -> bool:
        """It is whole, and nothing more can follow."""
        return self._matcher.is_stopped()


class Guide:
    """Makes constraints for one model."""

    def __init__(self, table: TokenTable) -> None:
        """Take the tokens in: 0.1 s at 49k tokens, a second or two at 262k.

        Raises:
            UnsupportedParameter: llguidance is not installed, or cannot read the vocabulary.
        """
        try:
            import llguidance
        except ImportError as error:
            message = f"Answers in a form need the package llguidance, which cannot be imported here: {error}"
            raise UnsupportedParameter(message, param="response_format") from error
        self._library = llguidance
        self._end_tokens = frozenset(table.end_tokens)
        self._limits = llguidance.LLParserLimits(**_LIMITS)
        try:
            tokens = cast(Any, _Tokens(table))  # not a TokenizerWrapper, which would try out a tokenizer that there is none of
            self._tokenizer = llguidance.LLTokenizer(tokens, eos_token=sorted(self._end_tokens))
        except ValueError as error:
            raise UnsupportedParameter(f"This model's tokens cannot be guided: {error}", param="response_format") from error

    def compile(self, form: OutputFormat) -> TokenConstraint:
        """Make a constraint; native code without the GIL, a second at worst.

        Raises:
            InvalidRequest: The form says nothing that can be meant, with what llguidance says of it.
            UnsupportedParameter: It asks for what cannot be enforced.
        """
        library = self._library
        try:
            grammar = library.LLMatcher.grammar_from_lark(_lark(form))
            matcher = library.LLMatcher(self._tokenizer, grammar, log_level=0, limits=self._limits)
        except (ValueError, RecursionError, OverflowError) as error:
            raise refused(form, _reason(str(error)) or type(error).__name__) from error
        if not matcher.is_error():
            trial = matcher.deep_copy()
            mask = trial.compute_bitmask()
            if not trial.is_error() and any(mask):
                return TokenConstraint(matcher, self._end_tokens, form.param)
            if not trial.is_error() or "NoExtension" in trial.get_error():
                raise refused(form, "no answer can be in this form")
            raise refused(form, _reason(trial.get_error()))
        raise refused(form, _reason(matcher.get_error()))


def refused(form: OutputFormat, reason: str) -> UnsupportedParameter:
    """The error of a form that is not enforced, and so not accepted."""
    return UnsupportedParameter(f"{form.param} cannot be enforced, so it is not accepted: {reason}", param=form.param)


def broken(param: str) -> EngineFailed:
    """The error of an engine that said what its sequence's constraint does not allow."""
    return EngineFailed(f"The engine left the form that {param} asks for, so its answer was stopped")


class _Tokens:
    """A vocabulary as llguidance takes it."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, table: TokenTable) -> None:
        self.tokens = list(table.pieces)
        self.eos_token_id = min(table.end_tokens)
        self.special_token_ids = [token for token, piece in enumerate(self.tokens) if not piece]

    def __call__(self, text: str) -> list[int]:
        """Never asked for with `no_forcing`; bytes would be no tokens."""
        raise NotImplementedError


# -- forms to llguidance's grammars -----------------------------------------------------------------------------------


def _lark(form: OutputFormat) -> str:
    is_json = form.kind in (FormatKind.JSON_OBJECT, FormatKind.JSON_SCHEMA, FormatKind.CHOICE)
    limit = MAX_SOURCE_BYTES if is_json else MAX_GRAMMAR_BYTES
    n_bytes = len(form.source.encode("utf-8", "replace"))
    if n_bytes > limit:
        raise refused(form, f"it has {n_bytes} bytes; at most {limit} are allowed")
    match form.kind:
        case FormatKind.JSON_OBJECT:
            return _of_schema({"type": "object"})
        case FormatKind.JSON_SCHEMA:
            schema = msgspec.json.decode(form.source)
            _check_schema(schema, form)
            return _of_schema(schema)
        case FormatKind.CHOICE:
            return _headed(f"start: {' | '.join(json.dumps(text) for text in msgspec.json.decode(form.source))}")
        case FormatKind.REGEX:
            from llguidance import regex_to_lark

            # \d and \w are ASCII's: digits and letters under every dialect's reading.
            return _headed(f"start: /{regex_to_lark(form.source, 'dw')}/")
        case FormatKind.GBNF:
            return _headed(_of_gbnf(form))
        case FormatKind.LARK:
            return _headed(form.source)


def _headed(lark: str) -> str:
    """A grammar with the options it is read with."""
    match = _OPTIONS.search(lark)
    if match is None:
        return f"%llguidance {json.dumps(_NO_FORCING)}\n{lark}"
    options = {**json.loads(match[1]), **_NO_FORCING}
    return f"%llguidance {json.dumps(options)}\n{lark[match.end() :]}"


def _of_schema(schema: dict[str, Any]) -> str:
    wanted = {"whitespace_pattern": _WHITESPACE, "whitespace_flexible": True, "lenient": False, "coerce_one_of": False}
    return _headed(f"start: %json {json.dumps({**schema, 'x-guidance': wanted})}")


def _check_schema(schema: Any, form: OutputFormat) -> None:
    """Refuse what the library would take too long for."""
    if not isinstance(schema, dict):
        raise refused(form, "it is no object")
    pending = [schema]
    while pending:
        value = pending.pop()
        if isinstance(value, list):
            pending += value
        elif isinstance(value, dict):
            multiple = value.get("multipleOf")
            if isinstance(multiple, int | float) and abs(multiple) > MAX_MULTIPLE:
                raise refused(form, f"multipleOf is {multiple}; at most {MAX_MULTIPLE} can be enforced")
            pending += value.values()


#: llama.cpp's escapes that the converter writes wrongly, and what Rust's character classes take for operators.
_GBNF_TROUBLE = re.compile(r"\\[uU]|\\x(?![0-7])|&&|--|~~|\[:")


def _of_gbnf(form: OutputFormat) -> str:
    from llguidance.gbnf_to_lark import GbnfToLarkError, gbnf_to_lark

    trouble = _GBNF_TROUBLE.search(form.source)
    if trouble is not None:
        raise refused(form, f"{trouble[0]!r} in a GBNF grammar has no equal here; write it otherwise, or the grammar in Lark")
    try:
        return gbnf_to_lark(form.source)
    except GbnfToLarkError as error:
        raise refused(form, str(error)) from error
    except RecursionError:
        raise refused(form, "its groups are nested too deeply") from None
    except Exception as error:  # the converter raises bare Exceptions
        raise refused(form, str(error)) from error


#: What llguidance puts behind its reason (states, the grammar's lines, a backtrace), and in front of it where the grammar's
#: lines are not the client's.
_BEHIND = re.compile(r"\n(?:<non-verbose/>|<state>|<backtrace>| +\d+ \| ).*", re.DOTALL)
_IN_FRONT = re.compile(r"\Aat \d+\(\d+\): (?:failed to compile JSON schema: )?")


def _reason(text: str) -> str:
    return _IN_FRONT.sub("", _BEHIND.sub("", text)).strip()
