"""The HTTP door's pure parts: requests, refusals, the guard, the mailbox, health."""

import asyncio
import contextlib
import json
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.door import faults, guard, health, replies, wire
from punie_model_host.door.faults import Refusal
from punie_model_host.door.guard import Guard
from punie_model_host.door.limits import MAX_ITEMS, STALLED
from punie_model_host.door.mailbox import Mailbox
from punie_protocol import errors
from punie_protocol.engine import EngineStatus
from punie_protocol.errors import InvalidRequest, LinkClosed
from punie_protocol.messages.common import Priority
from punie_protocol.messages.to_model_client import Failed, StopReason, TextDelta, ToolCall
from punie_protocol.messages.to_model_host import (
    AssistantMessage,
    Generate,
    Sampling,
    SystemMessage,
    ToolCallPart,
    ToolMessage,
    ToolSchema,
    UserMessage,
)
from tests.support.scripted_desk import MODEL, USAGE, ScriptedDesk, finished

MANY = [{"type": "text", "text": "x"}] * (MAX_ITEMS + 1)
HELLO = [{"role": "user", "content": "hi"}]


def read(**fields: Any) -> Generate:
    """Return what the engine gets for a request's body."""
    body = json.dumps({"messages": HELLO} | fields).encode()
    return wire.generate(wire.decode(body), "new")


def refused(body: bytes) -> faults.ErrorBody:
    with pytest.raises(Refusal) as caught:
        wire.generate(wire.decode(body), "new")
    assert caught.value.status == 400
    assert caught.value.body.type == "invalid_request_error"
    return caught.value.body


# requests


def test_every_sampling_field_arrives():
    wish = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 20,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.3,
        "xtc_probability": 0.4,
        "xtc_threshold": 0.1,
        "seed": 11,
        "max_tokens": 5,
    }
    more = {"logit_bias": {"12": -3, "7": 1.5}, "stop": ["a", "b"]}
    got = read(**wish, **more).sampling
    assert got == Sampling(**wish, logit_bias={12: -3.0, 7: 1.5}, stop=["a", "b"])
    assert set(wish) | set(more) == set(Sampling.__struct_fields__), "a field of Sampling is new"


def test_what_is_left_out_or_null_is_the_profile_s():
    nothing = dict.fromkeys(("temperature", "stop", "logit_bias", "max_tokens", "n", "stream"))
    assert read().sampling == read(**nothing, model=None, user=None).sampling == Sampling()


def test_the_newer_name_of_the_token_limit_goes_first():
    assert read(max_tokens=5, max_completion_tokens=9).sampling.max_tokens == 9
    assert read(max_completion_tokens=9).sampling.max_tokens == 9
    assert read(stop="x").sampling.stop == ["x"]


def test_roles_and_parts():
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a":1}'}}
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    conversation = [
        {"role": "system", "content": "be brief"},
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": parts, "name": "ada"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
        {"role": "tool", "tool_call_id": "c9", "name": "other", "content": "43"},
    ]
    part = ToolCallPart(call_id="c1", name="look", arguments='{"a":1}')
    assert read(messages=conversation).messages == [
        SystemMessage(text="be brief"),
        SystemMessage(text="be kind"),
        UserMessage(text="one two"),
        AssistantMessage(text="", thinking="hm", tool_calls=[part]),
        ToolMessage(call_id="c1", name="look", text="42"),
        ToolMessage(call_id="c9", name="other", text="43"),
    ]


def test_tools_go_on_as_they_are():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    tools = [
        {"type": "function", "function": {"name": "look", "parameters": schema, "strict": True}},
        {"type": "function", "function": {"name": "stop", "description": "ends it"}},
    ]
    got = read(tools=tools).tools
    assert [tool.name for tool in got] == ["look", "stop"]
    assert json.loads(got[0].parameters) == schema
    nothing = '{"type":"object","properties":{}}'
    assert got[1] == ToolSchema(name="stop", description="ends it", parameters=nothing)
    assert read(tools=tools, tool_choice="none").tools == []
    assert read(tools=tools, tool_choice="auto").tools == got


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ({}, "http"),
        ({"user": "ada"}, "http:ada"),
        ({"safety_identifier": "x1"}, "http:x1"),
        ({"prompt_cache_key": "k"}, "http:k"),
        ({"user": "u" * 1000}, "http:" + "u" * 64),
    ],
)
def test_who_shares_the_machine(fields: dict[str, Any], client: str):
    assert read(**fields).client_id == client


def test_conversation_and_priority():
    assert read().conversation_id == "new"
    assert read(prompt_cache_key="k").conversation_id == "k"
    assert read().priority is read(service_tier="auto").priority is Priority.INTERACTIVE
    assert read(service_tier="flex").priority is Priority.BACKGROUND


def test_unknown_fields_are_ignored():
    assert read(store=True, metadata={"a": [1]}, verbosity="low") == read()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"messages": [{"role": "pope", "content": ""}]}, "messages[0].role"),
        ({"messages": [*HELLO, {"role": "tool", "content": ""}]}, "messages[1].tool_call_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"stop": 7}, "stop"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": "x"}}, "logit_bias"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [3]}, "messages"),
        ({"messages": None}, "messages"),
        ({"stream": "yes"}, "stream"),
        ({"user": 3}, "user"),
        ({"messages": HELLO * (MAX_ITEMS + 1)}, "messages"),
        ({"messages": [{"role": "user", "content": MANY}]}, "messages[0].content"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, Any], param: str):
    found = refused(json.dumps({"messages": HELLO} | fields).encode()).param
    assert found is not None
    assert found == param or found.startswith(f"{param}["), found


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b'{"messages": [{"role": "user", "content": "\xff"}]}',
        b'{"messages": [], "temperature": NaN}',
        b'{"messages": [], "temperature": 1e999}',
        b"[" * 100_000,
    ],
)
def test_a_body_that_is_none_is_refused(body: bytes):
    assert refused(body).message


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_break_the_decoder(body: bytes):
    with contextlib.suppress(Refusal):
        wire.decode(body)


@pytest.mark.parametrize("name", [None, "", "default", "tiny", "/models/tiny"])
def test_names_of_the_loaded_model(name: str | None):
    wire.check_model(name, MODEL)


def test_another_model_is_not_found():
    with pytest.raises(Refusal, match="'tiny'") as caught:
        wire.check_model("gpt-9", MODEL)
    assert (caught.value.status, caught.value.body.code) == (404, "model_not_found")


# refusals


KINDS = (
    (InvalidRequest(message="x"), 400, None),
    (
        errors.ContextOverflow(message="x", tokens=9, limit=3),
        400,
        "context_length_exceeded",
    ),
    (errors.TooLarge(message="x", limit=1, actual=2), 413, "request_too_large"),
    (errors.NotFound(message="x", what="model"), 404, "model_not_found"),
    (errors.Denied(message="x"), 403, "denied"),
    (errors.VersionSkew(message="x", ours=1, theirs=2), 500, "version_skew"),
    (errors.Overloaded(message="x"), 429, "overloaded"),
    (errors.Cancelled(message="x"), 503, "cancelled"),
    (errors.TimedOut(message="x", limit_s=1), 504, "timed_out"),
    (errors.ModelLoadFailed(message="x", folder="", file=""), 503, "model_load_failed"),
    (errors.ModelUnavailable(message="x"), 503, "model_unavailable"),
    (errors.ModelFault(message="x"), 500, "model_fault"),
    (errors.ToolFailed(message="x", kind=""), 500, "tool_failed"),
    (errors.ProcessLost(message="x", process="", pid=1), 503, "process_lost"),
    (errors.Internal(message="x"), 500, "internal"),
)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    KINDS,
    ids=lambda value: type(value).__name__,
)
def test_failures_as_openai_says_them(error: errors.WireError, status: int, code: str | None):
    refusal = faults.refusal(error)
    assert (refusal.status, refusal.body.code) == (status, code)
    body = json.loads(refusal.encoded())
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}


def test_every_failure_has_its_case():
    assert {type(error) for error, *_ in KINDS} == set(get_args(errors.WireError.__value__))


def test_the_engine_s_complaint_names_the_field():
    said = "sampling: top_p is 3.0: expected at most 1"
    refusal = faults.refusal(InvalidRequest(message=said, hint="do this"))
    assert refusal.body.param == "top_p"
    assert refusal.body.message == f"{said} (do this)"
    assert faults.refusal(InvalidRequest(message="something else")).body.param is None


# the guard

KEY = "k" * 43
GOOD = [(b"host", b"127.0.0.1:8080"), (b"authorization", f"Bearer {KEY}".encode())]


@pytest.mark.parametrize("host", [b"127.0.0.1:8080", b"localhost:8080", b"LocalHost:8080"])
def test_whoever_has_the_key_comes_in(host: bytes):
    Guard(8080, KEY).check([(b"host", host), GOOD[1]])
    Guard(8080, KEY).check(
        [(b"host", b"[::1]:8080"), (b"authorization", b"bearer  " + KEY.encode())]
    )
    Guard(80, KEY).check([(b"host", b"localhost"), GOOD[1]])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 403),
        ([GOOD[1]], 403),
        ([(b"host", b"evil.example:8080"), GOOD[1]], 403),
        ([(b"host", b"127.0.0.1"), GOOD[1]], 403),
        ([(b"host", b"127.0.0.1:8081"), GOOD[1]], 403),
        ([(b"host", b"127.0.0.1.evil.example:8080"), GOOD[1]], 403),
        ([*GOOD, (b"host", b"127.0.0.1:8080")], 403),
        ([*GOOD, (b"origin", b"https://evil.example")], 403),
        ([*GOOD, (b"origin", b"http://127.0.0.1:8080")], 403),
        ([*GOOD, (b"origin", b"null")], 403),
        ([*GOOD, (b"origin", b"")], 403),
        ([GOOD[0]], 401),
        ([GOOD[0], (b"authorization", b"")], 401),
        ([GOOD[0], (b"authorization", b"Bearer")], 401),
        ([GOOD[0], (b"authorization", b"Bearer ")], 401),
        ([GOOD[0], (b"authorization", b"Bearer " + b"x" * 43)], 401),
        ([GOOD[0], (b"authorization", b"Bearer " + KEY[:-1].encode())], 401),
        ([GOOD[0], (b"authorization", b"Basic " + KEY.encode())], 401),
        ([GOOD[0], (b"authorization", KEY.encode())], 401),
        ([GOOD[0], (b"authorization", b"Bearer \xff\xfe")], 401),
        ([*GOOD, GOOD[1]], 401),
    ],
)
def test_nobody_else_does(headers: list[tuple[bytes, bytes]], status: int):
    with pytest.raises(Refusal) as caught:
        Guard(8080, KEY).check(headers)
    assert caught.value.status == status
    assert caught.value.close
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("value", [b"application/json", b"Application/JSON; charset=utf-8"])
def test_json_says_that_it_is(value: bytes):
    guard.check_json([(b"content-type", value)])


@pytest.mark.parametrize("values", [[], [b"text/plain"], [b""], [b"application/json"] * 2])
def test_what_a_page_can_send_without_asking_is_no_json(values: list[bytes]):
    with pytest.raises(Refusal) as caught:
        guard.check_json([(b"content-type", value) for value in values])
    assert caught.value.status == 415


# answers


def test_chunks_have_the_fields_that_clients_read():
    writer = replies.Writer("chatcmpl-1", 99, "tiny")
    call = replies.call(ToolCall(request_id=1, call_id="c", name="look", arguments="{}"), 3)
    event = writer.event(replies.Delta(tool_calls=[call]))
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    chunk = json.loads(event[6:])
    assert chunk["object"] == "chat.completion.chunk"
    assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-1", 99, "tiny")
    choice = chunk["choices"][0]
    assert choice["finish_reason"] is None
    function = {"name": "look", "arguments": "{}"}
    assert choice["delta"]["tool_calls"] == [
        {"index": 3, "id": "c", "type": "function", "function": function}
    ]
    end = finished(StopReason.LENGTH)
    last = json.loads(writer.last(end.stop_reason, end.timings)[6:])
    assert last["choices"][0] == {
        "index": 0,
        "delta": {},
        "finish_reason": "length",
        "logprobs": None,
    }
    usage = json.loads(writer.usage(USAGE)[6:])
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


# the mailbox


def test_a_mailbox_gives_what_it_has_at_once():
    async def main() -> None:
        box = Mailbox(lambda: None)
        deltas = [TextDelta(request_id=1, text=text) for text in "abc"]
        for delta in deltas:
            box.send(delta)
        assert await box.take() == deltas
        box.nudge()
        assert await box.take() == []
        box.close("over")
        assert await box.take() == []
        with pytest.raises(LinkClosed, match="over"):
            box.send(deltas[0])

    asyncio.run(main())


def test_a_full_mailbox_ends_its_request():
    async def main() -> None:
        called = asyncio.Event()
        box = Mailbox(called.set, limit=1000)
        for _ in range(3):
            box.send(TextDelta(request_id=1, text="x" * 100))
        with pytest.raises(LinkClosed, match="1000 bytes"):
            box.send(TextDelta(request_id=1, text="x" * 100))
        assert not called.is_set(), "its sender is still in the middle of it"
        *deltas, failed = await box.take()
        assert len(deltas) == 3
        assert isinstance(failed, Failed)
        assert isinstance(failed.error, errors.Overloaded)
        async with asyncio.timeout(1):
            await called.wait()

    asyncio.run(main())


# health


def test_health_asks_whether_tokens_progress():
    desk = ScriptedDesk(lambda _: [])
    desk.status = EngineStatus(queued=2, prefilling=1, running=3)
    desk.quiet_s = 0.25
    found = health.look(desk)
    assert (found.status, found.code, found.model) == (health.Condition.OK, 200, "tiny")
    assert (found.queued, found.prefilling, found.running, found.quiet_s) == (2, 1, 3, 0.25)
    desk.quiet_s = STALLED + 1
    assert (health.look(desk).status, health.look(desk).code) == (health.Condition.STALLED, 503)
    desk.model = desk.status = None
    assert (health.look(desk).status, health.look(desk).code) == (health.Condition.LOADING, 503)
