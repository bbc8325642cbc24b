"""What the official client makes of the HTTP door's refusals: each has its exception."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from punie_model_host.door import app, bodies
from punie_model_host.door.door import Door
from punie_protocol.errors import (
    ContextOverflow,
    Internal,
    InvalidRequest,
    ModelFault,
    ModelUnavailable,
    Overloaded,
    WireError,
)
from punie_protocol.messages.to_model_client import Failed, TextDelta, ToModelClient
from tests.support.http_client import DEADLINE
from tests.support.scripted_desk import ScriptedDesk, text

KEY = "k" * 43
HELLO: list[Any] = [{"role": "user", "content": "hi"}]

type Ask = Callable[[openai.AsyncOpenAI], Awaitable[object]]


def chat(**more: Any) -> Ask:
    fields: dict[str, Any] = {"model": "tiny", "messages": HELLO} | more
    return lambda client: client.chat.completions.create(**fields)


def complete(**more: Any) -> Ask:
    fields: dict[str, Any] = {"model": "tiny", "prompt": "Once"} | more
    return lambda client: client.completions.create(**fields)


RETRIEVE: Ask = lambda client: client.models.retrieve("x")  # noqa: E731
EMBED: Ask = lambda client: client.embeddings.create(model="x", input="x")  # noqa: E731
JSON = {"type": "json_object"}
ORIGIN = {"origin": "https://a.example"}


def error_of(
    ask: Ask,
    answer: list[ToModelClient],
    *,
    loaded: bool = True,
    retries: int = 0,
    desk: ScriptedDesk | None = None,
    **client: Any,
) -> openai.APIError:
    """Return what is raised."""

    async def main() -> openai.APIError:
        behind = desk or ScriptedDesk(lambda _: answer)
        if not loaded:
            behind.model = None
        door = Door(behind)
        port = await door.open(0, KEY)
        settings: dict[str, Any] = {
            "api_key": KEY,
            "max_retries": retries,
            "timeout": DEADLINE,
        } | client
        try:
            async with openai.AsyncOpenAI(
                base_url=f"http://127.0.0.1:{port}/v1", **settings
            ) as one:
                with pytest.raises(openai.APIError) as caught:
                    await ask(one)
                return caught.value
        finally:
            await door.close()

    return asyncio.run(main())


def fails(error: WireError) -> list[ToModelClient]:
    return [Failed(request_id=1, error=error)]


@pytest.mark.parametrize("ask", [chat(), chat(stream=True), complete(), complete(stream=True)])
@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InvalidRequest(message="top_p is 7"), openai.BadRequestError, None),
        (
            ContextOverflow(message="the prompt has 9 tokens", tokens=9, limit=3),
            openai.BadRequestError,
            "context_length_exceeded",
        ),
        (Overloaded(message="too much"), openai.RateLimitError, "rate_limit_exceeded"),
        (Internal(message="broken"), openai.InternalServerError, "internal"),
        (ModelFault(message="nonsense"), openai.InternalServerError, "model_fault"),
        (ModelUnavailable(message="loading"), openai.InternalServerError, "model_unavailable"),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_what_the_engine_says(
    ask: Ask, error: WireError, kind: type[openai.APIStatusError], code: str | None
):
    found = error_of(ask, fails(error))
    assert type(found) is kind
    assert found.code == code
    assert error.message in found.message


@pytest.mark.parametrize(
    ("ask", "kind", "code", "param"),
    [
        (chat(model="gpt-9"), openai.NotFoundError, "model_not_found", "model"),
        (complete(model="gpt-9"), openai.NotFoundError, "model_not_found", "model"),
        (RETRIEVE, openai.NotFoundError, "model_not_found", "model"),
        (EMBED, openai.NotFoundError, None, None),
        (chat(temperature="hot"), openai.BadRequestError, None, "temperature"),
        (chat(extra_body={"messages": 3}), openai.BadRequestError, None, "messages"),
        (chat(response_format=JSON), openai.BadRequestError, None, "response_format"),
        (complete(suffix="x"), openai.BadRequestError, None, "suffix"),
        (complete(echo=True), openai.BadRequestError, None, "echo"),
        (complete(n=99), openai.BadRequestError, None, "n"),
        (chat(extra_headers={"content-type": "text/plain"}), openai.APIStatusError, None, None),
    ],
)
def test_what_the_door_says(ask: Ask, kind: type[openai.APIStatusError], code: Any, param: Any):
    found = error_of(ask, text("Hello"))
    assert isinstance(found, kind)
    assert (found.code, found.param, found.type) == (code, param, "invalid_request_error")


@pytest.mark.parametrize(
    ("client", "kind", "code"),
    [
        ({"api_key": "wrong"}, openai.AuthenticationError, "invalid_api_key"),
        ({"default_headers": ORIGIN}, openai.PermissionDeniedError, "forbidden"),
        ({"default_headers": {"host": "a.example"}}, openai.PermissionDeniedError, "forbidden"),
    ],
    ids=["key", "origin", "host"],
)
def test_who_does_not_come_in(client: dict[str, Any], kind: type[openai.APIError], code: str):
    found = error_of(chat(), text("Hello"), **client)
    assert type(found) is kind
    assert found.code == code


def test_no_model_is_loaded():
    found = error_of(chat(), [], loaded=False)
    assert isinstance(found, openai.InternalServerError)
    assert (found.status_code, found.code) == (503, "model_unavailable")


def test_a_body_that_is_too_large(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "Bodies", lambda: bodies.Bodies(limit=1000))
    found = error_of(chat(user="u" * 2000), text("Hello"))
    assert isinstance(found, openai.APIStatusError)
    assert (found.status_code, found.code) == (413, "request_too_large")


def test_a_full_engine_is_asked_again_as_it_says(monkeypatch: pytest.MonkeyPatch):
    desk = ScriptedDesk(lambda _: fails(Overloaded(message="too much")))
    waits: list[float] = []
    calculate = openai.AsyncOpenAI._calculate_retry_timeout

    def note(*args: Any, **more: Any) -> float:
        waits.append(calculate(*args, **more))
        return 0.0

    monkeypatch.setattr(openai.AsyncOpenAI, "_calculate_retry_timeout", note)
    found = error_of(chat(), [], retries=2, desk=desk)
    assert isinstance(found, openai.RateLimitError)
    assert len(desk.asked) == 3
    assert waits == [1.0, 1.0], "what Retry-After says"


@pytest.mark.parametrize("ask", [chat(stream=True), complete(stream=True)])
def test_a_stream_that_breaks(ask: Ask):
    async def listen(client: openai.AsyncOpenAI) -> None:
        stream: Any = await ask(client)
        assert (await anext(stream)).choices
        async for _ in stream:
            pass

    broken = [TextDelta(request_id=1, text="Hel"), *fails(Internal(message="the engine broke"))]
    found = error_of(listen, broken)
    assert type(found) is openai.APIError
    assert (found.message, found.code) == ("the engine broke", "internal")
