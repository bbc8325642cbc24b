"""The HTTP door's pure parts: requests, refusals, the guard, the mailbox, health."""

import asyncio
import contextlib
import json
import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from punie_model_host.door import chat, completions, faults, fingerprint, guard, health, wire
from punie_model_host.door.answers import Answers
from punie_model_host.door.chat import ChatRequest
from punie_model_host.door.chat_replies import ChatWriter
from punie_model_host.door.completions import CompletionRequest
from punie_model_host.door.conversation import MessageIn
from punie_model_host.door.faults import Refusal
from punie_model_host.door.guard import Guard
from punie_model_host.door.limits import MAX_CHOICES, MAX_IDS, MAX_ITEMS, STALLED
from punie_model_host.door.mailbox import Mailbox
from punie_model_host.door.replies import Head
from punie_model_host.door.text_replies import TextWriter
from punie_model_host.door.wire import StreamOptions
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

ROOT = Path(__file__).parents[2]
MANY = [{"type": "text", "text": "x"}] * (MAX_ITEMS + 1)
HELLO = [{"role": "user", "content": "hi"}]


def called(call: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [call]}


def read(**fields: Any) -> Generate:
    """Return what the engine gets for a request's body."""
    [wanted] = read_all(**fields)
    return wanted


def read_all(**fields: Any) -> list[Generate]:
    """Return what the engine gets for each choice."""
    body = json.dumps({"messages": HELLO} | fields).encode()
    return chat.generates(chat.decode(body), "new")


def complete(**fields: Any) -> list[Generate]:
    """Return what the engine gets for a completion's body."""
    return completions.generates(completions.decode(json.dumps(fields).encode()), "new")


def refused(body: bytes) -> faults.ErrorBody:
    with pytest.raises(Refusal) as caught:
        chat.generates(chat.decode(body), "new")
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


WILD = [
    ({"role": "assistant", "content": ""}, AssistantMessage(text="")),
    ({"role": "assistant"}, AssistantMessage(text="")),
    ({"role": "assistant", "content": None, "refusal": "no"}, AssistantMessage(text="no")),
    (
        {"role": "assistant", "content": "a", "refusal": None, "audio": None, "annotations": []},
        AssistantMessage(text="a"),
    ),
    (
        {"role": "assistant", "content": "a", "tool_calls": [], "function_call": None},
        AssistantMessage(text="a"),
    ),
    (
        {"role": "assistant", "content": "a", "tool_calls": None, "reasoning": "hm"},
        AssistantMessage(text="a", thinking="hm"),
    ),
    (
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "never"}]},
        AssistantMessage(text="never"),
    ),
    (
        {"role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
        AssistantMessage(text="a"),
    ),
    (
        {"role": "user", "content": [{"type": "input_text", "text": "a"}], "name": "ada"},
        UserMessage(text="a"),
    ),
    ({"role": "user", "content": [], "name": None}, UserMessage(text="")),
    (
        {"role": "tool", "tool_call_id": "x", "content": [{"type": "text", "text": "4"}] * 2},
        ToolMessage(call_id="x", name="", text="44"),
    ),
    ({"role": "tool", "tool_call_id": "x"}, ToolMessage(call_id="x", name="", text="")),
    (
        {"role": "system", "content": [{"type": "text", "text": "a", "cache_control": {}}]},
        SystemMessage(text="a"),
    ),
]


@pytest.mark.parametrize(("sent", "read_as"), WILD, ids=lambda value: str(value)[:60])
def test_messages_as_clients_write_them(sent: dict[str, Any], read_as: object):
    assert read(messages=[sent]).messages == [read_as]


@pytest.mark.parametrize(
    ("arguments", "as_sent"), [("", "{}"), ('{"a": [1]}', '{"a": [1]}'), (" {}\n", " {}\n")]
)
def test_calls_of_the_past_stay_as_they_were(arguments: str, as_sent: str):
    call = {"id": "any id, ü", "function": {"name": "look", "arguments": arguments}}
    [message] = read(messages=[{"role": "assistant", "tool_calls": [call]}]).messages
    part = ToolCallPart(call_id="any id, ü", name="look", arguments=as_sent)
    assert message == AssistantMessage(tool_calls=[part])


def test_a_call_can_be_asked_for():
    tools = [{"type": "function", "function": {"name": name}} for name in ("look", "stop")]
    named = {"type": "function", "function": {"name": "stop"}}
    assert read(tools=tools).must_call is None
    assert read(tools=tools, tool_choice="auto").must_call is None
    assert read(tools=tools, tool_choice="none").must_call is None
    assert read(tools=tools, tool_choice="required").must_call == ""
    assert read(tools=tools, tool_choice=named).must_call == "stop"
    assert not read(tools=tools, parallel_tool_calls=True).one_call
    assert read(tools=tools, parallel_tool_calls=False).one_call


def test_choices_are_requests_with_seeds_of_their_own():
    wanted = read_all(n=3, seed=7)
    assert [one.request_id for one in wanted] == [1, 2, 3]
    assert [one.sampling.seed for one in wanted] == [7, 8, 9]
    assert [one.sampling.seed for one in read_all(n=2)] == [None, None]


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
        ({"n": 0}, "n"),
        ({"n": MAX_CHOICES + 1}, "n"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"functions": []}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "function", "name": "a", "content": ""}]}, "messages[0].role"),
        (
            {"messages": [*HELLO, {"role": "assistant", "function_call": {"name": "a"}}]},
            "messages[1].function_call",
        ),
        ({"messages": [called({"id": "a"})]}, "messages[0].tool_calls[0].function"),
        (
            {"messages": [called({"id": "a", "type": "custom"})]},
            "messages[0].tool_calls[0].type",
        ),
        (
            {"messages": [called({"id": "a", "function": {"name": "a", "arguments": "{a"}})]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            {"messages": [called({"id": "a", "function": {"name": "a", "arguments": "[]"}})]},
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "a"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tool_choice": "always"}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
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
        chat.decode(body)
    with contextlib.suppress(Refusal):
        completions.decode(body)


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("Once", ["Once"]),
        (["Once", "Twice"], ["Once", "Twice"]),
        ([5, 6], [[5, 6]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        ([[5, 6], "Once", []], [[5, 6], "Once", []]),
        ("", [""]),
    ],
)
def test_prompts_of_a_completion(prompt: Any, prompts: list[Any]):
    wanted = complete(prompt=prompt, temperature=0.5, user="ada")
    assert [one.prompt for one in wanted] == prompts
    assert [one.request_id for one in wanted] == list(range(1, len(prompts) + 1))
    assert {one.client_id for one in wanted} == {"http:ada"}
    assert all(not one.messages and one.sampling.temperature == 0.5 for one in wanted)


def test_a_completion_is_short_unless_it_says_more():
    assert complete(prompt="a")[0].sampling.max_tokens == completions.MAX_TOKENS == 16
    assert complete(prompt="a", max_tokens=None)[0].sampling.max_tokens == 16
    assert complete(prompt="a", max_tokens=99)[0].sampling.max_tokens == 99


def test_answers_of_several_prompts_are_in_openai_s_order():
    wanted = complete(prompt=["a", "b"], n=2, seed=5)
    assert [one.prompt for one in wanted] == ["a", "a", "b", "b"]
    assert [one.sampling.seed for one in wanted] == [5, 6, 5, 6]
    assert [one.request_id for one in wanted] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [1, [2]]}, "prompt"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": ["a"] * (MAX_CHOICES + 1)}, "prompt"),
        ({"prompt": [1] * (MAX_IDS + 1)}, "prompt"),
        ({"prompt": [[1], [1] * (MAX_IDS + 1)]}, "prompt"),
        ({"prompt": ["a"] * 5, "n": 4}, "n"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_a_completion_cannot_be(fields: dict[str, Any], param: str):
    with pytest.raises(Refusal) as caught:
        complete(**fields)
    assert (caught.value.status, caught.value.body.param) == (400, param)


def test_nothing_is_asked_for_by_null_and_false():
    nothing: dict[str, Any] = dict.fromkeys(("suffix", "echo", "logprobs", "best_of", "n"))
    assert complete(prompt="a", **nothing) == complete(prompt="a", echo=False, best_of=1, suffix="")


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
    (errors.Overloaded(message="x"), 429, "rate_limit_exceeded"),
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


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("the prompt has 9 tokens, the model's window 3", "prompt"),
        ("the conversation has 9 tokens, the model's window 3", "messages"),
    ],
)
def test_what_is_too_long_is_named(message: str, param: str):
    error = errors.ContextOverflow(message=message, tokens=9, limit=3)
    assert faults.refusal(error).body.param == param


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("a call cannot be demanded of this model: so it is", "tool_choice"),
        ("parameters of tool look: not a JSON object", "tools"),
        ("the chat template refuses this conversation: why", "messages"),
        ("prompt: it has no tokens", "prompt"),
    ],
)
def test_what_the_engine_refuses_is_a_field(message: str, param: str):
    assert faults.refusal(InvalidRequest(message=message)).body.param == param


# the page


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest, MessageIn, StreamOptions])
def test_the_page_has_every_field(kind: type[msgspec.Struct]):
    page = (ROOT / "docs/reference/http.md").read_text()
    assert [name for name in kind.__struct_fields__ if not re.search(rf"\b{name}\b", page)] == []


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


HEAD = Head(id="chatcmpl-1", created=99, model="tiny", system_fingerprint="fp_1")


def event(sent: bytes) -> Any:
    assert sent.startswith(b"data: {")
    assert sent.endswith(b"}\n\n")
    return json.loads(sent[6:])


def test_chunks_have_the_fields_that_clients_read():
    writer = ChatWriter(HEAD)
    sent = writer.piece(ToolCall(request_id=4, call_id="c", name="look", arguments="{}"))
    role, chunk = (event(part + b"\n\n") for part in sent.split(b"\n\n")[:-1])
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunk["object"] == "chat.completion.chunk"
    assert (chunk["id"], chunk["created"], chunk["model"]) == ("chatcmpl-1", 99, "tiny")
    assert chunk["system_fingerprint"] == "fp_1"
    [choice] = chunk["choices"]
    assert (choice["index"], choice["finish_reason"]) == (3, None)
    function = {"name": "look", "arguments": "{}"}
    assert choice["delta"]["tool_calls"] == [
        {"index": 0, "id": "c", "type": "function", "function": function}
    ]
    last = event(writer.end(finished(StopReason.LENGTH, 4)))
    assert last["choices"] == [
        {"index": 3, "delta": {}, "finish_reason": "length", "logprobs": None}
    ]
    usage = event(writer.usage(USAGE))
    assert usage["choices"] == []
    assert usage["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "total_tokens": 10,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_a_completion_s_events_are_text():
    writer = TextWriter(HEAD)
    chunk = event(writer.piece(TextDelta(request_id=2, text=" upon")))
    assert chunk["object"] == "text_completion"
    assert chunk["choices"] == [
        {"text": " upon", "index": 1, "finish_reason": None, "logprobs": None}
    ]
    assert "usage" not in chunk
    last = event(writer.end(finished(StopReason.STOP, 2)))
    assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"]) == ("", "stop")
    assert event(writer.usage(USAGE))["usage"]["total_tokens"] == 10


def test_several_answers_count_their_prompt_once():
    answers = Answers(4, per_prompt=2)
    for id in (3, 1, 4, 2):
        assert not answers.complete
        answers.add(finished(StopReason.STOP, id))
    assert answers.complete
    assert (answers.usage.input_tokens, answers.usage.cached_tokens) == (14, 8)
    assert answers.usage.output_tokens == 12


def test_another_model_has_another_fingerprint():
    one = fingerprint.of(MODEL)
    assert one == fingerprint.of(msgspec.structs.replace(MODEL))
    assert one != fingerprint.of(msgspec.structs.replace(MODEL, name="other"))


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
