"""The models of a worker process: the one in the model host, and those of other servers."""

from typing import TYPE_CHECKING

import httpx2

from punie_protocol.backends import Backend
from punie_protocol.messages.common import ModelInfo, PromptStyle
from punie_workers.compaction import Compactor
from punie_workers.model import PunieModel
from punie_workers.model_client import ModelClient
from punie_workers.prompts import Instructions

if TYPE_CHECKING:
    from punie_workers.server_model import ServerModel

type TurnModel = PunieModel | ServerModel
"""A model for one turn."""


class Models:
    """Owns `client`, the link to the model host, and the HTTP client for servers, until `close`."""

    def __init__(self, client: ModelClient) -> None:
        self.client = client
        self._http: httpx2.AsyncClient | None = None

    async def info(self, backend: Backend | None) -> ModelInfo:
        """Return the model that answers now: the model host's, or that of a server. Raises
        `PunieError` when there is none. A server is asked only when `backend` names no model."""
        if backend is None:
            return await self.client.model()
        return ModelInfo(
            name=backend.name or await self._first_name(backend),
            folder="",
            context_window=backend.context_window,
            prompt_style=PromptStyle.TOOLS,
            tool_call_format="openai",
            max_output_tokens=min(backend.max_output_tokens, max(1, backend.context_window // 4)),
        )

    def open(
        self,
        info: ModelInfo,
        backend: Backend | None,
        *,
        client_id: str,
        conversation_id: str,
        instructions: Instructions,
        compactor: Compactor,
    ) -> TurnModel:
        """Return the model `info` for one turn; nothing is sent yet."""
        if backend is None:
            return PunieModel(
                self.client,
                info,
                client_id=client_id,
                conversation_id=conversation_id,
                instructions=instructions,
                compactor=compactor,
            )
        from punie_workers.server_model import ServerModel  # 0.3 s and 19 MB

        return ServerModel(
            self._open_http(), info, backend, instructions=instructions, compactor=compactor
        )

    async def close(self) -> None:
        """Close the links; requests under way end with `LinkClosed`."""
        self.client.close()
        if self._http is not None:
            http, self._http = self._http, None
            await http.aclose()

    async def _first_name(self, backend: Backend) -> str:
        from punie_workers.server_client import model_names
        from punie_workers.server_errors import no_model

        names = await model_names(self._open_http(), backend)
        if not names:
            raise no_model(backend, names)
        return names[0]

    def _open_http(self) -> httpx2.AsyncClient:
        if self._http is None:
            from punie_workers.server_client import open_client

            self._http = open_client()
        return self._http
