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
    ``<think>``."""

    folder: str
    tokens: list[int]
    opening: int
    thinking: bool
    max_tokens: int
    plan: SamplingPlan
    schemas: Schemas

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
        profile = self.facts.profile
        plan = plan_sampling(request.sampling, profile.sampling, self.facts.vocabulary)
        schemas = properties(request.tools)
        self._check_texts(request.messages)
        prompt = render(
            self._tokenizer,
            request.messages,
            request.tools,
            profile.prompt_style,
            self._controls,
            check=lambda text: self._check_size(len(text)),
        )
        if not prompt.tokens:
            raise PunieError(InvalidRequest(message="the conversation renders to no tokens"))
        room = self._room(len(prompt.tokens))
        return Prepared(
            folder=str(self.facts.path),
            tokens=prompt.tokens,
            opening=self._opening(prompt.tokens, request),
            thinking=prompt.thinking,
            max_tokens=min(plan.profile.max_tokens, room),
            plan=plan,
            schemas=schemas,
        )

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

    def _room(self, tokens: int) -> int:
        window = self.facts.profile.context_window
        if tokens >= window:
            raise _overflow(f"the conversation has {tokens} tokens", tokens, window)
        return window - tokens

    def _check_texts(self, messages: Sequence[AnyChatMessage]) -> None:
        """Refuse what would take long even to render."""
        self._check_size(sum(len(message.text) for message in messages))

    def _check_size(self, size: int) -> None:
        """Refuse what no tokenizer could make short enough, before one tries."""
        window = self.facts.profile.context_window
        if (least := size // self._longest) >= window:
            text = f"the conversation has {size} characters, {least} tokens or more"
            raise _overflow(text, least, window)


def _overflow(what: str, tokens: int, window: int) -> PunieError:
    message = f"{what}, the model's window {window}"
    return PunieError(ContextOverflow(message=message, hint=_SHORTER, tokens=tokens, limit=window))
