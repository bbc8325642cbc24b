"""HTTP to other model servers: one client for a worker process, and what a server has."""

import asyncio
from typing import Final

import httpx2
import msgspec
from pydantic_ai.models import get_user_agent

from punie_protocol.backends import Backend
from punie_protocol.errors import PunieError, TimedOut
from punie_workers.server_errors import no_completion, status_error, typed_error

CONNECT_TIMEOUT: Final = 10.0
LIST_TIMEOUT: Final = 10.0
"""Seconds to say which models there are."""
_MAX_LIST: Final = 1_000_000
_MAX_CONNECTIONS: Final = 100


class _Entry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_Entry]


def open_client() -> httpx2.AsyncClient:
    """Return a client for any number of servers; whoever called it closes it.

    It takes nothing from the environment: no proxy, no ``.netrc``. A redirect is not followed: a
    key goes to the server it is for.
    """
    return httpx2.AsyncClient(
        trust_env=False,
        follow_redirects=False,
        limits=httpx2.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=8),
        headers={"User-Agent": get_user_agent()},
    )


def timeout(backend: Backend) -> httpx2.Timeout:
    """Return how long a request may take: `timeout_s` without a byte."""
    return httpx2.Timeout(backend.timeout_s, connect=CONNECT_TIMEOUT)


async def model_names(client: httpx2.AsyncClient, backend: Backend) -> list[str]:
    """Return the names of the models that the server has. Raises `PunieError`."""
    try:
        async with asyncio.timeout(LIST_TIMEOUT):
            return _names(backend, await _get(client, backend))
    except httpx2.HTTPError as error:
        raise typed_error(error, backend, backend.context_window) from None
    except TimeoutError:
        message = f"{backend.url}/models did not answer within {LIST_TIMEOUT:g} s"
        raise PunieError(TimedOut(message=message, limit_s=LIST_TIMEOUT)) from None


async def _get(client: httpx2.AsyncClient, backend: Backend) -> bytes:
    headers = {"Authorization": f"Bearer {backend.key}"} if backend.key else {}
    url = f"{backend.url}/models"
    body = b""
    async with client.stream("GET", url, headers=headers, timeout=timeout(backend)) as response:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > _MAX_LIST:
                raise no_completion(backend, f"a list of models over {_MAX_LIST} bytes")
        if response.status_code != httpx2.codes.OK:
            raise status_error(response.status_code, body, backend)
    return body


def _names(backend: Backend, body: bytes) -> list[str]:
    try:
        return [entry.id for entry in msgspec.json.decode(body, type=_List).data]
    except msgspec.MsgspecError as error:
        raise no_completion(backend, f"GET {backend.url}/models: {error}") from None
