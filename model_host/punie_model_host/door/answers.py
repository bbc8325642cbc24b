"""The answers to one HTTP request: collected, and counted together. Pure."""

from collections.abc import Sequence
from typing import assert_never

from punie_model_host.door import faults
from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import (
    Failed,
    Finished,
    ModelChanged,
    ModelWelcome,
    PrefillProgress,
    Refused,
    TextDelta,
    ThinkingDelta,
    TokenCount,
    ToModelClient,
    ToolCall,
)


class Answer:
    """One choice; `end` is there when it is complete."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.thinking: list[str] = []
        self.calls: list[ToolCall] = []
        self.end: Finished | None = None


class Answers:
    """All choices of a request, `per_prompt` of each prompt, for the messages of requests with the
    ids 1 to `number`."""

    def __init__(self, number: int, per_prompt: int = 1) -> None:
        self.choices = [Answer() for _ in range(number)]
        self._per_prompt = per_prompt

    @property
    def complete(self) -> bool:
        """Whether nothing more is to come."""
        return all(answer.end is not None for answer in self.choices)

    def add(self, message: ToModelClient) -> None:
        """Take a message. Raises `Refusal` for a choice that failed: then all have."""
        match message:
            case TextDelta(request_id=id, text=text):
                self.choices[id - 1].text.append(text)
            case ThinkingDelta(request_id=id, text=text):
                self.choices[id - 1].thinking.append(text)
            case ToolCall(request_id=id):
                self.choices[id - 1].calls.append(message)
            case Finished(request_id=id):
                self.choices[id - 1].end = message
            case Failed(error=error):
                raise faults.refusal(error)
            case PrefillProgress() | ModelWelcome() | ModelChanged() | Refused() | TokenCount():
                pass  # for clients that stay
            case _:
                assert_never(message)

    @property
    def ends(self) -> Sequence[Finished]:
        """How the choices that are complete ended."""
        return [answer.end for answer in self.choices if answer.end is not None]

    @property
    def usage(self) -> Usage:
        """Tokens of all; a prompt with several answers counts once."""
        ends = self.ends
        prompts = ends[:: self._per_prompt]
        return Usage(
            input_tokens=sum(end.usage.input_tokens for end in prompts),
            cached_tokens=sum(end.usage.cached_tokens for end in prompts),
            output_tokens=sum(end.usage.output_tokens for end in ends),
        )
