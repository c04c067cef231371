"""From a submitted request to token ids: render, tokenize, check that it fits.

Floor 3, in the worker, preparation thread (`preparation_thread.py`), beside the loop: the only part of the engine it may
call is `tokenize`. Every refusal is an InvalidRequest that names the field.
"""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from hostler.domain import SEED_RANDOM, Message, SamplingParams
from hostler.engine import EngineInfo, RawPrompt
from hostler.errors import ContextLengthExceeded, EmbeddingsDisabled, InvalidRequest, UnsupportedParameter
from hostler.guidance import TokenConstraint
from hostler.prompt.forms import PromptForm, parse_prompt_template
from hostler.prompt.segments import Prompt
from hostler.prompt.template import ChatTemplate
from hostler.text import StopStrings
from hostler.worker.wire import Embed, PromptSettings, Submit

MAX_STOP_CHARACTERS = 16 * 1024
"""All stop strings of a request together: each character is a state of the automaton, about 300 bytes."""
UNKNOWN_CTX = 2**31 - 1
"""The context of an engine that takes messages and does not know it: whoever answers will say what is too much."""
_BYTES_A_TOKEN = 3
_TOKENS_A_MESSAGE = 8
"""An estimate that is rather high: English has about four bytes a token, Chinese three or less."""


class Tokenizer(Protocol):
    """The part of an engine that may be called beside its thread."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """See Engine."""


@dataclass(frozen=True)
class Prepared:
    """A request that is ready for a slot."""

    sequence_id: int
    tokens: Sequence[int]
    params: SamplingParams
    """With a seed drawn."""
    stops: StopStrings
    cache_prompt: bool
    raw: RawPrompt | None = None
    """Instead of tokens, for an engine that takes messages."""
    constraint: TokenConstraint | None = None
    """Made of `params.output_format` afterwards (grammars.py)."""
    n_pinned: int = 0
    """So many first tokens stand for messages up to a pinned one."""


class Preparation:
    """Prepares requests for one loaded model. One thread at a time."""

    def __init__(
        self,
        model_id: str,
        tokenizer: Tokenizer,
        info: EngineInfo,
        settings: PromptSettings,
        *,
        is_embedding: bool = True,
        takes_messages: bool = False,
    ) -> None:
        """Choose how messages become text: the setting `prompt_template`, else the file's template, else Jan's four
        prompt texts when one of them is set.

        Args:
            is_embedding: The setting `embedding`.
            takes_messages: The engine renders and tokenizes by itself: requests are checked and handed on.

        Raises:
            InvalidRequest: `prompt_template` lacks its marker, or one of the five is set for such an engine.
        """
        self._model_id = model_id
        self._tokenizer = tokenizer
        self._info = info
        self._is_embedding = is_embedding
        self._takes_messages = takes_messages
        self._max_bytes = settings.max_prompt_bytes
        self._last_pinned: tuple[tuple[str, ...], list[int]] = ((), [])
        self._form: PromptForm | None = None
        self._template: ChatTemplate | None = None
        if takes_messages:
            _refuse_prompt_settings(model_id, settings)
        elif settings.prompt_template is not None:
            self._form = parse_prompt_template(settings.prompt_template)
        elif info.chat_template is not None:
            self._template = ChatTemplate(
                info.chat_template,
                bos_text=info.bos_text,
                eos_text=info.eos_text,
                special_texts=info.special_texts,
                max_prompt_bytes=settings.max_prompt_bytes,
            )
        else:
            self._form = _plain_form(settings)

    def prepare(self, submit: Submit, on_rendered: Callable[[], None]) -> Prepared:
        """Do all of it.

        Args:
            on_rendered: Called between rendering, which has a time limit of its own, and tokenizing.

        Raises:
            HostlerError: What is wrong with the request.
        """
        if not self._info.can_generate:
            raise InvalidRequest(
                f"{self._model_id} writes no text, it only gives embeddings (POST /v1/embeddings); choose another model",
                param="model",
            )
        params = self._checked(submit.params)
        if self._takes_messages:
            on_rendered()
            return self._prepare_raw(submit, params)
        implied_stops: tuple[str, ...] = ()
        pinned: Prompt | None = None
        if submit.messages is not None:
            prompt = self.render(submit.messages, submit.template_kwargs)
            implied_stops = prompt.stops
            pinned = self._render_pinned(submit.messages, submit.template_kwargs)
            on_rendered()
            tokens: Sequence[int] = self._tokenize_prompt(prompt, "messages")
        elif isinstance(submit.prompt, str):
            on_rendered()
            tokens = self._tokenize_prompt(Prompt((submit.prompt,) if submit.prompt else ()), "prompt")
        else:
            on_rendered()
            tokens = self._check_token_ids(submit.prompt or (), "prompt")
        self._check_length(len(tokens), "messages" if submit.messages is not None else "prompt")
        stops = StopStrings((*params.stop, *implied_stops))
        n_pinned = self._count_pinned(pinned, tokens) if pinned is not None else 0
        return Prepared(submit.sequence_id, tokens, params, stops, submit.cache_prompt, n_pinned=n_pinned)

    def count(self, messages: Sequence[Message], template_kwargs: dict[str, object], on_rendered: Callable[[], None]) -> int:
        """How many tokens `prepare` would make of these messages; more than the context holds is no error here. An estimate
        by their size where the engine takes messages.

        Args:
            on_rendered: As in `prepare`.

        Raises:
            HostlerError: What is wrong with them; ContextLengthExceeded only when they are far too long even to be counted.
        """
        if self._takes_messages:
            on_rendered()
            return sum(_estimated_tokens(message) for message in messages)
        prompt = self.render(messages, template_kwargs)
        on_rendered()
        return len(self._tokenize_prompt(prompt, "messages"))

    @property
    def n_ctx(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._info.n_ctx or UNKNOWN_CTX

    def render(self, messages: Sequence[Message], template_kwargs: dict[str, object], *, folds_system: bool = True) -> Prompt:
        """Messages to text.

        Raises:
            InvalidRequest: The template refuses them, or there is none.
        """
        if self._template is not None:
            return self._template.render(messages, template_kwargs, folds_system=folds_system)
        if self._form is not None:
            return self._form.render(messages, self._info.special_texts, self._max_bytes)
        raise InvalidRequest(
            f"The files of {self._model_id} hold no chat template, so messages cannot become a prompt; set "
            f"prompt_template in the model's settings (text with {{system_message}} and {{prompt}}), or send a plain "
            f"prompt to /v1/completions",
            param="settings.prompt_template",
        )

    def tokenize(self, text: str) -> list[int]:
        """A plain text to token ids, BOS and control texts as for a completion's prompt."""
        if self._takes_messages:
            raise UnsupportedParameter(f"{self._model_id} runs in an engine that shows no tokens", param="text")
        return self._tokenize((text,) if text else ())

    def check_embed(self, embed: Embed) -> None:
        """Whether this model can give these vectors at all.

        Raises:
            EmbeddingsDisabled: It cannot embed, or the setting `embedding` is false.
            InvalidRequest: There are no inputs.
            UnsupportedParameter: Its vectors have another length.
        """
        if not self._is_embedding:
            raise EmbeddingsDisabled(
                f"{self._model_id} runs with the setting embedding: false, so it gives no embeddings", param="model"
            )
        if not self._info.can_embed:
            raise EmbeddingsDisabled(
                f"{self._model_id} gives no embeddings in its engine; choose a model that does", param="model"
            )
        if not embed.inputs:
            raise InvalidRequest("input is empty; send a text, or a list of texts or of token ids", param="input")
        if embed.dimensions not in (None, self._info.n_embd):
            raise UnsupportedParameter(
                f"dimensions is {embed.dimensions}; the vectors of {self._model_id} have {self._info.n_embd} dimensions and "
                f"are not shortened",
                param="dimensions",
            )

    def embed_input(self, value: str | Sequence[int], param: str) -> array[int] | str:
        """One input to token ids that may be embedded. A text is text: control tokens inside it are not read as such; it
        stays one where the engine takes messages.

        Raises:
            InvalidRequest: Naming the input that is empty or not the model's.
            ContextLengthExceeded: It does not fit.
        """
        if not isinstance(value, str):
            tokens = self._check_token_ids(value, param)
            self._check_input_length(len(tokens), param)
            return array("i", tokens)
        if not value:
            raise InvalidRequest(f"{param} is empty; send some text", param=param)
        if self._takes_messages:
            return value
        far_too_long = self._far_too_long()
        if len(value) > far_too_long:
            beginning = self._tokenizer.tokenize(value[:far_too_long], add_special=True, parse_special=False)
            self._check_input_length(len(beginning), param, is_at_least=True)
        tokens = self._tokenizer.tokenize(value, add_special=True, parse_special=False)
        if not tokens:
            raise InvalidRequest(f"{param} has no tokens in this model; send some text", param=param)
        self._check_input_length(len(tokens), param)
        return array("i", tokens)

    # -- inside -----------------------------------------------------------------------------------------------------

    def _checked(self, params: SamplingParams) -> SamplingParams:
        if params.max_tokens < 1:
            raise InvalidRequest(f"max_tokens is {params.max_tokens}; it must be at least 1", param="max_tokens")
        form = params.output_format
        if form is not None and not (self._info.can_guide or self._takes_messages):
            raise UnsupportedParameter(
                f"{self._model_id} runs in {self._info.version or 'an engine'}, which cannot hold an answer to a form; leave "
                f"{form.param} out, or choose another model",
                param=form.param,
            )
        n_characters = sum(len(stop) for stop in params.stop)
        if n_characters > MAX_STOP_CHARACTERS:
            raise InvalidRequest(
                f"The stop strings have {n_characters} characters together; at most {MAX_STOP_CHARACTERS} are allowed",
                param="stop",
            )
        # An id out of range is memory out of range in an engine.
        for token_id in () if self._takes_messages else params.logit_bias:
            if not 0 <= token_id < self._info.n_vocab:
                raise InvalidRequest(
                    f"logit_bias names token {token_id}; this model's tokens are 0 to {self._info.n_vocab - 1}",
                    param="logit_bias",
                )
        if params.seed == SEED_RANDOM and not self._takes_messages:
            return msgspec.structs.replace(params, seed=secrets.randbits(31))
        return params

    def _check_token_ids(self, tokens: Sequence[int], param: str) -> Sequence[int]:
        if not tokens:
            raise InvalidRequest(f"{param} is empty; send at least one token", param=param)
        for index, token_id in enumerate(() if self._takes_messages else tokens):
            if not 0 <= token_id < self._info.n_vocab:
                raise InvalidRequest(
                    f"{param}[{index}] is token {token_id}; this model's tokens are 0 to {self._info.n_vocab - 1}",
                    param=f"{param}[{index}]",
                )
        return tokens

    def _tokenize_prompt(self, prompt: Prompt, param: str) -> list[int]:
        size = sum(len(segment) for segment in prompt.segments)
        far_too_long = self._far_too_long()
        if size > far_too_long:
            # Half a minute of tokenizing for a refusal would keep everybody else's request waiting.
            beginning = self._tokenize(("".join(prompt.segments)[:far_too_long],))
            if len(beginning) >= self._info.n_ctx:
                self._check_length(len(beginning), param, is_at_least=True)
        tokens = self._tokenize(prompt.segments)
        if not tokens:
            raise InvalidRequest("The prompt is empty; send some text", param=param)
        return tokens

    def _far_too_long(self) -> int:
        """Characters of a text that is tokenized in part first: the whole of it can hardly fit."""
        return 256 * self._info.n_ctx + 65_536

    def _tokenize(self, segments: Sequence[str]) -> list[int]:
        tokens: list[int] = []
        info = self._info
        for index, segment in enumerate(segments):
            # Templates write the BOS that the tokenizer would add; two of them make answers worse.
            has_bos = bool(info.bos_text) and segment.startswith(info.bos_text)
            is_first = index == 0 and not (info.adds_bos and has_bos)
            tokens += self._tokenizer.tokenize(segment, add_special=is_first, parse_special=True)
        if not segments:
            tokens = self._tokenizer.tokenize("", add_special=True, parse_special=True)
        return tokens

    def _render_pinned(self, messages: Sequence[Message], template_kwargs: dict[str, object]) -> Prompt | None:
        """The messages up to the last pinned one, as they begin the prompt; None: none is pinned, or the template has no
        conversation that ends there."""
        n_messages = max((index for index, message in enumerate(messages, 1) if message.is_pinned), default=0)
        if not n_messages:
            return None
        beginning = messages[:n_messages]
        # Some templates want a user's turn, or an end other than the assistant's; what it says is cut off again. A system
        # text becomes a user's only where the template has no other way: the prompt itself has it so only then.
        for folds_system in (False, True):
            for tried in (beginning, (*beginning, Message("user", "."))):
                try:
                    return self.render(tried, template_kwargs, folds_system=folds_system)
                except InvalidRequest:
                    continue
        return None

    def _count_pinned(self, pinned: Prompt, tokens: Sequence[int]) -> int:
        """How many tokens a prompt has in common with its pinned messages alone."""
        if self._last_pinned[0] != pinned.segments:  # who pins a text sends it again and again
            self._last_pinned = pinned.segments, self._tokenize(pinned.segments)
        alone = self._last_pinned[1]
        differing = (place for place, (one, other) in enumerate(zip(tokens, alone, strict=False)) if one != other)
        return next(differing, min(len(tokens), len(alone)))

    def _prepare_raw(self, submit: Submit, params: SamplingParams) -> Prepared:
        if isinstance(submit.prompt, tuple):
            self._check_token_ids(submit.prompt, "prompt")
        elif submit.messages is None and not submit.prompt:
            raise InvalidRequest("The prompt is empty; send some text", param="prompt")
        messages = submit.messages
        if messages is not None:  # the pin is for a cache of ours, and no field of anybody else's
            messages = tuple(msgspec.structs.replace(message, is_pinned=False) for message in messages)
        raw = RawPrompt(messages, submit.prompt, submit.template_kwargs)
        return Prepared(submit.sequence_id, (), params, StopStrings(params.stop), submit.cache_prompt, raw)

    def _check_input_length(self, n_tokens: int, param: str, *, is_at_least: bool = False) -> None:
        n_ctx = self.n_ctx
        if n_tokens > n_ctx:
            count = f"more than {n_tokens}" if is_at_least else str(n_tokens)
            raise ContextLengthExceeded(
                f"This model's maximum context length is {n_ctx} tokens. However, {param} has {count} tokens. Please shorten "
                f"it, or start the model with a larger ctx_len if it allows more.",
                param=param,
            )

    def _check_length(self, n_tokens: int, param: str, *, is_at_least: bool = False) -> None:
        n_ctx = self._info.n_ctx
        if n_tokens < n_ctx:
            return
        count = f"more than {n_tokens}" if is_at_least else str(n_tokens)
        what = "your messages resulted in" if param == "messages" else "your prompt has"
        why = ", which leaves no room for an answer" if n_tokens == n_ctx and not is_at_least else ""
        raise ContextLengthExceeded(
            f"This model's maximum context length is {n_ctx} tokens. However, {what} {count} tokens{why}. "
            f"Please reduce the length of the {param}, or start the model with a larger ctx_len.",
            param=param,
        )


def _plain_form(settings: PromptSettings) -> PromptForm | None:
    texts = (settings.pre_prompt, settings.system_prompt, settings.user_prompt, settings.ai_prompt)
    if all(text is None for text in texts):
        return None
    plain = PromptForm()
    pre_prompt, system_prompt, user_prompt, ai_prompt = texts
    return PromptForm(
        pre_prompt=plain.pre_prompt if pre_prompt is None else pre_prompt,
        system_prompt=plain.system_prompt if system_prompt is None else system_prompt,
        user_prompt=plain.user_prompt if user_prompt is None else user_prompt,
        ai_prompt=plain.ai_prompt if ai_prompt is None else ai_prompt,
    )


def _refuse_prompt_settings(model_id: str, settings: PromptSettings) -> None:
    for name in ("prompt_template", "pre_prompt", "system_prompt", "user_prompt", "ai_prompt"):
        if getattr(settings, name) is not None:
            raise InvalidRequest(
                f"{model_id} has the setting {name}, and its engine makes prompts by itself; take the setting back",
                param=f"settings.{name}",
            )


def _estimated_tokens(message: Message) -> int:
    size = len((message.content or "").encode()) + sum(len(str(call)) for call in message.tool_calls or ())
    return _TOKENS_A_MESSAGE + -(-size // _BYTES_A_TOKEN)
