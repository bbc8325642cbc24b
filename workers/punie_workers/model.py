"""pydantic-ai's `Model` over the model host's socket. One instance serves one turn.

pydantic-ai's own message preparation (framing notes, system tags, retry wrappers) is switched
off: what is sent is exactly the conversation, as the embedded model was trained on it and as the
prefix cache likes it.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from pydantic_ai import RunContext
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.settings import ModelSettings

from punie_protocol.errors import (
    ContextOverflow,
    PunieError,
    RemoteError,
    Retry,
    TooLarge,
)
from punie_protocol.messages.common import ModelInfo, Priority
from punie_protocol.messages.to_model_client import Finished, TextDelta
from punie_protocol.messages.to_model_host import AnyChatMessage, Generate, Sampling, ToolSchema
from punie_workers.chat import to_chat
from punie_workers.compaction import Compactor
from punie_workers.model_answer import Answer, PunieResponse
from punie_workers.model_client import ModelClient
from punie_workers.prompts import Instructions
from punie_workers.streaming_model import StreamingModel
from punie_workers.summaries import summary_tokens
from punie_workers.totals import ModelTotals

RETRY_DELAYS: Final = (0.1, 0.5, 2.0)
"""Seconds before a request is sent again whose failure says that this can help."""
_AS_PROFILE: Final = Sampling()
_ASIDE: Final = "#summary"
"""Another conversation for the prefix cache: the one in hand is not given up for it."""
MAX_REFUSALS: Final = 16
"""Refusals for length of one step, each answered with less of the conversation."""


class PunieModel(StreamingModel):
    """The loaded model, for one turn of one conversation.

    `request_stream` raises `PunieError`: `RemoteError` as the host said, `LinkClosed` when it
    went away, what `Compactor.fit` raises when the conversation is too long. A failure that may
    pass is tried again a few times as long as nothing was streamed.
    """

    where: Final = "model host"

    def __init__(
        self,
        client: ModelClient,
        info: ModelInfo,
        *,
        client_id: str,
        conversation_id: str,
        instructions: Instructions,
        compactor: Compactor,
    ) -> None:
        super().__init__()
        self.info = info
        self.totals = ModelTotals()
        self._client = client
        self._client_id = client_id
        self._conversation_id = conversation_id
        self._instructions = instructions
        self._compactor = compactor
        compactor.overhead = overhead(instructions)
        compactor.summarize = self._summarize

    @property
    def model_name(self) -> str:
        return self.info.name

    @property
    def system(self) -> str:
        return "punie"

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        answer = await self._fitting(messages)
        try:
            yield PunieResponse(
                model_request_parameters, name=self.info.name, answer=answer, totals=self.totals
            )
        finally:
            answer.cancel()

    async def _fitting(self, messages: list[ModelMessage]) -> Answer:
        """Return an answer that has begun, to as much of the conversation as fits."""
        sent = await self._compactor.fit(messages, self.info)
        for _ in range(MAX_REFUSALS):
            try:
                return await self._patiently(self._request(sent))
            except PunieError as error:
                if not isinstance(error.error, ContextOverflow | TooLarge):
                    raise
                sent = await self._compactor.fit(messages, self.info, overflow=error)
        return await self._patiently(self._request(sent))

    async def _patiently(self, request: Generate) -> Answer:
        for delay in RETRY_DELAYS:
            try:
                return await self._open(request)
            except RemoteError as error:
                if error.error.retry is Retry.NEVER:
                    raise
            with self.totals.queueing():
                await asyncio.sleep(delay)
        return await self._open(request)

    async def _open(self, request: Generate) -> Answer:
        again = msgspec.structs.replace(request, request_id=self._client.next_id())
        return await Answer.open(self._client, again, self.totals)

    async def _summarize(self, messages: list[ModelMessage]) -> str:
        """See `compaction.Summarize`. Not shown to the user, but counted."""
        limit = Sampling(max_tokens=summary_tokens(self.info))
        request = self._generate(messages=to_chat(messages), sampling=limit, suffix=_ASIDE)
        answer = await self._patiently(request)
        text = ""
        try:
            async for event in answer:
                match event:
                    case TextDelta(text=more):
                        text += more
                    case Finished():
                        self.totals.add_aside(event, answer.begun)
                    case _:
                        pass
        finally:
            answer.cancel()
        return text

    def _request(self, messages: Sequence[ModelMessage]) -> Generate:
        told = self._instructions
        return self._generate(
            messages=to_chat(messages, told.system, told.context), tools=told.tools
        )

    def _generate(
        self,
        *,
        messages: list[AnyChatMessage],
        tools: Sequence[ToolSchema] = (),
        sampling: Sampling = _AS_PROFILE,
        suffix: str = "",
    ) -> Generate:
        return Generate(
            request_id=0,
            client_id=self._client_id,
            conversation_id=self._conversation_id + suffix,
            priority=Priority.INTERACTIVE,
            messages=messages,
            tools=list(tools),
            sampling=sampling,
        )


def overhead(instructions: Instructions) -> int:
    """Return the characters of what is sent besides the conversation."""
    tools = (text for tool in instructions.tools for text in msgspec.structs.astuple(tool))
    return len(instructions.system) + len(instructions.context) + sum(map(len, tools))
