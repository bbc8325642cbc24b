"""The HTTP door over real sockets, with a desk that a test speaks for."""

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from punie_model_host.door import app, bodies, limits, mailbox, server
from punie_model_host.door.door import Door
from punie_protocol.errors import Cancelled, Internal, Overloaded, PunieError
from punie_protocol.messages.to_model_client import (
    Failed,
    PrefillProgress,
    StopReason,
    TextDelta,
    ThinkingDelta,
    ToModelClient,
    ToolCall,
)
from punie_protocol.messages.to_model_host import CloseDoor, Generate, OpenDoor
from tests.support.http_client import DEADLINE, HttpConnection, Response, request
from tests.support.scripted_desk import ScriptedDesk, finished, text

KEY = "k" * 43
HELLO = {"messages": [{"role": "user", "content": "hi"}]}
CHAT = "/v1/chat/completions"

type Script = Callable[[Generate], list[ToModelClient]]


class Rig:
    """An open door, and the desk behind it."""

    def __init__(self, desk: ScriptedDesk, door: Door, port: int) -> None:
        self.desk, self.door, self.port = desk, door, port

    async def ask(
        self, method: str, path: str, body: Any = None, **headers: str | None
    ) -> Response:
        """Make one request on a connection of its own."""
        async with HttpConnection.to(self.port) as connection:
            await connection.send(self.request(method, path, body, **headers))
            return await connection.response()

    async def chat(self, **fields: Any) -> Response:
        return await self.ask("POST", CHAT, HELLO | fields)

    def request(self, method: str, path: str, body: Any = None, **headers: str | None) -> bytes:
        return request(self.port, KEY, method, path, body, **headers)

    async def until(self, holds: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not holds():
            assert time.monotonic() < deadline, "it did not happen in time"
            await asyncio.sleep(0.005)


def with_door(test: Callable[[Rig], Awaitable[None]], script: Script = lambda _: []) -> None:
    """Run a test with an open door; in the end nobody is at the desk."""

    async def main() -> None:
        desk = ScriptedDesk(script)
        door = Door(desk)
        port = await door.open(0, KEY)
        rig = Rig(desk, door, port)
        try:
            await test(rig)
        finally:
            await door.close()
        assert not desk.inside

    asyncio.run(main())


def failed(error: Any) -> list[ToModelClient]:
    return [Failed(request_id=1, error=error)]


# answers


def test_a_stream():
    async def test(rig: Rig) -> None:
        response = await rig.chat(stream=True, stream_options={"include_usage": True}, model="tiny")
        assert response.status == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert not [name for name in response.headers if name.startswith("access-control")]
        *chunks, usage, done = response.events
        assert done == "[DONE]"
        assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 4}
        assert {chunk["id"] for chunk in [*chunks, usage]} == {usage["id"]}
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        said = [{"content": "Hello"}, {"content": " there"}]
        assert deltas == [{"role": "assistant", "content": ""}, *said, {}]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["timings"] == {"queue": 1.0, "prefill": 2.0, "decode": 3.0}
        assert rig.desk.asked[0].client_id == "http"

    with_door(test, lambda _: text("Hello", " there"))


def test_without_being_asked_a_stream_has_no_usage():
    async def test(rig: Rig) -> None:
        events = (await rig.chat(stream=True)).events
        assert events[-1] == "[DONE]"
        assert all("usage" not in event for event in events[:-1])

    with_door(test, lambda _: text("Hello"))


def test_a_whole_answer():
    async def test(rig: Rig) -> None:
        response = await rig.chat()
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        answer = response.json
        assert answer["object"] == "chat.completion"
        assert answer["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello there"},
                "finish_reason": "length",
                "logprobs": None,
            }
        ]
        assert answer["usage"]["total_tokens"] == 10
        assert answer["model"] == "tiny"

    pieces: list[ToModelClient] = [TextDelta(request_id=1, text=one) for one in ("Hello", " there")]
    with_door(test, lambda _: [*pieces, finished(StopReason.LENGTH)])


CALLS: list[ToModelClient] = [
    ThinkingDelta(request_id=1, text="I look"),
    ToolCall(request_id=1, call_id="c1", name="look", arguments='{"a":1}'),
    ToolCall(request_id=1, call_id="c2", name="look", arguments="{}"),
    finished(StopReason.TOOL_CALLS),
]


def test_tool_calls_and_thinking_whole():
    async def test(rig: Rig) -> None:
        choice = (await rig.chat()).json["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        message = choice["message"]
        assert (message["content"], message["reasoning_content"]) == (None, "I look")
        assert [call["id"] for call in message["tool_calls"]] == ["c1", "c2"]
        assert message["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a":1}'}

    with_door(test, lambda _: CALLS)


def test_tool_calls_and_thinking_streamed():
    async def test(rig: Rig) -> None:
        *chunks, _done = (await rig.chat(stream=True)).events
        deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
        assert deltas[1] == {"reasoning_content": "I look"}
        calls = [call for delta in deltas for call in delta.get("tool_calls", [])]
        assert [(call["index"], call["id"]) for call in calls] == [(0, "c1"), (1, "c2")]
        assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"

    with_door(test, lambda _: CALLS)


def test_requests_share_a_connection():
    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            for _ in range(3):
                await connection.send(rig.request("POST", CHAT, HELLO | {"stream": True}))
                assert (await connection.response()).events[-1] == "[DONE]"
                await connection.send(rig.request("POST", CHAT, HELLO))
                assert (await connection.response()).status == 200
        assert rig.desk.left == 6

    with_door(test, lambda _: text("Hello"))


TEXT = "/v1/completions"


def test_a_completion_whole_and_streamed():
    async def test(rig: Rig) -> None:
        whole = (await rig.ask("POST", TEXT, {"prompt": "Once"})).json
        assert whole["object"] == "text_completion"
        assert whole["id"].startswith("cmpl-")
        assert whole["system_fingerprint"].startswith("fp_")
        assert whole["choices"] == [
            {"text": "Hello there", "index": 0, "finish_reason": "stop", "logprobs": None}
        ]
        assert whole["usage"]["total_tokens"] == 10
        *chunks, done = (await rig.ask("POST", TEXT, {"prompt": "Once", "stream": True})).events
        assert done == "[DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello there"
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]
        assert all("usage" not in chunk for chunk in chunks)
        assert [one.prompt for one in rig.desk.asked] == ["Once", "Once"]

    with_door(test, lambda _: text("Hello", " there"))


def numbered(request: Generate) -> list[ToModelClient]:
    """Answer with the choice's number."""
    id = request.request_id
    return [TextDelta(request_id=id, text=f"answer {id}"), finished(request_id=id)]


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_several_choices(path: str):
    async def test(rig: Rig) -> None:
        body = {"n": 3, **({"prompt": "Once"} if path == TEXT else HELLO)}
        whole = (await rig.ask("POST", path, body)).json
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        usage = whole["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (7, 9)
        streamed = {"stream": True, "stream_options": {"include_usage": True}}
        *chunks, last, done = (await rig.ask("POST", path, body | streamed)).events
        assert (last["choices"], last["usage"], done) == ([], usage, "[DONE]")
        ends = [one for chunk in chunks for one in chunk["choices"] if one["finish_reason"]]
        assert [(one["index"], one["finish_reason"]) for one in ends] == [
            (0, "stop"),
            (1, "stop"),
            (2, "stop"),
        ]

    with_door(test, numbered)


@pytest.mark.parametrize("streamed", [True, False])
def test_when_one_choice_fails_all_do(streamed: bool):
    async def test(rig: Rig) -> None:
        response = await rig.chat(n=3, stream=streamed)
        if streamed:
            *_, error = response.events
            assert [event for event in response.events if "error" in event] == [error]
        else:
            error = response.json
        assert error["error"]["message"] == "the engine broke"
        assert rig.desk.left == 1

    def script(request: Generate) -> list[ToModelClient]:
        broken = Failed(request_id=request.request_id, error=Internal(message="the engine broke"))
        return numbered(request) if request.request_id == 1 else [broken]

    with_door(test, script)


# failures


@pytest.mark.parametrize("streamed", [True, False])
def test_a_request_that_fails_at_once_gets_a_status(streamed: bool):
    async def test(rig: Rig) -> None:
        response = await rig.chat(stream=streamed)
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        assert response.headers["content-type"] == "application/json"
        assert (response.error["type"], response.error["code"]) == (
            "rate_limit_error",
            "rate_limit_exceeded",
        )
        assert rig.desk.left == 1

    with_door(test, lambda _: failed(Overloaded(message="too much")))


def test_a_stream_that_fails_later_says_so_in_an_event():
    async def test(rig: Rig) -> None:
        *chunks, error = (await rig.chat(stream=True)).events
        assert chunks[1]["choices"][0]["delta"] == {"content": "Hel"}
        assert error["error"]["message"] == "the engine broke"

    broken = failed(Internal(message="the engine broke"))
    with_door(test, lambda _: [TextDelta(request_id=1, text="Hel"), *broken])


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_is_a_cancel(streamed: bool, path: str):
    body = {"stream": streamed, "n": 2, **({"prompt": "Once"} if path == TEXT else HELLO)}

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(rig.request("POST", path, body))
            await rig.until(lambda: len(rig.desk.asked) == 2)
            rig.desk.say(TextDelta(request_id=2, text="Hel"))
        await rig.until(lambda: rig.desk.left == 1)

    with_door(test)


def test_a_reader_that_is_too_slow_is_cancelled_and_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "Mailbox", lambda over: mailbox.Mailbox(over, limit=50_000))

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port, limit=1024) as connection:
            await connection.send(rig.request("POST", CHAT, HELLO | {"stream": True}))
            await rig.until(lambda: rig.desk.inside)
            pieces = 0
            while rig.desk.inside and rig.desk.say(TextDelta(request_id=1, text="x" * 20_000)):
                pieces += 1
                await asyncio.sleep(0)
            assert pieces * 20_000 > 50_000
            await rig.until(lambda: rig.desk.left == 1)
            response = await connection.response()
            *_, error = response.events
            assert error["error"]["code"] == "rate_limit_exceeded"
            assert len(response.body) > (pieces - 1) * 20_000, "what was taken in time arrives"

    with_door(test)


def test_a_reader_that_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "PULSE", 0.02)
    monkeypatch.setattr(app, "Mailbox", lambda over: mailbox.Mailbox(over, limit=50_000))

    piece = TextDelta(request_id=1, text="x" * 20_000)

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port, limit=1024) as connection:
            await connection.send(rig.request("POST", CHAT, HELLO | {"stream": True}))
            await rig.until(lambda: rig.desk.inside)
            await rig.until(lambda: not rig.desk.inside or not rig.desk.say(piece))
            await connection.until_dropped()

    with_door(test)


def test_signs_of_life_while_a_prompt_is_read(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "PULSE", 0.02)

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(rig.request("POST", CHAT, HELLO | {"stream": True}))
            assert (await connection.head())[0] == 200
            chunks = connection.chunks()
            assert await anext(chunks) == b": waiting\n\n"
            rig.desk.say(PrefillProgress(request_id=1, done=512, total=2000))
            while (sign := await anext(chunks)) == b": waiting\n\n":
                pass
            assert sign == b": prefill 512/2000\n\n"
            rig.desk.say(*failed(Cancelled(message="it ends")))
            rest = b"".join([chunk async for chunk in chunks])
            assert b'"error":{"message":"it ends"' in rest

    with_door(test)


# what else it serves


def test_the_model():
    async def test(rig: Rig) -> None:
        listed = (await rig.ask("GET", "/v1/models")).json
        assert listed["object"] == "list"
        assert [model["id"] for model in listed["data"]] == ["tiny"]
        assert (await rig.ask("GET", "/v1/models/tiny")).json == listed["data"][0]
        other = await rig.ask("GET", "/v1/models/gpt-9")
        assert (other.status, other.error["code"]) == (404, "model_not_found")
        other = await rig.chat(model="gpt-9")
        assert (other.status, other.error["param"]) == (404, "model")
        rig.desk.model = None
        assert (await rig.ask("GET", "/v1/models")).json["data"] == []
        nothing = await rig.chat()
        assert (nothing.status, nothing.error["code"]) == (503, "model_unavailable")
        assert not rig.desk.asked

    with_door(test)


def test_health_and_metrics():
    async def test(rig: Rig) -> None:
        health = await rig.ask("GET", "/health")
        assert (health.status, health.json["status"]) == (200, "ok")
        rig.desk.quiet_s = limits.STALLED + 1
        health = await rig.ask("GET", "/health")
        assert (health.status, health.json["status"]) == (503, "stalled")
        metrics = await rig.ask("GET", "/metrics")
        assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert b'punie_engine_model_info{model="tiny"} 1.0' in metrics.body

    with_door(test)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/nothing", 404),
        ("GET", CHAT, 405),
        ("GET", "/v1/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/%2e%2e/%00", 404),
    ],
)
def test_everything_else_is_not_there(method: str, path: str, status: int):
    async def test(rig: Rig) -> None:
        response = await rig.ask(method, path)
        assert response.status == status
        assert response.error["type"] == "invalid_request_error"
        assert set(response.error) == {"message", "type", "param", "code"}
        assert ("allow" in response.headers) is (status == 405)

    with_door(test)


# who does not come in


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"authorization": None}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"host": "evil.example"}, 403),
        ({"origin": "https://evil.example"}, 403),
        ({"content_type": "text/plain"}, 415),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/nothing"])
def test_strangers_are_refused_and_their_connection_ends(
    headers: dict[str, str | None], status: int, path: str
):
    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(rig.request("POST", path, HELLO, **headers))
            response = await connection.response()
            assert response.status == (404 if status == 415 and path != CHAT else status)
            assert set(response.error) == {"message", "type", "param", "code"}
            assert not [name for name in response.headers if name.startswith("access-control")]
            assert response.status == 404 or await connection.is_closed()
        assert not rig.desk.asked

    with_door(test)


@pytest.mark.parametrize("path", [CHAT, "/health", "/metrics", "/v1/models"])
def test_a_browser_asks_in_vain(path: str):
    async def test(rig: Rig) -> None:
        preflight = await rig.ask(
            "OPTIONS",
            path,
            authorization=None,
            origin="https://evil.example",
            access_control_request_method="POST",
            access_control_request_headers="authorization",
        )
        assert preflight.status == 403
        assert not [name for name in preflight.headers if name.startswith("access-control")]
        assert (await rig.ask("GET", path, authorization=None)).status == 401

    with_door(test)


# what is sent badly


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"GET\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n",
        b"GET /" + b"a" * limits.MAX_HEAD + b" HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(sent: bytes):
    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(sent)
            response = await connection.response()
            assert 400 <= response.status < 500
            assert set(response.error) == {"message", "type", "param", "code"}
        assert (await rig.ask("GET", "/health")).status == 200

    with_door(test)


def test_a_body_that_is_too_large_is_read_and_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(app, "Bodies", lambda: bodies.Bodies(limit=100_000, total=150_000))
    big = json.dumps(HELLO | {"x": "y" * 3_000_000}).encode()

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(rig.request("POST", CHAT, big))
            response = await connection.response()
            assert (response.status, response.error["code"]) == (413, "request_too_large")
        for _ in range(3):  # its room was given back
            assert (await rig.chat(x="y" * 90_000)).status == 200

    with_door(test, lambda _: text("Hello"))


@pytest.mark.parametrize("body", [b"2\r\n{}\r\n0\r\n\r\n", b"1\r\nx\r\n" * 20_000])
def test_a_body_in_chunks_is_refused_and_not_taken_apart(body: bytes):
    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            head = rig.request(
                "POST", CHAT, None, content_type="application/json", transfer_encoding="chunked"
            )
            await connection.send(head + body)
            response = await connection.response()
            assert (response.status, response.error["code"]) == (411, "length_required")
            assert await connection.is_closed()
        assert not rig.desk.asked

    with_door(test)


def test_what_comes_behind_a_request_does_not_hide_that_its_client_went():
    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(rig.request("POST", CHAT, HELLO) * 2)
            await rig.until(lambda: rig.desk.inside)
        await rig.until(lambda: rig.desk.left)
        assert len(rig.desk.asked) == 1

    with_door(test)


def test_an_announced_flood_is_refused_unread():
    async def test(rig: Rig) -> None:
        length = str(limits.MAX_DISCARDED + 1)
        response = await rig.ask(
            "POST", CHAT, content_type="application/json", content_length=length
        )
        assert response.status == 413

    with_door(test)


def test_many_large_bodies_at_a_time_are_too_many(monkeypatch: pytest.MonkeyPatch):
    room = bodies.Bodies(limit=100_000, total=150_000)
    monkeypatch.setattr(app, "Bodies", lambda: room)
    big = json.dumps(HELLO | {"x": "y" * 90_000}).encode()

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as held, HttpConnection.to(rig.port) as other:
            whole = rig.request("POST", CHAT, big)
            await held.send(whole[:-1])
            await rig.until(lambda: room.left < 150_000 - 90_000)
            await other.send(whole[:-1])
            refused = await other.response()
            assert (refused.status, refused.error["code"]) == (429, "rate_limit_exceeded")
            await held.send(whole[-1:])
            assert (await held.response()).status == 200
        assert room.left == 150_000

    with_door(test, lambda _: text("Hello"))


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "BODY_DEADLINE", 0.05)

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(rig.request("POST", CHAT, HELLO)[:-1])
            response = await connection.response()
            assert (response.status, response.error["code"]) == (408, "timed_out")
            assert await connection.is_closed()

    with_door(test)


def test_what_comes_drop_by_drop_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bodies, "BODY_DEADLINE", 0.1)
    room = bodies.Bodies(limit=100_000, total=150_000)
    monkeypatch.setattr(app, "Bodies", lambda: room)
    whole = json.dumps(HELLO | {"x": "y" * 90_000}).encode()

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            await connection.send(rig.request("POST", CHAT, whole)[:-50_000])
            await rig.until(lambda: room.left < 150_000)
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                for _ in range(50_000):
                    await connection.send(b"y")
                    await asyncio.sleep(0.001)
                    if room.left == 150_000:
                        break
            await rig.until(lambda: room.left == 150_000)
        assert not rig.desk.asked

    with_door(test)


def test_how_long_a_body_may_take():
    late, pace = limits.BODY_DEADLINE, limits.BODY_PACE
    assert bodies.put_off(late, 0, 0.0) == late
    assert bodies.put_off(late, pace, 3.0) == late + 1, "a second's bytes are a second more"
    assert bodies.put_off(late, 100 * pace, 3.0) == late + 3, "not more than it has from now"
    assert bodies.put_off(2 * late, 1, late) == pytest.approx(2 * late), "a drop is nothing"


def test_headers_that_do_not_come_are_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "HEAD_DEADLINE", 0.05)

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as silent, HttpConnection.to(rig.port) as slow:
            await slow.send(b"GET /health HTTP/1.1\r\nx-a: ")
            assert await silent.is_closed()
            assert await slow.is_closed()
        async with HttpConnection.to(rig.port) as second:  # of the second request, too
            await second.send(rig.request("GET", "/health"))
            assert (await second.response()).status == 200
            await second.send(b"GET /hea")
            assert await second.is_closed()

    with_door(test)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as one, HttpConnection.to(rig.port) as two:
            for connection in (one, two):
                await connection.send(rig.request("GET", "/health"))
                assert (await connection.response()).status == 200
            async with HttpConnection.to(rig.port) as three:
                response = await three.response()
                assert (response.status, response.error["code"]) == (503, "rate_limit_exceeded")
        while (await rig.ask("GET", "/health")).status == 503:
            pass  # those who left may still be counted

    with_door(test)


def test_strangers_make_room_for_who_has_the_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "MAX_CONNECTIONS", 2)

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as known, HttpConnection.to(rig.port) as stranger:
            await known.send(rig.request("GET", "/health"))
            assert (await known.response()).status == 200
            assert (await rig.ask("GET", "/health")).status == 200
            assert await stranger.is_closed()
            await known.send(rig.request("GET", "/health"))
            assert (await known.response()).status == 200

    with_door(test)


def test_who_calls_himself_by_many_names_has_few_shares():
    async def test(rig: Rig) -> None:
        async with AsyncExitStack() as stack:
            for number in range(limits.MAX_USERS + 4):
                one = await stack.enter_async_context(HttpConnection.to(rig.port))
                await one.send(rig.request("POST", CHAT, HELLO | {"user": f"u{number}"}))
                await rig.until(lambda: len(rig.desk.asked) == number + 1)  # noqa: B023
            keys = [request.client_id for request in rig.desk.asked]
            assert keys == [f"http:u{n}" for n in range(limits.MAX_USERS)] + ["http"] * 4
        await rig.until(lambda: not rig.desk.inside)
        async with HttpConnection.to(rig.port) as later:
            await later.send(rig.request("POST", CHAT, HELLO | {"user": "late"}))
            await rig.until(lambda: rig.desk.asked[-1].client_id == "http:late")

    with_door(test)


# opening and closing


def test_a_door_stays_where_it_is():
    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as connection:
            assert await rig.door.open(0, KEY) == rig.port
            assert await rig.door.open(rig.port, KEY) == rig.port
            await connection.send(rig.request("GET", "/health"))
            assert (await connection.response()).status == 200

    with_door(test)


def test_a_door_with_another_key_lets_the_old_one_in_no_more():
    async def test(rig: Rig) -> None:
        assert await rig.door.open(rig.port, "n" * 43) == rig.port
        assert (await rig.ask("GET", "/health")).status == 401
        new = await rig.ask("GET", "/health", authorization=f"Bearer {'n' * 43}")
        assert new.status == 200

    with_door(test)


def test_a_port_that_is_taken_leaves_the_door_where_it_was():
    async def test(rig: Rig) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(PunieError, match=str(port)):
                await rig.door.open(port, KEY)
            answer = await rig.door.obey(OpenDoor(request_id=5, port=port, key=KEY))
            assert (answer.request_id, answer.port) == (5, rig.port)
            assert answer.error is not None
            assert str(port) in answer.error.message
        assert (await rig.ask("GET", "/health")).status == 200
        moved = await rig.door.obey(OpenDoor(request_id=6, port=port, key=KEY))
        assert (moved.port, moved.error) == (port, None)
        with pytest.raises(ConnectionRefusedError):
            await rig.ask("GET", "/health")

    with_door(test)


def test_a_door_needs_a_key():
    async def test(rig: Rig) -> None:
        with pytest.raises(PunieError, match="key"):
            await rig.door.open(0, "")
        assert rig.door.port == rig.port

    with_door(test)


@pytest.mark.parametrize("streamed", [True, False])
def test_closing_ends_what_is_under_way(monkeypatch: pytest.MonkeyPatch, streamed: bool):
    monkeypatch.setattr(server, "CLOSE_DEADLINE", 0.05)

    async def test(rig: Rig) -> None:
        async with HttpConnection.to(rig.port) as busy, HttpConnection.to(rig.port) as idle:
            await idle.send(rig.request("GET", "/health"))
            assert (await idle.response()).status == 200
            await busy.send(rig.request("POST", CHAT, HELLO | {"stream": streamed}))
            await rig.until(lambda: rig.desk.inside)
            answer = await rig.door.obey(CloseDoor(request_id=9))
            assert (answer.request_id, answer.port, answer.error) == (9, None, None)
            assert rig.desk.left == 1
            assert await idle.is_closed()
            await busy.is_closed()
        with pytest.raises(ConnectionRefusedError):
            await rig.ask("GET", "/health")
        await rig.door.close()

    with_door(test)


def test_a_defect_is_an_answer_of_that_request_alone(caplog: pytest.LogCaptureFixture):
    async def test(rig: Rig) -> None:
        response = await rig.chat()
        assert (response.status, response.error["type"]) == (500, "server_error")
        assert "Traceback" not in response.body.decode()
        assert (await rig.ask("GET", "/health")).status == 200
        assert "ZeroDivisionError" in caplog.text

    def script(_request: Generate) -> list[ToModelClient]:
        raise ZeroDivisionError

    with_door(test, script)
