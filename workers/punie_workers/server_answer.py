"""An answer of another model server as it streams: timed, its failures typed."""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final

import httpx2
from pydantic_ai.exceptions import ModelAPIError, UnexpectedModelBehavior
from pydantic_ai.messages import ModelResponseStreamEvent
from pydantic_ai.models.openai import OpenAIStreamedResponse
from pydantic_ai.profiles.openai import OpenAIModelProfile

from punie_protocol.errors import LinkClosed, PunieError
from punie_workers.server_step import ServerStep

EXPECTED: Final = (ModelAPIError, UnexpectedModelBehavior, httpx2.HTTPError, ValueError)
"""What a request that fails raises."""
ERRORS: Final = (*EXPECTED, TypeError, AttributeError, LookupError)
"""The SDK does not check what a server sends: JSON of another shape fails where it is used."""
PROFILE: Final = OpenAIModelProfile(
    json_schema_transformer=None,
    openai_supports_strict_tool_definition=False,
    openai_chat_supports_max_completion_tokens=False,
    openai_chat_streaming_requires_finish_reason=True,
)
"""What all of them understand. An answer without a finish reason is one that broke off."""


@dataclass
class ServerStream(OpenAIStreamedResponse):
    """An answer as it streams, timed, its failures typed."""

    step: ServerStep = field(init=False)
    asked: str = field(init=False)
    typed: Callable[[Exception], PunieError] = field(init=False)

    def follow(
        self, step: ServerStep, asked: str, typed: Callable[[Exception], PunieError]
    ) -> None:
        """Tell `step` what comes from the model `asked`; `typed` makes a `PunieError` of what goes
        wrong."""
        self.step, self.asked, self.typed = step, asked, typed

    @property
    def model_name(self) -> str:
        return self.asked  # servers answer with an alias, or a path

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        try:
            async for event in super()._get_event_iterator():
                self.step.token()
                yield event
        except ERRORS as error:
            if self.cancelled:
                raise
            self.step.fail(self._usage)
            raise self._problem(error) from error
        self.step.finish(self._usage, self.finish_reason)

    def _problem(self, error: Exception) -> PunieError:
        if type(error) is ModelAPIError and not error.in_stream:  # no finish reason: see `PROFILE`
            return LinkClosed(f"{self.provider_url}: {error.message}")
        return self.typed(error)
