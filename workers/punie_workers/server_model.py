"""A model on any OpenAI-compatible server, through pydantic-ai's own OpenAI model.

Ours are the instructions, the compaction, the timings and the errors. pydantic-ai's message
preparation is left out as in `model`: what is sent is the conversation, its prefix the same from
turn to turn, for the servers' caches too. Imported when first needed: 0.3 s and 19 MB.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final

import httpx2
import msgspec
from openai import AsyncOpenAI, Omit
from pydantic_ai import RunContext
from pydantic_ai.exceptions import UnexpectedModelBehavior
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIStreamedResponse
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from punie_protocol.backends import Backend
from punie_protocol.errors import (
    ContextOverflow,
    LinkClosed,
    ModelFault,
    ModelUnavailable,
    NotFound,
    Overloaded,
    PunieError,
)
from punie_protocol.messages.common import ModelInfo
from punie_workers.compaction import Compactor
from punie_workers.model import MAX_REFUSALS, overhead
from punie_workers.prompts import Instructions
from punie_workers.server_answer import ERRORS, EXPECTED, PROFILE, ServerStream
from punie_workers.server_client import model_names, timeout
from punie_workers.server_errors import no_model, typed_error
from punie_workers.server_messages import definition, told
from punie_workers.server_step import ServerStep
from punie_workers.streaming_model import StreamingModel
from punie_workers.summaries import summary_tokens
from punie_workers.totals import ModelTotals

_log = logging.getLogger(__name__)

DELAYS: Final = (0.5, 1.0, 2.0, 4.0)
"""Seconds before a request is sent again: to a server that takes no more right now, or that had
answered in this turn and is not there."""


class ServerModel(StreamingModel, OpenAIChatModel):
    """One model of a server, for one turn. Owns nothing: `client` is the worker's.

    `request_stream` raises `PunieError`: `LinkClosed` when an answer breaks off. Cancelling it
    closes the connection, which tells the server to stop.
    """

    where: Final = "model server"

    def __init__(
        self,
        client: httpx2.AsyncClient,
        info: ModelInfo,
        backend: Backend,
        *,
        instructions: Instructions,
        compactor: Compactor,
    ) -> None:
        provider = OpenAICompatibleProvider("server", openai_client=_openai(client, backend))
        super().__init__(info.name, provider=provider, profile=PROFILE)
        self.info = info
        self.totals = ModelTotals()
        self._http = client
        self._backend = msgspec.structs.replace(backend, name=info.name)
        self._instructions = instructions
        self._compactor = compactor
        compactor.summarize = self._summarize
        compactor.overhead = overhead(instructions)
        compactor.is_checked = False
        self._tools = [definition(tool) for tool in instructions.tools]
        self._headers: dict[str, Any] = {} if backend.key else {"Authorization": Omit()}
        self._met = False

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        parameters = replace(model_request_parameters, function_tools=self._tools, output_tools=[])
        async with AsyncExitStack() as stack:
            yield await self._fitting(stack, messages, parameters)

    async def _fitting(
        self,
        stack: AsyncExitStack,
        messages: list[ModelMessage],
        parameters: ModelRequestParameters,
    ) -> StreamedResponse:
        """Return an answer that has begun, to as much of the conversation as fits."""
        sent = await self._compactor.fit(messages, self.info)
        for _ in range(MAX_REFUSALS):
            try:
                return await self._patiently(stack, sent, parameters)
            except PunieError as error:
                if not isinstance(error.error, ContextOverflow):
                    raise
                if not self._learn(error.error.limit):
                    sent = await self._compactor.fit(messages, self.info, overflow=error)
        return await self._patiently(stack, sent, parameters)

    def _learn(self, window: int) -> bool:
        """Take the window that the server told; whether that leaves the answer less room, so that
        the same conversation may fit."""
        if window >= self.info.context_window:
            return False
        before = self.info.max_output_tokens
        output = min(before, max(1, window // 4))
        self.info = msgspec.structs.replace(
            self.info, context_window=window, max_output_tokens=output
        )
        return output < before

    async def _patiently(
        self,
        stack: AsyncExitStack,
        sent: list[ModelMessage],
        parameters: ModelRequestParameters,
    ) -> StreamedResponse:
        for delay in DELAYS:
            try:
                return await self._begin(stack, sent, parameters)
            except PunieError as error:
                if not self._is_passing(error):
                    raise
            with self.totals.queueing():
                await asyncio.sleep(delay)
        return await self._begin(stack, sent, parameters)

    def _is_passing(self, error: PunieError) -> bool:
        match error.error:
            case Overloaded():
                return True
            case ModelUnavailable():
                return self._met
            case _:
                return False

    async def _begin(
        self,
        stack: AsyncExitStack,
        sent: list[ModelMessage],
        parameters: ModelRequestParameters,
    ) -> StreamedResponse:
        return await self._open(
            stack, told(sent, self._instructions), parameters, self.info.max_output_tokens
        )

    async def _summarize(self, messages: list[ModelMessage]) -> str:
        """Return the answer to a conversation of its own, without tools; nobody sees it come."""
        async with AsyncExitStack() as stack:
            stream = await self._open(
                stack, messages, ModelRequestParameters(), summary_tokens(self.info), aside=True
            )
            async for _ in stream:
                pass
            return stream.get().text or ""

    async def _open(
        self,
        stack: AsyncExitStack,
        messages: list[ModelMessage],
        parameters: ModelRequestParameters,
        most: int,
        *,
        aside: bool = False,
    ) -> StreamedResponse:
        """Return an answer of `most` tokens that has begun; `stack` closes it."""
        step = ServerStep(self.totals, aside=aside)
        stack.callback(step.fail, RequestUsage())
        settings = ModelSettings(max_tokens=most, extra_headers=self._headers)
        request = super().request_stream(messages, settings, parameters)
        try:
            stream = await stack.enter_async_context(request)
        except ERRORS as error:
            step.fail(RequestUsage())
            raise await self._explained(error) from error
        assert isinstance(stream, ServerStream)
        stream.follow(step, self.info.name, self._typed)
        self._met = True
        return stream

    def _typed(self, error: Exception) -> PunieError:
        if not isinstance(error, EXPECTED):
            _log.warning("an answer of %s cannot be used", self._backend.url, exc_info=error)
        return typed_error(error, self._backend, self.info.context_window)

    async def _explained(self, error: Exception) -> PunieError:
        """Return what `error` means; for two kinds the server's list of models says more."""
        problem = self._typed(error)
        if isinstance(error, UnexpectedModelBehavior):
            return await self._empty(problem)
        if isinstance(problem.error, NotFound):
            with contextlib.suppress(PunieError):  # then the first error has to do
                names = await model_names(self._http, self._backend)
                return problem if self.info.name in names else no_model(self._backend, names)
        return problem

    async def _empty(self, problem: PunieError) -> PunieError:
        """An answer without anything in it: something else listens there, or the server of models
        went away before the first word."""
        try:
            await model_names(self._http, self._backend)
        except PunieError as error:
            if isinstance(error.error, ModelFault | NotFound):
                return problem
        return LinkClosed(f"{self._backend.url}: the answer ended before it began")

    @property
    def _streamed_response_cls(self) -> type[OpenAIStreamedResponse]:
        return ServerStream


def _openai(client: httpx2.AsyncClient, backend: Backend) -> AsyncOpenAI:
    return AsyncOpenAI(
        base_url=backend.url,
        api_key=backend.key or "none",
        http_client=client,
        max_retries=0,
        timeout=timeout(backend),
    )
