"""The HTTP door of a real model host: real models, the official client, and worse ones."""

import asyncio
import json
import random
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionFunctionToolParam, ChatCompletionMessageParam

from tests.support.http_client import HttpConnection, request
from tests.support.served_host import DEADLINE, KEY, ServedHost, served
from tests.support.tiny_model import make_tiny_model

CHAT = "/v1/chat/completions"
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hi"}]
LOOK = "\n<function=look>\n<parameter=path>\na.py\n</parameter>\n</function>\n"
TOOL: ChatCompletionFunctionToolParam = {
    "type": "function",
    "function": {
        "name": "look",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    },
}

type Test = Callable[[ServedHost], Awaitable[None]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models: two that talk without end, one that answers, one that calls a tool."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_model(folder / "endless", says=["tick", " tock"], loop=True, context_window=1_000_000)
    (folder / "endless" / "profile.toml").write_text("[sampling]\nmax_tokens = 900000\n")
    words = ["x" * 2000, "y" * 2000]
    make_tiny_model(folder / "wordy", says=words, loop=True, context_window=1_000_000)
    (folder / "wordy" / "profile.toml").write_text("[sampling]\nmax_tokens = 900000\n")
    make_tiny_model(folder / "brief", says=["Hello", " there", "."])
    make_tiny_model(folder / "caller", says=["<tool_call>", LOOK, "</tool_call>"])
    return folder


def with_host(models: Path, folder: Path, model: str, test: Test) -> None:
    async def main() -> None:
        async with served(models, folder, model) as host, asyncio.timeout(DEADLINE):
            await test(host)

    asyncio.run(main())


def chat(host: ServedHost, **fields: object) -> bytes:
    return request(host.port, KEY, "POST", CHAT, {"messages": HELLO, **fields})


# the official client


def test_the_official_client_gets_answers(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            assert [model.id async for model in client.models.list()] == ["brief"]
            whole = await client.chat.completions.create(model="brief", messages=HELLO)
            assert whole.choices[0].message.content == "Hello there."
            assert whole.choices[0].finish_reason == "stop"
            assert whole.usage is not None
            assert whole.usage.completion_tokens >= 3
            again = await client.chat.completions.create(
                model="default", messages=HELLO, max_tokens=2, temperature=0, seed=1, user="ada"
            )
            assert again.choices[0].message.content == "Hello there"
            assert again.choices[0].finish_reason == "length"

    with_host(models, tmp_path, "brief", test)


def test_the_official_client_streams(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            stream = await client.chat.completions.create(
                model="brief",
                messages=HELLO,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            said = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
            assert "".join(said) == "Hello there."
            assert chunks[-1].usage is not None
            details = chunks[-1].usage.prompt_tokens_details
            assert details is not None
            assert details.cached_tokens is not None
            assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop"

    with_host(models, tmp_path, "brief", test)


def test_the_official_client_gets_tool_calls(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            answer = await client.chat.completions.create(
                model="caller",
                messages=HELLO,
                tools=[TOOL],
            )
            choice = answer.choices[0]
            assert choice.finish_reason == "tool_calls"
            assert choice.message.tool_calls is not None
            [call] = choice.message.tool_calls
            assert call.type == "function"
            assert call.function.name == "look"
            assert json.loads(call.function.arguments) == {"path": "a.py"}
            function = call.function
            more: list[ChatCompletionMessageParam] = [
                *HELLO,
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": call.id,
                            "type": "function",
                            "function": {"name": function.name, "arguments": function.arguments},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": call.id, "content": "x = 1"},
            ]
            again = await client.chat.completions.create(model="caller", messages=more)
            assert again.choices[0].finish_reason == "tool_calls"

    with_host(models, tmp_path, "caller", test)


def test_the_official_client_s_errors(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with host.client() as client:
            create = client.chat.completions.create
            with pytest.raises(openai.NotFoundError, match="brief"):
                await create(model="gpt-9", messages=HELLO)
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model="brief", messages=HELLO, temperature=-1)
            assert caught.value.param == "temperature"
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model="brief", messages=HELLO, logit_bias={"999999": 1}, stream=True)
            assert caught.value.param == "logit_bias"
            long: list[ChatCompletionMessageParam] = [{"role": "user", "content": "x" * 5000}]
            with pytest.raises(openai.BadRequestError) as caught:
                await create(model="brief", messages=long)
            assert caught.value.code == "context_length_exceeded"
        async with host.client("wrong") as client:
            with pytest.raises(openai.AuthenticationError):
                await client.models.list()

    with_host(models, tmp_path, "brief", test)


# one engine, many clients


def test_streams_run_side_by_side(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async def listen(user: str, stop: asyncio.Barrier) -> None:
            async with HttpConnection.to(host.port) as connection:
                await connection.send(chat(host, stream=True, user=user))
                assert (await connection.head())[0] == 200
                chunks = connection.chunks()
                for _ in range(5):
                    assert await anext(chunks)
                async with asyncio.timeout(DEADLINE):
                    await stop.wait()

        barrier = asyncio.Barrier(6)
        await asyncio.gather(*(listen(f"user {n}", barrier) for n in range(6)))
        await host.until_busy(0)

    with_host(models, tmp_path, "endless", test)


@pytest.mark.parametrize("streamed", [True, False])
def test_who_leaves_is_cancelled_running_or_waiting(models: Path, tmp_path: Path, streamed: bool):
    async def test(host: ServedHost) -> None:
        connections = [await asyncio.open_connection("127.0.0.1", host.port) for _ in range(40)]
        for _, writer in connections:
            writer.write(chat(host, stream=streamed))
        await host.until_busy(40)
        for _, writer in connections:
            writer.transport.abort()
        await host.until_busy(0)
        async with host.client() as client:
            answer = await client.chat.completions.create(
                model="endless", messages=HELLO, max_tokens=3
            )
            assert answer.choices[0].message.content == "tick tocktick"

    with_host(models, tmp_path, "endless", test)


def test_a_reader_that_does_not_read_is_cancelled(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with sock:
            sock.connect(("127.0.0.1", host.port))
            sock.sendall(chat(host, stream=True))
            await host.until_busy(1)
            await host.until_busy(0)

    with_host(models, tmp_path, "wordy", test)


def test_closing_the_door_ends_its_streams_alone(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with HttpConnection.to(host.port) as connection:
            await connection.send(chat(host, stream=True))
            await host.until_busy(1)
            closed = await host.close()
            assert (closed.port, closed.error) == (None, None)
            await host.until_busy(0)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", host.port)
        port = host.port
        assert (await host.open(port)).port == port

    with_host(models, tmp_path, "endless", test)


def test_a_stop_ends_streams_with_a_word(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with HttpConnection.to(host.port) as connection:
            await connection.send(chat(host, stream=True))
            assert (await connection.head())[0] == 200
            stopped = asyncio.create_task(host.stop())
            rest = b"".join([chunk async for chunk in connection.chunks()])
            assert b'data: {"error":{' in rest
            assert not rest.endswith(b"[DONE]\n\n")
            assert await stopped == 0

    with_host(models, tmp_path, "endless", test)


# the wall


def test_bad_requests_leave_the_next_one_alone(models: Path, tmp_path: Path):
    values = [None, True, -1, 0, 1.5, 10**30, "", "x", "\ud800", [], [1], {}, {"1": 2}, "y" * 999]
    fields = ["temperature", "top_p", "top_k", "stop", "seed", "max_tokens", "logit_bias", "n"]
    fields += ["messages", "tools", "stream", "stream_options", "xtc_probability", "user", "model"]
    fields += ["prompt", "tool_choice", "parallel_tool_calls", "response_format", "suffix"]
    pick = random.Random(5)

    async def test(host: ServedHost) -> None:
        async with HttpConnection.to(host.port) as connection:
            for _ in range(150):
                body: dict[str, object] = {"messages": HELLO, "prompt": "hi", "max_tokens": 3}
                body |= {pick.choice(fields): pick.choice(values) for _ in range(2)}
                path = pick.choice([CHAT, "/v1/completions"])
                await connection.send(request(host.port, KEY, "POST", path, body))
                response = await connection.response()
                assert response.status in (200, 400, 404), (body, response)
                if response.status != 200:
                    assert response.error["message"]
            await connection.send(chat(host))
            answer = (await connection.response()).json
            assert answer["choices"][0]["message"]["content"] == "Hello there."

    with_host(models, tmp_path, "brief", test)


def test_health_and_metrics_of_an_engine(models: Path, tmp_path: Path):
    async def test(host: ServedHost) -> None:
        async with HttpConnection.to(host.port) as connection:
            await connection.send(request(host.port, KEY, "GET", "/health"))
            response = await connection.response()
            assert (response.status, response.json["model"]) == (200, "brief")
            await connection.send(request(host.port, KEY, "GET", "/metrics"))
            assert b"punie_engine_" in (await connection.response()).body

    with_host(models, tmp_path, "brief", test)
