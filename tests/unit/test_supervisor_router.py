"""The router and the splicing: pure."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw

from punie_protocol import jsonrpc
from punie_protocol.client import PromptMeta
from punie_protocol.errors import PunieError
from punie_supervisor import acp, router
from punie_supervisor.router import Router

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


def body(**members: Any) -> str:
    return json.dumps({"jsonrpc": "2.0"} | members)


def sent(instruction: router.Instruction) -> tuple[int, dict[str, Any]]:
    assert isinstance(instruction, router.Send)
    return instruction.connection, json.loads(instruction.body)


def test_splicing_keeps_every_other_byte():
    params = b'{ "a":1.50e3,"_meta":{"x": [ 1 ],"punie":{"old":"\\u0041","seq":0}},"z":"\\/" }'
    spliced = bytes(acp.with_punie(Raw(params), {"seq": 7}))
    assert spliced == (
        b'{"a":1.50e3,"_meta":{"x":[ 1 ],"punie":{"old":"\\u0041","seq":7}},"z":"\\/"}'
    )


@given(st.dictionaries(st.text(max_size=5).filter(lambda k: k != "_meta"), JSON, max_size=4))
def test_splicing_adds_and_changes_nothing_else(params: dict[str, Any]):
    raw = Raw(json.dumps(params).encode())
    meta = PromptMeta(prompt_id="p", queue_ms=1.5)
    spliced = json.loads(bytes(acp.with_punie(raw, meta)))
    assert spliced == params | {"_meta": {"punie": {"promptId": "p", "queueMs": 1.5}}}


@pytest.mark.parametrize("params", ["[]", "3", '{"_meta":3}', '{"_meta":{"punie":[]}}'])
def test_splicing_refuses_what_is_no_object(params: str):
    with pytest.raises(PunieError):
        acp.with_punie(Raw(params.encode()), {"seq": 1})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[]", jsonrpc.INVALID_REQUEST),
        ("{", jsonrpc.PARSE_ERROR),
        ("3", jsonrpc.INVALID_REQUEST),
        ("{}", jsonrpc.INVALID_REQUEST),
        (body(id=1, method="fly"), jsonrpc.METHOD_NOT_FOUND),
        (body(id=1, method="authenticate", params={}), jsonrpc.INVALID_REQUEST),
        (body(id=1, method="session/prompt", params={}), jsonrpc.INVALID_PARAMS),
        (body(id=1, method="session/new", params=[]), jsonrpc.INVALID_PARAMS),
        (
            body(
                id=1,
                method="session/new",
                params={"cwd": "/", "_meta": {"punie": {"isolation": "x"}}},
            ),
            jsonrpc.INVALID_PARAMS,
        ),
    ],
)
def test_faulty_messages_are_answered(text: str, code: int):
    [instruction] = Router().from_client(1, text)
    connection, answer = sent(instruction)
    assert (connection, answer["error"]["code"]) == (1, code)
    assert answer["error"]["data"]["punie"]["type"] == "invalid_request"


@given(st.text() | st.binary())
def test_any_bytes_from_a_client_are_answered_or_ignored(text: str | bytes):
    for instruction in Router().from_client(1, text):
        assert isinstance(instruction, router.Send | router.Ignored)


def test_what_is_ignored_is_named_briefly():
    routes, long = Router(), "x" * 100_000
    for message in (
        body(id=long, result={}),
        body(method=long),
        body(method="session/cancel", params={"sessionId": long}),
    ):
        [ignored] = routes.from_client(1, message)
        assert isinstance(ignored, router.Ignored)
        assert len(ignored.reason) < 300


def test_requests_become_instructions():
    routes = Router()
    [prompt] = routes.from_client(
        3, body(id="a", method="session/prompt", params={"sessionId": "s", "prompt": []})
    )
    assert isinstance(prompt, router.Prompt)
    assert (prompt.connection, prompt.id, prompt.params.session_id) == (3, "a", "s")
    assert routes.from_client(3, body(id=1, method="_punie/status")) == [router.Report(1)]
    assert routes.from_client(3, body(id=1, method="_punie/shutdown")) == [router.ShutDown(1)]
    assert routes.from_client(3, body(method="session/cancel", params={"sessionId": "s"})) == [
        router.CancelSession("s")
    ]
    assert routes.from_client(3, body(method="$/cancel_request", params={"requestId": "a"})) == [
        router.CancelRequest(3, "a")
    ]


def test_updates_go_to_those_attached_with_their_number():
    routes = Router()
    update = body(method="session/update", params={"sessionId": "s", "update": {}})
    [store] = routes.from_agent(1, "s", update.encode(), 0.0)
    assert isinstance(store, router.StoreUpdate)
    assert routes.update("s", store.params, 1) == []
    routes.attach(5, "s")
    routes.attach(6, "s")
    routes.attach(7, "other")
    routes.gone(6, 0.0)
    [delivery] = routes.update("s", store.params, 2)
    connection, message = sent(delivery)
    assert connection == 5
    assert message["params"]["_meta"]["punie"] == {"seq": 2}


def test_a_question_goes_out_once_and_comes_back_with_the_agents_id():
    routes = Router()
    routes.attach(5, "s")
    routes.attach(6, "s")
    ask = body(id="agent-1", method="session/request_permission", params={"x": 1}).encode()
    first, second = routes.from_agent(9, "s", ask, 0.0)
    id = sent(first)[1]["id"]
    assert sent(second)[1]["id"] == id != "agent-1"
    stranger = routes.from_client(8, body(id=id, result={}))
    assert isinstance(stranger[0], router.Ignored)
    answer, cancel = routes.from_client(6, body(id=id, result={"ok": 1}))
    assert isinstance(answer, router.ToAgent)
    assert (answer.worker, answer.session_id) == (9, "s")
    assert json.loads(answer.body) == {"jsonrpc": "2.0", "id": "agent-1", "result": {"ok": 1}}
    assert sent(cancel) == (
        5,
        {"jsonrpc": "2.0", "method": "$/cancel_request", "params": {"requestId": id}},
    )
    assert isinstance(routes.from_client(5, body(id=id, result={}))[0], router.Ignored)


def test_who_cannot_ask_leaves_the_question_to_the_others():
    routes = Router()
    routes.attach(5, "s")
    routes.attach(6, "s")
    ask = body(id="agent-1", method="session/request_permission").encode()
    first, _ = routes.from_agent(9, "s", ask, 0.0)
    no = body(id=sent(first)[1]["id"], error={"code": -32601, "message": "cannot"})
    assert routes.from_client(5, no) == []
    [last] = routes.from_client(6, no)
    assert isinstance(last, router.ToAgent)
    assert json.loads(last.body)["error"]["message"] == "cannot"


def test_a_held_question_waits_for_someone_and_is_rejected_in_the_end():
    routes = Router(question_timeout=10.0)
    ask = body(id=1, method="session/request_permission").encode()
    assert routes.from_agent(9, "s", ask, 0.0) == []
    assert routes.tick(9.9) == []
    [question] = routes.attach(5, "s")
    assert sent(question)[0] == 5
    assert routes.tick(1000.0) == []
    routes.gone(5, 1000.0)
    assert routes.tick(1009.9) == []
    [rejected] = routes.tick(1010.0)
    assert isinstance(rejected, router.ToAgent)
    assert json.loads(rejected.body)["error"]["data"]["punie"]["type"] == "timed_out"
    assert routes.tick(2000.0) == []


@pytest.mark.parametrize("how", ["turn", "worker", "agent"])
def test_a_question_nobody_needs_any_more_is_withdrawn(how: str):
    routes = Router()
    routes.attach(5, "s")
    [asked] = routes.from_agent(9, "s", body(id=1, method="x").encode(), 0.0)
    cancel = body(method="$/cancel_request", params={"requestId": 1}).encode()
    match how:
        case "turn":
            gone = list[router.Instruction](routes.turn_ended("s"))
        case "worker":
            gone = list[router.Instruction](routes.worker_gone(9))
        case _:
            gone = routes.from_agent(9, "s", cancel, 0.0)
    [withdrawn] = gone
    assert sent(withdrawn)[1]["params"] == {"requestId": sent(asked)[1]["id"]}


@pytest.mark.parametrize("wrong", [b"", b"\xff", b"[]", b"{}", b'{"id":"x","result":1}'])
def test_a_worker_that_talks_nonsense_is_broken(wrong: bytes):
    with pytest.raises(PunieError):
        Router().from_agent(1, "s", wrong, 0.0)
