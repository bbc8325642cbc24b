"""A request as the engine needs it: tokens, and everything about it checked. Whatever a request can
get wrong by itself fails here, before any model computes."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from mlx_lm.tokenizer_utils import TokenizerWrapper

from punie_model_host.chat import properties, render
from punie_model_host.facts import ModelFacts
from punie_model_host.forced_call import opening
from punie_model_host.loading import load_tokenizer_of
from punie_model_host.quoting import control_tokens
from punie_model_host.sampling_plan import SamplingPlan, plan_sampling
from punie_model_host.toolcalls import Schemas
from punie_protocol.errors import ContextOverflow, InvalidRequest, PunieError
from punie_protocol.messages.to_model_host import (
    AnyChatMessage,
    Generate,
    SystemMessage,
    ToolSchema,
)

_OPENINGS: Final = 16
"""Different instructions whose tokens are remembered."""
_SHORTER: Final = "start a new session, or use a model with a larger context window"


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request for the model in `folder`. `max_tokens` is at least 1 and fits the window behind
    `tokens`, of which there is at least one; the first `opening` of them are what other
    conversations begin with too, instructions and tools. `thinking` says that they end inside
    ``<think>``; `begun` is what of them is the answer's own beginning, as text."""

    folder: str
    tokens: list[int]
    opening: int
    thinking: bool
    max_tokens: int
    plan: SamplingPlan
    schemas: Schemas
    begun: str = ""

    def limited_to(self, tokens: int) -> Prepared:
        """Return the same for an answer of at most `tokens`."""
        return self if self.max_tokens <= tokens else replace(self, max_tokens=tokens)


class Reader:
    """Reads conversations for one model, with a tokenizer of its own; for one thread."""

    def __init__(self, facts: ModelFacts, tokenizer: TokenizerWrapper | None = None) -> None:
        self.facts = facts
        self._tokenizer = tokenizer or load_tokenizer_of(facts.path, facts.eos)
        self._controls = control_tokens(self._tokenizer)
        self._openings: OrderedDict[object, list[int]] = OrderedDict()

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest token; a byte counts for a character."""
        return max(map(len, self._tokenizer.get_vocab()), default=1)

    def prepare(self, request: Generate) -> Prepared:
        """Return the request, ready to compute. Raises `PunieError`: `InvalidRequest` that names
        what is wrong, `ContextOverflow` with both numbers."""
        plan = plan_sampling(request.sampling, self.facts.profile.sampling, self.facts.vocabulary)
        if request.prompt is not None:
            return self._prepare_prompt(request.prompt, plan)
        schemas = properties(request.tools)
        self._check_texts(request.messages)
        prompt = render(
            self._tokenizer,
            request.messages,
            request.tools,
            self.facts.profile.prompt_style,
            self._controls,
            check=lambda text: self._check_size(len(text), "conversation"),
        )
        if not prompt.tokens:
            raise PunieError(InvalidRequest(message="the conversation renders to no tokens"))
        begun = self._begun(request, thinking=prompt.thinking)
        tokens = prompt.tokens + self._tokenizer.encode(begun, add_special_tokens=False)
        return Prepared(
            folder=str(self.facts.named),
            tokens=tokens,
            opening=self._opening(prompt.tokens, request),
            thinking=prompt.thinking and not begun,
            max_tokens=min(plan.profile.max_tokens, self._room(len(tokens), "conversation")),
            plan=plan,
            schemas=schemas,
            begun=begun,
        )

    def _prepare_prompt(self, prompt: str | list[int], plan: SamplingPlan) -> Prepared:
        tokens = self._tokens(prompt)
        return Prepared(
            folder=str(self.facts.named),
            tokens=tokens,
            opening=0,
            thinking=False,
            max_tokens=min(plan.profile.max_tokens, self._room(len(tokens), "prompt")),
            plan=plan,
            schemas={},
        )

    def _tokens(self, prompt: str | list[int]) -> list[int]:
        """Return a raw prompt's tokens; in a text, control tokens are what they say, and what the
        tokenizer puts before every text is there once."""
        if isinstance(prompt, str):
            self._check_size(len(prompt), "prompt")
            first = self._tokenizer.bos_token
            special = first is None or not prompt.startswith(first)
            tokens = self._tokenizer.encode(prompt, add_special_tokens=special)
        else:
            self._room(len(prompt), "prompt")
            tokens, size = prompt, self.facts.vocabulary
            wrong = next((id for id in tokens if not 0 <= id < size), None)
            if wrong is not None:
                message = f"prompt: the model has no token {wrong}, it has 0 to {size - 1}"
                raise PunieError(InvalidRequest(message=message))
        if not tokens:
            raise PunieError(InvalidRequest(message="prompt: it has no tokens"))
        return tokens

    def _begun(self, request: Generate, *, thinking: bool) -> str:
        """Return what the answer has to begin with."""
        if request.must_call is None:
            return ""
        names = [tool.name for tool in request.tools]
        format = self.facts.profile.tool_call_format
        return opening(format, request.must_call, names, thinking=thinking)

    def count(self, messages: Sequence[AnyChatMessage], tools: Sequence[ToolSchema]) -> int:
        """Return the tokens of a conversation, rendered as for an answer but without the opening
        of one. Raises `PunieError`."""
        style = self.facts.profile.prompt_style
        prompt = render(self._tokenizer, messages, tools, style, self._controls, to_answer=False)
        return len(prompt.tokens)

    def _opening(self, tokens: Sequence[int], request: Generate) -> int:
        """Return how far the prompt is that of its instructions and tools alone."""
        system = [m for m in request.messages if isinstance(m, SystemMessage)]
        if not system or not isinstance(request.messages[0], SystemMessage):
            return 0
        known = (tuple(message.text for message in system), tuple(request.tools))
        if known not in self._openings:
            self._openings[known] = self._render_opening(system, request.tools)
            if len(self._openings) > _OPENINGS:
                self._openings.popitem(last=False)
        self._openings.move_to_end(known)
        pairs = zip(tokens, self._openings[known], strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), len(self._openings[known]))

    def _render_opening(
        self, system: Sequence[AnyChatMessage], tools: Sequence[ToolSchema]
    ) -> list[int]:
        style = self.facts.profile.prompt_style
        try:
            return render(
                self._tokenizer, system, tools, style, self._controls, to_answer=False
            ).tokens
        except PunieError:  # a template that wants a user: nothing is known to be shared then
            return []

    def _room(self, tokens: int, what: str) -> int:
        window = self.facts.profile.context_window
        if tokens >= window:
            raise _overflow(f"the {what} has {tokens} tokens", tokens, window)
        return window - tokens

    def _check_texts(self, messages: Sequence[AnyChatMessage]) -> None:
        """Refuse what would take long even to render."""
        self._check_size(sum(len(message.text) for message in messages), "conversation")

    def _check_size(self, size: int, what: str) -> None:
        """Refuse what no tokenizer could make short enough, before one tries."""
        window = self.facts.profile.context_window
        if (least := size // self._longest) >= window:
            text = f"the {what} has {size} characters, {least} tokens or more"
            raise _overflow(text, least, window)


def _overflow(what: str, tokens: int, window: int) -> PunieError:
    message = f"{what}, the model's window {window}"
    return PunieError(ContextOverflow(message=message, hint=_SHORTER, tokens=tokens, limit=window))
