"""Other model servers: pydantic-ai's OpenAI model against real sockets."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequest,
    ModelResponse,
    PartDeltaEvent,
    RetryFeedbackPart,
    RetryInfo,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters

from punie_protocol import errors
from punie_protocol.backends import Backend
from punie_protocol.errors import Fault, LinkClosed, PunieError, Retry
from punie_protocol.messages.common import Usage
from punie_protocol.messages.to_model_client import StopReason
from punie_workers import server_model
from punie_workers.compaction import Compactor
from punie_workers.layout import Compaction
from punie_workers.model_client import ModelClient
from punie_workers.models import Models
from punie_workers.prompts import Instructions, ProjectParts, instructions
from punie_workers.server_model import ServerModel
from tests.support.openai_server import (
    OpenAIServer,
    Reply,
    call,
    chunk,
    ended,
    event,
    refuse,
    say,
)
from tests.support.worker_harness import Turn, WorkerHarness

EMBEDDED = Path(__file__).parents[2] / "model_host/punie_model_host/embedded"
PARTS = ProjectParts("demo", "Use tabs.")
PROMPT: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("hello?")])]
NO_TOOLS = ModelRequestParameters()


class Case:
    """A model on a server, and what its compactor said."""

    def __init__(self, server: OpenAIServer, model: ServerModel, notices: list[str]) -> None:
        self.server = server
        self.model = model
        self.notices = notices

    async def ask(self, messages: list[ModelMessage] | None = None) -> ModelResponse:
        """Return the whole answer."""
        return await self.model.request(messages or PROMPT, None, NO_TOOLS)

    async def fails(self, messages: list[ModelMessage] | None = None) -> errors.WireError:
        """Return why there is no answer."""
        with pytest.raises(PunieError) as caught:
            await self.ask(messages)
        return caught.value.error

    @property
    def body(self) -> dict[str, Any]:
        """The last request."""
        return self.server.requests[-1].body


@asynccontextmanager
async def case(*script: Reply, **backend: Any) -> AsyncGenerator[Case]:
    async with OpenAIServer(script) as server, opened(server.url, **backend) as (model, notices):
        yield Case(server, model, notices)


@asynccontextmanager
async def opened(
    url: str, *, told: Instructions | None = None, **more: Any
) -> AsyncGenerator[tuple[ServerModel, list[str]]]:
    models, notices = Models(ModelClient("/nowhere")), list[str]()
    backend = msgspec.convert({"url": url, "name": "coder", **more}, Backend)

    async def store(_: Compaction) -> None:
        pass

    try:
        info = await models.info(backend)
        model = models.open(
            info,
            backend,
            client_id="c",
            conversation_id="s",
            instructions=told or instructions(info, PARTS),
            compactor=Compactor(None, notices.append, store),
        )
        assert isinstance(model, ServerModel)
        yield model, notices
    finally:
        await models.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110 (no event to wait for)
            await asyncio.sleep(0.001)


def test_text_is_streamed_counted_and_timed() -> None:
    async def test() -> None:
        async with case(say("It is ", "here.")) as it:
            async with it.model.request_stream(PROMPT, None, NO_TOOLS) as stream:
                parts = [part async for part in stream]
                response = stream.get()
            assert any(isinstance(part, PartDeltaEvent) for part in parts)
            assert response.text == "It is here."
            assert response.model_name == "coder"
            totals = it.model.totals
            assert totals.usage == Usage(input_tokens=20, cached_tokens=12, output_tokens=7)
            assert totals.stop_reason is StopReason.STOP
            (step,) = totals.steps
            assert step.usage == totals.usage
            assert step.queue == 0.0
            assert step.wall_ms >= step.prefill + step.decode > 0
            assert totals.first_token is not None

    asyncio.run(test())


def test_what_is_sent() -> None:
    async def test() -> None:
        async with case(say("yes"), key="secret", max_output_tokens=100) as it:
            await it.ask()
            told = instructions(it.model.info, PARTS)
            body = it.body
            assert body["messages"] == [
                {"role": "system", "content": told.system},
                {"role": "user", "content": f"{told.context}\n\nhello?"},
            ]
            assert body["model"] == "coder"
            assert body["stream"] is True
            assert body["stream_options"] == {"include_usage": True}
            assert body["max_tokens"] == 100
            assert not body.keys() & {"temperature", "top_p", "seed", "stop", "user"}
            assert [one["function"]["name"] for one in body["tools"]] == [
                tool.name for tool in told.tools
            ]
            assert body["tools"][1]["function"]["parameters"] == json.loads(
                told.tools[1].parameters
            )
            assert it.server.requests[0].headers["authorization"] == "Bearer secret"

    asyncio.run(test())


def test_without_a_key_none_is_sent() -> None:
    async def test() -> None:
        async with case(say("yes")) as it:
            await it.ask()
            assert "authorization" not in it.server.requests[0].headers

    asyncio.run(test())


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with case(say("yes")) as it:
            assert (await it.ask()).text == "yes"

    for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    asyncio.run(test())


def test_a_conversation_keeps_its_prefix_from_request_to_request() -> None:
    async def test() -> None:
        async with case(call("read_file", '{"pa', 'th": "a.py"}'), say("done")) as it:
            first = await it.ask()
            (asked,) = first.tool_calls
            assert (asked.tool_name, asked.args_as_dict()) == ("read_file", {"path": "a.py"})
            assert it.model.totals.stop_reason is StopReason.TOOL_CALLS
            before = it.body
            result = ToolReturnPart("read_file", "x = 1", tool_call_id=asked.tool_call_id)
            await it.ask([*PROMPT, first, ModelRequest(parts=[result])])
            assert it.body["messages"][: len(before["messages"])] == before["messages"]
            assert it.body["tools"] == before["tools"]
            said, told = it.body["messages"][-2:]
            assert said["tool_calls"][0]["function"]["name"] == "read_file"
            assert told == {"role": "tool", "tool_call_id": "call_1", "content": "x = 1"}

    asyncio.run(test())


def test_several_calls_and_thoughts() -> None:
    def piece(index: int, name: str, arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"index": index, "id": f"c{index}", "type": "function", "function": function}

    answer = Reply(
        (
            chunk({"reasoning_content": "Which "}),
            chunk({"reasoning_content": "file?"}),
            chunk({"tool_calls": [piece(0, "read_file", '{"path": "a"}')]}),
            chunk({"tool_calls": [piece(1, "read_file", '{"path": "b"}')]}),
            *ended("tool_calls"),
        )
    )

    async def test() -> None:
        async with case(answer, say("ok")) as it:
            response = await it.ask()
            assert response.thinking == "Which file?"
            assert [one.args_as_dict() for one in response.tool_calls] == [
                {"path": "a"},
                {"path": "b"},
            ]

    asyncio.run(test())


def test_odd_histories_are_sent_as_servers_take_them() -> None:
    history: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart("one")]),
        ModelResponse(
            parts=[
                ThinkingPart("thought by another kind of model"),
                TextPart("so"),
                ToolCallPart("read_file", '{"path": ', tool_call_id="x"),
            ]
        ),
        ModelRequest(
            parts=[
                ToolReturnPart("read_file", "bad arguments", tool_call_id="x"),
                RetryFeedbackPart("answer with something", retry=RetryInfo("model_retry")),
            ]
        ),
    ]

    async def test() -> None:
        async with case(say("ok")) as it:
            await it.ask(history)
            said = it.body["messages"][2]
            arguments = said["tool_calls"][0]["function"]["arguments"]
            assert isinstance(json.loads(arguments), dict)
            assert said["content"] == "so"
            feedback = it.body["messages"][-1]
            assert feedback["role"] == "user"
            assert "answer with something" in feedback["content"]

    asyncio.run(test())


def test_a_length_stop_and_no_usage() -> None:
    async def test() -> None:
        reply = Reply((chunk({"content": "cut o"}), *ended("length", usage=None)))
        async with case(reply) as it:
            assert (await it.ask()).text == "cut o"
            assert it.model.totals.stop_reason is StopReason.LENGTH
            assert it.model.totals.usage == Usage()

    asyncio.run(test())


REFUSALS = [
    (401, {"message": "Incorrect API key"}, errors.ModelFault, "refuses the key: Incorrect API"),
    (403, "no", errors.ModelFault, "refuses the key: no"),
    (402, {"message": "no money"}, errors.ModelFault, "used up"),
    (422, {"message": "bad tool"}, errors.InvalidRequest, "refuses the request: bad tool"),
    (500, {"message": "boom"}, errors.ModelFault, "HTTP 500: boom"),
    (503, {"message": "Loading model"}, errors.ModelUnavailable, "Loading model"),
    (302, "elsewhere", errors.ModelFault, "302"),
]


@pytest.mark.parametrize(("status", "body", "kind", "text"), REFUSALS)
def test_refusals_are_typed(status: int, body: Any, kind: type, text: str) -> None:
    async def test() -> None:
        async with case(refuse(status, body), key="very-secret") as it:
            error = await it.fails()
            assert isinstance(error, kind), error
            assert text in error.message
            assert it.server.url in error.message
            assert "very-secret" not in str(error)
            (step,) = it.model.totals.steps
            assert step.usage == Usage()

    asyncio.run(test())


def test_an_unknown_model_is_answered_with_the_known_ones() -> None:
    async def test() -> None:
        async with case(refuse(404, {"message": "model 'coder' not found"})) as it:
            error = await it.fails()
            assert isinstance(error, errors.NotFound)
            assert "no model 'coder'; it has first, second" in error.message
            assert error.hint == f"name one of them: {it.server.url}#first"

    asyncio.run(test())


def test_a_wrong_path_is_told_apart_from_a_wrong_model() -> None:
    async def test() -> None:
        async with OpenAIServer() as server:
            async with opened(server.url.removesuffix("/v1") + "/v2/x") as (model, _):
                server.models = refuse(404, "nothing here")
                server.script = [refuse(404, "nothing here")]
                with pytest.raises(PunieError) as caught:
                    await model.request(PROMPT, None, NO_TOOLS)
            assert isinstance(caught.value.error, errors.NotFound)
            assert "/v1" in caught.value.error.hint

    asyncio.run(test())


def test_too_many_requests_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_model, "DELAYS", (0.0, 0.0))

    async def test() -> None:
        busy = refuse(429, {"message": "slow down"}, ("retry-after", "7"))
        async with case(busy, busy, say("now")) as it:
            assert (await it.ask()).text == "now"
            it.server.script = [busy] * 3
            error = await it.fails()
            assert isinstance(error, errors.Overloaded)
            assert error.retry is Retry.LATER
            assert error.hint == "try again in 7 s"

    asyncio.run(test())


OVERFLOWS = [
    (
        400,
        {
            "message": "This model's maximum context length is 4096 tokens. However, you requested "
            "5000 tokens (4900 in the messages, 100 in the completion).",
            "code": "context_length_exceeded",
        },
    ),
    (
        400,
        {
            "code": 400,
            "message": "the request exceeds the available context size, try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 5000,
            "n_ctx": 4096,
        },
    ),
    (
        400,
        "Trying to keep the first 5000 tokens when context the overflows. However, the model is \
loaded with context length of only 4096 tokens",
    ),
]


@pytest.mark.parametrize(("status", "error"), OVERFLOWS)
def test_a_refusal_for_length_is_answered_with_less(status: int, error: Any) -> None:
    turns: list[ModelMessage] = []
    for number in range(8):
        turns.append(ModelRequest(parts=[UserPromptPart(f"{number}: " + "word " * 400)]))
        turns.append(ModelResponse(parts=[TextPart("fine " * 100)], model_name="coder"))
    turns.append(ModelRequest(parts=[UserPromptPart("and now?")]))

    async def test() -> None:
        async with case(context_window=32_768, max_output_tokens=512) as it:
            it.server.script = [refuse(status, error), say("a summary"), say("fits")]
            assert (await it.ask(turns)).text == "fits"
            sizes = [len(json.dumps(one.body["messages"])) for one in it.server.requests]
            assert sizes[-1] < sizes[0]
            assert it.model.info.context_window == 4096
            assert it.notices
            assert "a summary" in json.dumps(it.body["messages"])

    asyncio.run(test())


def test_a_smaller_window_than_configured_first_costs_the_answers_room() -> None:
    async def test() -> None:
        text = "maximum context length is 4096 tokens and your request has 12 input tokens"
        async with case(refuse(400, {"message": text}), say("ok")) as it:
            assert (await it.ask()).text == "ok"
            assert [one.body["max_tokens"] for one in it.server.requests] == [8192, 1024]
            assert it.notices == []

    asyncio.run(test())


def test_a_prompt_that_can_never_fit_says_so() -> None:
    async def test() -> None:
        text = {"message": "maximum context length is 100 tokens, you sent 5000"}
        async with case(*[refuse(400, text)] * 20, context_window=2048) as it:
            error = await it.fails()
            assert isinstance(error, errors.ContextOverflow)
            assert error.limit == 100
            assert error.fault is Fault.CALLER

    asyncio.run(test())


def test_what_is_far_too_long_is_not_sent() -> None:
    prompt: list[ModelMessage] = [ModelRequest(parts=[UserPromptPart("word " * 81_000)])]

    async def test() -> None:
        async with case(say("never asked"), context_window=4096) as it:
            error = await it.fails(prompt)
            assert isinstance(error, errors.ContextOverflow)
            assert error.limit == 4096
            assert error.tokens > 50_000
            assert "larger context window" in error.hint
            assert it.server.requests == []
            assert it.notices == []

    asyncio.run(test())


def test_waiting_for_an_answer_that_fails_or_is_cancelled_is_the_models_time() -> None:
    async def test() -> None:
        async with case(Reply(hang=True)) as it:
            asking = asyncio.create_task(it.ask())
            await until(lambda: bool(it.server.requests))
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            (step,) = it.model.totals.steps
            assert 0 < step.prefill == it.model.totals.prefill
            assert step.wall_ms >= step.prefill
        async with case(refuse(400, {"message": "no"})) as it:
            await it.fails()
            (step,) = it.model.totals.steps
            assert 0 < step.prefill == it.model.totals.prefill

    asyncio.run(test())


BROKEN = [
    Reply((chunk({"content": "half of"}),), cut=True),
    Reply((chunk({"content": "half of"}),)),
    Reply((chunk({"content": "half of"}), b"data: {"), cut=True),
    Reply(cut=True),
]


@pytest.mark.parametrize("reply", BROKEN)
def test_an_answer_that_breaks_off_can_be_repeated(reply: Reply) -> None:
    async def test() -> None:
        async with case(reply, say("whole")) as it:
            with pytest.raises(LinkClosed, match=r"127\.0\.0\.1|finish"):
                await it.ask()
            assert (await it.ask()).text == "whole"
            assert len(it.model.totals.steps) == 2

    asyncio.run(test())


def test_an_error_inside_the_stream() -> None:
    async def test() -> None:
        inside = event({"error": {"message": "CUDA out of memory", "code": 500}})
        async with case(Reply((chunk({"content": "wel"}), inside))) as it:
            error = await it.fails()
            assert isinstance(error, errors.ModelFault)
            assert "CUDA out of memory" in error.message

    asyncio.run(test())


GARBAGE = [
    Reply((b"<html>hello</html>",), type="text/html"),
    Reply((b"data: {]\n\n",)),
    Reply((b"\xff\xfe\x00\x01",), type="application/octet-stream"),
    Reply((b"data: 17\n\n",)),
    Reply((b'data: {"choices": 7}\n\n',)),
]


@pytest.mark.parametrize("reply", GARBAGE)
def test_garbage_is_a_fault_of_the_server(reply: Reply) -> None:
    async def test() -> None:
        async with case(reply) as it:
            it.server.models = Reply((b"<html>",), type="text/html")
            error = await it.fails()
            assert isinstance(error, errors.ModelFault), error
            assert it.server.url in error.message

    asyncio.run(test())


def test_nobody_listens() -> None:
    async def test() -> None:
        async with OpenAIServer() as server:
            url = server.url
        async with opened(url) as (model, _):
            with pytest.raises(PunieError) as caught:
                await model.request(PROMPT, None, NO_TOOLS)
        error = caught.value.error
        assert isinstance(error, errors.ModelUnavailable)
        assert url in error.message
        assert "config.toml" in error.hint

    asyncio.run(test())


def test_a_server_that_comes_back_within_the_turn_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_model, "DELAYS", (0.05,) * 100)

    async def test() -> None:
        async with case(say("one")) as it:
            await it.ask()
            await it.server.stop()
            again = asyncio.create_task(it.ask())
            await asyncio.sleep(0)
            it.server.script = [say("two")]
            await it.server.start()
            assert (await again).text == "two"

    asyncio.run(test())


def test_silence_has_a_limit() -> None:
    async def test() -> None:
        async with case(Reply(hang=True), timeout_s=0.2) as it:
            error = await it.fails()
            assert isinstance(error, errors.TimedOut)
            assert error.limit_s == 0.2
        async with case(Reply((chunk({"content": "a"}),), hang=True), timeout_s=0.2) as it:
            assert isinstance(await it.fails(), errors.TimedOut)

    asyncio.run(test())


@pytest.mark.parametrize("begun", [False, True])
def test_cancel_closes_the_connection(begun: bool) -> None:
    async def test() -> None:
        parts = (chunk({"content": "for ever"}),) if begun else ()
        async with case(Reply(parts, hang=True)) as it:
            turn = asyncio.create_task(it.ask())
            await until(
                lambda: bool(it.server.requests and (it.model.totals.first_token or not begun))
            )
            turn.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await turn
            await until(lambda: bool(it.server.closed))

    asyncio.run(test())


def test_info_asks_for_the_name_only_when_there_is_none() -> None:
    async def test() -> None:
        models = Models(ModelClient("/nowhere"))
        try:
            async with OpenAIServer() as server:
                named = await models.info(Backend(url=server.url, name="mine", key="k"))
                assert (named.name, server.listed) == ("mine", [])
                first = await models.info(Backend(url=server.url, key="k", context_window=4096))
                assert (first.name, first.context_window) == ("first", 4096)
                assert first.max_output_tokens == 1024
                assert server.listed[0].headers["authorization"] == "Bearer k"
                for bad in (Reply((b"[]",)), refuse(401, "who?"), Reply((b'{"data": []}',))):
                    server.models = bad
                    with pytest.raises(PunieError, match=server.url):
                        await models.info(Backend(url=server.url))
            with pytest.raises(PunieError, match="no model server answers"):
                await models.info(Backend(url=server.url))
        finally:
            await models.close()

    asyncio.run(test())


@contextlib.contextmanager
def mlx_server(folder: Path) -> Generator[str]:
    """A real server of the embedded model; yields its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cache = folder / "hub"
    cache.mkdir()
    command = [sys.executable, "-m", "mlx_lm", "server", "--model", str(EMBEDDED)]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [*command, "--port", str(port)],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(cache)},
        stdout=log,
        stderr=log,
    )
    log.close()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.kill()
        process.wait()


async def listening(url: str) -> None:
    models = Models(ModelClient("/nowhere"))
    try:
        async with asyncio.timeout(15):
            while True:
                try:
                    await models.info(Backend(url=url))
                    return
                except PunieError:
                    await asyncio.sleep(0.05)
    finally:
        await models.close()


def test_a_real_server_answers_with_a_tool_call_and_knows_its_models(tmp_path: Path) -> None:
    question: list[ModelMessage] = [
        ModelRequest(parts=[UserPromptPart("How many Python files are there?")])
    ]

    async def test() -> None:
        with mlx_server(tmp_path) as url:
            await listening(url)
            async with opened(
                url, told=Instructions("", (), ""), name=str(EMBEDDED), context_window=2048
            ) as (model, _):
                response = await model.request(question, None, NO_TOOLS)
                (called,) = response.tool_calls
                assert called.tool_name == "execute_code"
                assert "list_files" in called.args_as_json_str()
                assert model.totals.usage.output_tokens > 0
                assert model.totals.stop_reason is StopReason.TOOL_CALLS
            async with opened(url, name="nobody") as (model, _):
                with pytest.raises(PunieError) as caught:
                    await model.request(question, None, NO_TOOLS)
                assert str(EMBEDDED) in caught.value.error.message

    asyncio.run(test())


def test_a_worker_without_a_model_host_asks_a_server_and_resumes_a_broken_answer(
    tmp_path: Path,
) -> None:
    root = tmp_path / "demo"
    root.mkdir()
    (root / "a.py").write_text("x = 1\n")
    half = Reply((chunk({"content": "I will"}),), cut=True)

    async def test() -> None:
        script = [call("read_file", '{"path": "a.py"}'), half, say("x is 1")]
        async with OpenAIServer(script) as server, WorkerHarness(tmp_path / "no.sock") as worker:
            await worker.open_project(root)
            await worker.new_session()
            backend = {"url": server.url, "name": "coder", "key": "very-secret"}
            params = {
                "sessionId": "s1",
                "prompt": [{"type": "text", "text": "what is x?"}],
                "_meta": {"punie": {"promptId": "q1", "backend": backend}},
            }
            response = await worker.request("s1", "session/prompt", params)
            turn = Turn(response, worker.updates["s1"])
            assert turn.result["stopReason"] == "end_turn"
            assert turn.text().endswith("x is 1")
            meta = turn.result["_meta"]["punie"]
            assert meta["model"] == "coder"
            assert meta["usage"]["output_tokens"] == 14
            assert len(meta["steps"]) == 3
            told = server.requests[1].body["messages"][-1]
            assert told["role"] == "tool"
            assert "x = 1" in told["content"]
            assert not any(b"very-secret" in delta for delta in worker.deltas["s1"])

    asyncio.run(test())
