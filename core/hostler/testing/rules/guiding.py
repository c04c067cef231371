"""A check of engines that hold an answer to a form. Floor 2, tests only."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, cast

from hostler.domain import FinishReason, FormatKind, OutputFormat, SamplingParams
from hostler.engine import GuidedEngine
from hostler.guidance import Guide, TokenConstraint
from hostler.testing.recording import RecordingSequence
from hostler.testing.rules.registry import PROMPTS, check, tokenize

if TYPE_CHECKING:
    from hostler.testing.contract import EngineContract

SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2, 3]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}
MANNERS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.0, repeat_penalty=1.2, ignore_eos=True),
    SamplingParams(temperature=1.5, top_p=1.0, min_p=0.0, logprobs=5),
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=1.0, top_k=5, frequency_penalty=0.5),
    SamplingParams(temperature=1.0, typ_p=0.8, logprobs=2),
    SamplingParams(temperature=1.0, mirostat=2),
    SamplingParams(temperature=0.8, dynatemp_range=0.5, min_keep=8),
)
"""Each way that a sampler has."""
N_DRAWS = 120


@check
def a_constraint_is_kept_to(c: EngineContract) -> None:
    """With `can_guide` every answer keeps to its constraint, however it is sampled, is drawn from what is allowed by its own
    probabilities, and leaves other answers alone."""
    if not c.info.can_guide:
        return  # the worker refuses such requests before an engine sees them
    table = cast(GuidedEngine, c.engine).token_table()
    assert len(table.pieces) == c.info.n_vocab, f"{len(table.pieces)} pieces in a vocabulary of {c.info.n_vocab} tokens"
    assert table.end_tokens, "no token ends a generation"
    tokens = tokenize(c, PROMPTS[0])
    told = b"".join(table.pieces[token] for token in tokens)
    assert told == c.engine.detokenize(tokens), f"the pieces say {told!r} where detokenize says otherwise"
    guide = Guide(table)
    schema = guide.compile(OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA)))
    free = c.sequence(PROMPTS[2])
    reference = c.answer(PROMPTS[2])
    guided = [_sequence(c, index, params, schema) for index, params in enumerate(MANNERS)]
    with c.driver() as driver:
        driver.run([guided[0], free, *guided[1:]])
    c.assert_same(reference, free, "beside answers in a form")
    for sequence in guided:
        assert sequence.reason is FinishReason.STOP, f"{sequence.params}: it ended with {sequence.reason}: {sequence.text!r}"
        value = json.loads(sequence.text)
        assert set(value) == {"ok", "n"}, f"{sequence.params}: {sequence.text!r} is not in the form"
        assert isinstance(value["ok"], bool), f"{sequence.params}: {sequence.text!r} is not in the form"
        assert value["n"] in (1, 2, 3), f"{sequence.params}: {sequence.text!r} is not in the form"
        for logprob in sequence.logprobs:
            values = [] if logprob is None else [logprob.logprob, *(top.logprob for top in logprob.top)]
            assert all(math.isfinite(one) for one in values), f"a token that is not allowed has a probability: {logprob}"
    _draws_are_fair(c, guide)


def _sequence(c: EngineContract, index: int, params: SamplingParams, constraint: TokenConstraint) -> RecordingSequence:
    return RecordingSequence(
        c.tokens(PROMPTS[index]), params, n_ctx=c.info.n_ctx, cache_prompt=False, constraint=constraint.fork()
    )


def _draws_are_fair(c: EngineContract, guide: Guide) -> None:
    """Of two letters each is drawn as often as the engine says of it."""
    letters = guide.compile(OutputFormat(FormatKind.REGEX, "[ab]"))
    drawn = [
        RecordingSequence(
            c.tokens(PROMPTS[1]),
            SamplingParams(temperature=1.0, top_p=1.0, min_p=0.0, logprobs=2, seed=seed, max_tokens=1),
            n_ctx=c.info.n_ctx,
            constraint=letters.fork(),
        )
        for seed in range(N_DRAWS)
    ]
    with c.driver() as driver:
        driver.run(drawn)
    first = drawn[0].logprobs[0]
    assert first is not None, "no log probability came"
    chances = {top.token: math.exp(top.logprob) for top in first.top}
    assert abs(sum(chances.values()) - 1) < 1e-3, f"what is allowed adds up to {sum(chances.values())}: {chances}"
    chance = chances.get(b"a", 0.0)
    n_drawn = sum(sequence.pieces == [b"a"] for sequence in drawn)
    margin = 5 * math.sqrt(N_DRAWS * chance * (1 - chance)) + 1
    assert abs(n_drawn - N_DRAWS * chance) <= margin, f"'a' has a chance of {chance:.3f} and came {n_drawn} of {N_DRAWS} times"
